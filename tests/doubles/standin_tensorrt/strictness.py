"""Arguments against the signatures that the real bindings print, by pybind11's rules of conversion."""

from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any

import numpy as np
from trt_surface.stubs import split


class NotSimulated(NotImplementedError):
    """The release has this, the stand-in does not: never silently accepted."""


class WouldCrash(BaseException):
    """The real library would have taken the process down, or computed on foreign memory."""


class Signature:
    """One overload. `bind` gives the arguments by name, or None when they do not fit."""

    def __init__(self, text: str) -> None:
        self.text = text
        inside = text.rpartition(" -> ")[0] or text
        parts = [p for p in split(inside[1:-1]) if p not in ("*", "/")]
        found = [re.match(r"^\**(\w+)\s*(?::\s*(.*?))?(?:\s*=\s*(.*))?$", part, re.DOTALL) for part in parts]
        self.parameters = [(m[1], m[2], m[3]) for m in found if m and m[1] not in ("self", "this")]

    def bind(
        self, module: ModuleType, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any] | None:
        names = [name for name, _, _ in self.parameters]
        if len(args) > len(names) or not kwargs.keys() <= set(names[len(args) :]):
            return None
        given = dict(zip(names, args, strict=False)) | kwargs
        bound = {}
        for name, kind, default in self.parameters:
            if name not in given:
                if default is None:
                    return None
                bound[name] = _default(module, default)
            elif fits(module, given[name], kind) or (given[name] is None and default == "None"):
                bound[name] = given[name]
            else:
                return None
        return bound


def call(
    module: ModuleType, what: str, signatures: list[Signature], args: Any, kwargs: Any
) -> dict[str, Any]:
    """The arguments bound to the first overload that takes them; TypeError when none does."""
    for signature in signatures:
        if (bound := signature.bind(module, args, kwargs)) is not None:
            return bound
    known = "; ".join(signature.text for signature in signatures)
    raise TypeError(f"{what}(): incompatible function arguments: {args} {kwargs}; it takes {known}")


def _default(module: ModuleType, text: str) -> Any:
    if enum := re.match(r"<(\w+)\.(\w+): \d+>", text):
        return getattr(getattr(module, enum[1]), enum[2])
    plain = {"None": None, "True": True, "False": False}
    return plain[text] if text in plain else json.loads(text.replace("'", '"'))


def is_int(value: Any) -> bool:
    """What pybind11 converts to an integer: no float, but all that has `__index__`."""
    return not isinstance(value, float | str | np.floating) and hasattr(value, "__index__")


def fits(module: ModuleType, value: Any, kind: str | None) -> bool:
    """Whether pybind11 passes `value` for a parameter of type `kind`."""
    if kind is None or kind == "object" or re.search(r"[<>{}|]|std\.", kind):
        return True
    if inner := re.match(r"^(?:list|Sequence)\[(.*)\]$", kind):
        return isinstance(value, list | tuple) and all(fits(module, item, inner[1]) for item in value)
    if kind == "Dims":
        sized = isinstance(value, list | tuple) and all(map(is_int, value))
        return sized or isinstance(value, module.Dims)
    return _PLAIN[kind](value) if kind in _PLAIN else _is_instance(module, value, kind)


_PLAIN: dict[str, Any] = {
    "int": is_int,  # an enum of the bindings too: forgetting `1 << int(flag)` passes, as it does in reality
    "float": lambda value: isinstance(value, int | float | np.number) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool | np.bool_),
    "str": lambda value: isinstance(value, str),
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
    "slice": lambda value: isinstance(value, slice),
    "Buffer": lambda value: isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "__bytes__"),
    "numpy.ndarray": lambda value: isinstance(value, np.ndarray),
}
_CPP_NAMES = {"IRuntime": "Runtime", "IBuilder": "Builder"}


def _is_instance(module: ModuleType, value: Any, kind: str) -> bool:
    owner: Any = module
    for part in _CPP_NAMES.get(kind, kind).split("."):
        owner = getattr(owner, part, None)
    return isinstance(owner, type) and isinstance(value, owner)


def called(callback: Any, *arguments: Any, otherwise: Any = None) -> Any:
    """As NVIDIA's bindings call back: Ctrl-C in it is printed, and TensorRT goes on with `otherwise`.

    So is any other exception there; here a test fails by it.
    """
    try:
        return callback(*arguments)
    except KeyboardInterrupt as error:
        print(f"[ERROR] Exception caught in {callback.__name__}(): {error!r}")
        return otherwise
