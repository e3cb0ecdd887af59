"""A surface as a stub package that mypy reads; what signatures cannot say is added from tables."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trt_surface import surface

# C++ gives a null pointer on failure, which pybind11 turns into None without saying so.
_MAY_BE_NONE = frozenset(
    {"build_serialized_network", "build_engine_with_config", "build_engine", "deserialize_cuda_engine"}
    | {"create_execution_context", "create_network", "get_timing_cache", "create_timing_cache"}
)
_MAY_BE_SET_TO_NONE = frozenset(
    {
        "int8_calibrator",
        "progress_monitor",
        "gpu_allocator",
        "error_recorder",
        "algorithm_selector",
        "profiler",
    }
)
_MAY_BE_GIVEN_NONE = {("phase_start", "parent_phase")}
# pybind11 converts these by itself.
_ALSO_TAKES = {
    "Dims": "Dims | Sequence[int]",
    "DimsHW": "DimsHW | Sequence[int]",
    "Weights": "Weights | numpy.ndarray",
    "Permutation": "Permutation | Sequence[int]",
}
# Signatures of bases and of methods name C++ classes by their C++ names.
_CPP_NAMES = {
    "IBuilder": "Builder",
    "IRuntime": "Runtime",
    "IRefitter": "Refitter",
    "IParserError": "ParserError",
    "IEngineInspector": "EngineInspector",
}
_BUILTIN = frozenset(
    {"Buffer", "Sequence", "Iterable", "Iterator", "Callable", "None", "Optional", "Union", "Any"}
)
_EXTRA = {
    "IHostMemory": ["def __buffer__(self, flags: int, /) -> memoryview: ..."],
    "Dims": ["def __iter__(self) -> Iterator[int]: ..."],  # iterates through __getitem__
    "DataType": ["@property", "def itemsize(self) -> Any: ..."],
}
_ENUM = [
    "__members__: dict[str, Self]",
    "def __init__(self, value: int) -> None: ...",
    "def __int__(self) -> int: ...",
    "def __index__(self) -> int: ...",
    "@property",
    "def name(self) -> str: ...",
    "@property",
    "def value(self) -> int: ...",
]
_LENIENT = "misc,override,overload-overlap,overload-cannot-match,valid-type,no-redef,assignment,type-arg"
_HEAD = f"""\
# mypy: disable-error-code="{_LENIENT}"
import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Optional, Union, overload

import numpy
from typing_extensions import Buffer, Self
"""


def split(text: str) -> list[str]:
    """A signature's parameters: cut at the commas that are in no bracket."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


def write_stub(release: str, folder: Path) -> None:
    """`folder/tensorrt/__init__.pyi` for a release."""
    names = surface(release)["names"]
    package = folder / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.pyi").write_text("\n".join([_HEAD, *_Stub(names).lines()]) + "\n")


class _Stub:
    """One release's names as lines of a stub."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def lines(self) -> Iterator[str]:
        yield "__version__: str"
        for name in self._in_order():
            yield from self._class(name, self._names[name])
        # DataType's short names (`bool`, `float32`) shadow builtins, so they come last.
        for name, entry in self._names.items():
            if "signatures" in entry:
                yield from self._function(name, entry["signatures"], "")
            elif "alias" in entry:
                yield f"{name} = {entry['alias']}"
            elif "of" in entry:
                yield f"{name}: {entry['of']}"

    def _in_order(self) -> list[str]:
        """Classes and enums, bases before what derives from them."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            if (base := self._names[name].get("base")) in self._names and base != name:
                visit(base)
            order[name] = None

        for name, entry in self._names.items():
            if not {"signatures", "alias", "of"} & entry.keys():
                visit(name)
        return list(order)

    def _class(self, name: str, entry: dict[str, Any]) -> Iterator[str]:
        base = entry.get("base")
        yield f"class {name}" + (f"({base}):" if base in self._names else ":")
        for line in [*_EXTRA.get(name, ()), *self._body(entry), "pass"]:
            yield f"    {line}"

    def _body(self, entry: dict[str, Any]) -> Iterator[str]:
        if "values" in entry:
            yield from _ENUM
            yield from (f"{name}{'_' * keyword.iskeyword(name)}: ClassVar[Self]" for name in entry["values"])
            return
        for name, inner in entry.get("nested", {}).items():
            yield from [f"{name} = {inner['alias']}"] if "alias" in inner else self._class(name, inner)
        yield from (f"{name}: ClassVar[Any]" for name in entry.get("constants", {}))
        for name, found in entry.get("methods", {}).items():
            yield from self._function(name, found, "self")
        for name, found in entry.get("static", {}).items():
            yield from self._function(name, found, "@staticmethod")
        for name, kind in entry.get("readable", {}).items():
            yield from ("@property", f"def {name}(self) -> {self._type(kind)}: ...")
            if name in entry.get("writable", {}):
                taken = self._type(entry["writable"][name], given=True)
                none = " | None" if name in _MAY_BE_SET_TO_NONE else ""
                yield from (f"@{name}.setter", f"def {name}(self, value: {taken}{none}) -> None: ...")

    def _function(self, name: str, signatures: list[str], kind: str) -> Iterator[str]:
        if name == "__exit__":
            signatures = ["(self, exc_type: object, exc_value: object, traceback: object) -> None"]
        for signature in signatures or ["(self, *args, **kwargs)"]:
            if len(signatures) > 1:
                yield "@overload"
            if kind == "@staticmethod":
                yield kind
            parameters, _, answer = (
                signature.rpartition(" -> ") if " -> " in signature else (signature, "", "object")
            )
            taken = self._parameters(name, split(parameters[1:-1]), bool(kind == "self"))
            yield f"def {name}({', '.join(taken)}) -> {self._answer(name, answer)}: ..."

    def _answer(self, name: str, answer: str) -> str:
        if name in ("__init__", "__enter__"):
            return {"__init__": "None", "__enter__": "Self"}[name]
        return self._type(answer) + (" | None" if name in _MAY_BE_NONE else "")

    def _parameters(self, function: str, parameters: list[str], bound: bool) -> list[str]:
        taken: list[str] = []
        defaults_end = False  # pybind11 lets a required argument follow a defaulted one, a stub cannot
        for index, parameter in reversed(list(enumerate(parameters))):
            if bound and index == 0:
                taken.append("self")
                continue
            found = re.match(r"^(\*{0,2}\w*)\s*(?::\s*(.*?))?(?:\s*=\s*(.*))?$", parameter, re.DOTALL)
            if found is None or found[1] in ("", "*", "/") or found[1].startswith("*"):
                taken.append(parameter)
                continue
            none = " | None" if found[3] == "None" or (function, found[1]) in _MAY_BE_GIVEN_NONE else ""
            default = " = ..." if found[3] is not None and not defaults_end else ""
            defaults_end |= found[3] is None
            name = found[1] + "_" * keyword.iskeyword(found[1])
            taken.append(f"{name}: {self._type(found[2] or 'Any', given=True)}{none}{default}")
        return taken[::-1]

    def _type(self, text: str, given: bool = False) -> str:
        """A type as the stub can say it; `given`: of a parameter, where pybind11 converts more."""
        if re.search(r"[<>{}]|std\.", text):
            return "Any"
        text = re.sub(
            r"\b[A-Z]\w*", lambda m: m[0] if m[0] in self._names else _CPP_NAMES.get(m[0], m[0]), text
        )
        if any(
            word not in self._names and word not in _BUILTIN
            for word in re.findall(r"(?<!\.)\b[A-Z]\w+", text)
        ):
            return "Any"
        if given:
            text = _ALSO_TAKES.get(text, re.sub(r"^list\[", "Sequence[", text))
        return re.sub(r"(?<!\.)\bbool\b", "builtins.bool", text)  # the module has a `bool` of its own
