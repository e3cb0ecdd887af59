"""Classes and enums made from a release's surface; what they do comes from `behaviour` and `execution`."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from standin_tensorrt import behaviour, execution
from standin_tensorrt.strictness import NotSimulated, Signature, call, is_int

# Users derive from these; the bindings then insist that the base's __init__ was called.
_FOR_USERS = frozenset(
    {
        "ILogger",
        "IProgressMonitor",
        "IErrorRecorder",
        "IProfiler",
        "IInt8Calibrator",
        "IInt8EntropyCalibrator2",
    }
)
BEHAVIOURS: dict[str, type] = {**behaviour.BEHAVIOURS, **execution.BEHAVIOURS}
_HALF_BYTE, _ITEMSIZE = 0.5, {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1}


class _Checked(type):
    """Instances are complete only when the bindings' own __init__ ran."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if "_sim" not in made.__dict__:
            raise TypeError(f"{cls.__mro__[1].__name__}.__init__() must be called when overriding __init__")
        return made


class Strict(metaclass=_Checked):
    """No attribute but those of the surface; classes for users take any."""

    _for_users = False

    def __setattr__(self, name: str, value: Any) -> None:
        known = isinstance(getattr(type(self), name, None), property)
        if not (name == "_sim" or known or type(self)._for_users):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        object.__setattr__(self, name, value)


class Dims(Strict):
    """A shape: up to eight integers, equal to the tuple of them."""

    def __init__(self, shape: Any = ()) -> None:
        if not all(map(is_int, shape)):
            raise TypeError("__init__(): incompatible constructor arguments")
        if len(shape) > 8:
            raise ValueError(f"Input length {len(shape)}. Max expected length is 8")
        self._sim = tuple(int(size) for size in shape)

    def __len__(self) -> int:
        return len(self._sim)

    def __getitem__(self, index: Any) -> Any:
        return self._sim[index]

    def __eq__(self, other: object) -> bool:
        return self._sim == tuple(other)  # type: ignore[call-overload]

    __hash__ = None  # type: ignore[assignment]


def new(module: ModuleType, name: str, **state: Any) -> Any:
    """An object as the library hands it out, without the constructor a user would call."""
    made = object.__new__(getattr(module, name))
    made._sim = SimpleNamespace(module=module, values={}, **state)
    return made


class Maker:
    """Makes a module's things in the order they need each other."""

    def __init__(self, module: ModuleType, names: dict[str, Any]) -> None:
        self._module, self._names = module, names
        self._ready: dict[str, Any] = {}
        module._new = lambda name, **state: new(module, name, **state)

    def made(self, name: str, entry: dict[str, Any]) -> Any:
        """What stands in the module under `name`."""
        if name not in self._ready:
            self._ready[name] = self._make(name, entry)
        return self._ready[name]

    def _make(self, name: str, entry: dict[str, Any]) -> Any:
        if "alias" in entry:
            return self.made(entry["alias"], self._names[entry["alias"]])
        if "of" in entry:
            return self.made(entry["of"], self._names[entry["of"]])(entry["value"])
        if "signatures" in entry:
            return self._unsimulated(name)
        if name == "Dims":
            return Dims
        return _enum(name, entry["values"]) if "values" in entry else self._class(name, entry)

    def _class(self, name: str, entry: dict[str, Any]) -> type:
        base = entry.get("base")
        bases = (self.made(base, self._names[base]),) if base in self._names else (Strict,)
        does = BEHAVIOURS.get(name)
        body: dict[str, Any] = {"__module__": "tensorrt", "__init__": self._constructor(name, entry, does)}
        body["_for_users"] = name in _FOR_USERS or bases[0]._for_users
        for method, texts in entry.get("methods", {}).items():
            if not method.startswith("__"):
                body[method] = self._method(f"{name}.{method}", texts, getattr(does, method, None))
        for nested, inner in entry.get("nested", {}).items():
            target = inner.get("alias", "").split(".")
            body[nested] = (
                getattr(self.made(target[0], self._names[target[0]]), target[1])
                if "alias" in inner
                else self._make(nested, inner)
            )
        for attribute, kind in entry.get("readable", {}).items():
            body[attribute] = self._property(name, attribute, kind, entry.get("writable", {}), does)
        if name == "IHostMemory":  # the buffer protocol, which Python classes have from 3.12 on only
            body["__bytes__"] = lambda memory: memory._sim.data
        return type(name, bases, body)

    def _constructor(self, name: str, entry: dict[str, Any], does: type | None) -> Any:
        texts = entry.get("methods", {}).get("__init__", [])
        signatures, module = [Signature(text) for text in texts], self._module

        def init(made: Any, *args: Any, **kwargs: Any) -> None:
            if not signatures:
                raise TypeError(f"tensorrt.{name}: No constructor defined!")
            bound = call(module, name, signatures, args, kwargs)
            start = getattr(does, "start", None)
            if start is None and not type(made)._for_users:
                raise NotSimulated(f"tensorrt.{name} of {module.__version__} is not simulated")
            made._sim = SimpleNamespace(module=module, values={})
            if start is not None:
                start(made, **bound)

        return init

    def _method(self, what: str, texts: list[str], function: Any) -> Any:
        signatures, module = [Signature(text) for text in texts], self._module

        def method(made: Any, *args: Any, **kwargs: Any) -> Any:
            bound = call(module, what, signatures, args, kwargs)
            if function is None:
                raise NotSimulated(f"{what} of {module.__version__} is not simulated")
            return function(made, *bound.values())

        return method

    def _property(
        self, owner: str, name: str, kind: str, writable: dict[str, str], does: type | None
    ) -> property:
        module, missing = self._module, object()
        default = vars(does).get(name, missing) if does else missing

        def refuse() -> None:
            if default is missing:
                raise NotSimulated(f"{owner}.{name} of {module.__version__} is not simulated")

        def read(made: Any) -> Any:
            refuse()
            if isinstance(default, property):
                return default.fget(made)  # type: ignore[misc]
            value = made._sim.values.get(name, default)
            return getattr(getattr(module, kind), value[0]) if isinstance(value, tuple) else value

        def write(made: Any, value: Any) -> None:
            if value is not None:
                call(
                    module, f"{owner}.{name}", [Signature(f"(value: {writable[name]}) -> None")], (value,), {}
                )
            refuse()
            made._sim.values[name] = value

        return property(read, write if name in writable else None)

    def _unsimulated(self, name: str) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            raise NotSimulated(f"tensorrt.{name} of {self._module.__version__} is not simulated")

        return function


def _enum(name: str, values: dict[str, int]) -> type:
    """As pybind11 makes them: `int(flag)` works, `1 << flag` and `flag | flag` do not."""

    def init(made: Any, value: Any) -> None:
        if not is_int(value):
            raise TypeError("__init__(): incompatible constructor arguments")
        object.__setattr__(made, "_value", int(value))

    def refuse(made: Any, attribute: str, value: Any) -> None:
        raise AttributeError(f"can't set attribute {attribute}")

    body = {
        "__module__": "tensorrt",
        "__init__": init,
        "__setattr__": refuse,
        "__int__": lambda made: made._value,
        "__index__": lambda made: made._value,
        "__hash__": lambda made: hash(made._value),
        "__lt__": lambda made, other: made._value < other._value,
        "__eq__": lambda made, other: type(other) is type(made) and other._value == made._value,
        "__repr__": lambda made: f"<{name}.{made.name}: {made._value}>",
        "name": property(lambda made: next((n for n, v in values.items() if v == made._value), "???")),
        "value": property(lambda made: made._value),
    }
    if name == "DataType":
        body["itemsize"] = property(lambda made: _ITEMSIZE.get(made.name, _HALF_BYTE))
    kind = type(name, (), body)
    members = {member: kind(value) for member, value in values.items()}
    for member, value in members.items():
        setattr(kind, member, value)
    kind.__members__ = members  # type: ignore[attr-defined]
    return kind
