"""Read the public surface of TensorRT's Python bindings from their wheels: names, signatures, enum values.

    python extract.py FOLDER   # with the wheels that wheels.json names; writes RELEASE.json beside this file

No prose of the bindings is copied. Their native library is not needed: libraries of the same names, whose
every function prints its name and aborts, are compiled for the occasion; the bindings can be looked at, never
used.
Needs cc, readelf and nm, and the Python version of the wheels.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WHEELS = HERE / "wheels.json"  # release -> file name and sha256 of its wheel

_PREFIX = re.compile(
    r"\btensorrt_bindings(\.tensorrt)?\.(?=[A-Z])|\btensorrt\.(?=[A-Z])|nvinfer1::|nvonnxparser::"
)
_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\)(?: -> (.+))?$")
# How each release spells the same thing.
_SPELLINGS = (
    (r"\bv_\d_\d::", ""),
    (r"::", "."),
    (r"typing\.Supports(Int|Index)", "int"),
    (r"typing\.SupportsFloat", "float"),
    (r"typing_extensions\.Buffer|\bbuffer\b", "Buffer"),
    (r"typing_extensions\.CapsuleType|\bcapsule\b", "object"),
    (r"collections\.abc\.", ""),
    (r"numpy\.ndarray\[[^\]]*\]", "numpy.ndarray"),
    (r"\bList\b", "list"),
    (r"\bTuple\b", "tuple"),
    (r"typing\.", ""),
    (r"(?<![\w.])(Severity)\b(?!\.)", r"ILogger.Severity"),
)
_SPECIAL = frozenset(
    {"__init__", "__getitem__", "__setitem__", "__len__", "__iter__", "__enter__", "__exit__"}
)
# What the bindings' own __init__.py imports or keeps for itself.
_INTERNAL = frozenset(
    {"os", "sys", "ctypes", "warnings", "attr", "value", "common_enter", "common_exit", "dll_suffix"}
)


def clean(text: str) -> str:
    """One spelling of types for all releases."""
    text = _PREFIX.sub("", text)
    for pattern, plain in _SPELLINGS:
        text = re.sub(pattern, plain, text)
    return text


def signatures(function: Any, name: str) -> list[str]:
    """All overloads that pybind11 wrote down, or the one that Python knows."""
    if inspect.isfunction(function):
        return [str(inspect.signature(function))]
    lines = (_SIGNATURE.match(line.strip()) for line in (function.__doc__ or "").splitlines())
    found = [
        clean(f"({m[2]}) -> {m[3] or 'None'}") for m in lines if m and m[1] == name and "*args" not in m[2]
    ]
    return list(dict.fromkeys(found))


def is_enum(kind: type) -> bool:
    return isinstance(getattr(kind, "__members__", None), dict) and hasattr(kind, "__int__")


def read_class(kind: type) -> dict[str, Any]:
    """An enum's values, or a class's base and members."""
    if is_enum(kind):
        return {"values": {name: int(value) for name, value in kind.__members__.items()}}
    found: dict[str, Any] = {
        "methods": {},
        "static": {},
        "readable": {},
        "writable": {},
        "nested": {},
        "constants": {},
    }
    bases = [
        b.__name__ for b in kind.__mro__[1:] if b.__module__ != "builtins" and b.__name__ != "pybind11_object"
    ]
    for name, member in sorted(vars(kind).items()):
        if not name.startswith("_") or name in _SPECIAL:
            _read_member(found, kind, name, member)
    return {**({"base": bases[0]} if bases else {}), **{key: value for key, value in found.items() if value}}


def _read_member(found: dict[str, Any], owner: type, name: str, member: Any) -> None:
    if isinstance(member, type):
        inside = member.__qualname__.startswith(f"{owner.__qualname__}.")
        found["nested"][name] = read_class(member) if inside else {"alias": member.__qualname__}
    elif isinstance(member, property) and type(member) is property:
        _read_property(found, name, member)
    elif isinstance(member, staticmethod):
        found["static"][name] = signatures(member.__func__, name)
    elif callable(member) and type(member).__name__ != "wrapper_descriptor":
        found["methods"][name] = signatures(member, name)
    elif not callable(member):
        found["constants"][name] = type(member).__name__.removeprefix("pybind11_static_")


def _read_property(found: dict[str, Any], name: str, member: property) -> None:
    first = [(f.__doc__ or "").partition("\n")[0] if f else "" for f in (member.fget, member.fset)]
    answer = re.search(r"-> (.+)$", first[0])
    taken = re.match(r"\(.*?, ?(?:\w+): (.*)\) -> None", first[1])
    if member.fget:
        found["readable"][name] = clean(answer[1]) if answer else "object"
    if member.fset:
        found["writable"][name] = clean(taken[1]) if taken else found["readable"].get(name, "object")


def read_module(module: Any) -> dict[str, Any]:
    """Everything public at the top of the bindings."""
    names: dict[str, Any] = {}
    for name in sorted(n for n in dir(module) if not n.startswith("_") and n not in _INTERNAL):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            continue
        if isinstance(thing, type):
            alias = name != thing.__name__ and getattr(module, thing.__name__, None) is thing
            names[name] = {"alias": thing.__name__} if alias else read_class(thing)
        elif callable(thing):
            names[name] = {"signatures": signatures(thing, name)}
        elif is_enum(type(thing)):
            names[name] = {"of": type(thing).__name__, "value": int(thing)}
    return names


def stub_libraries(extension: Path, folder: Path) -> None:
    """Compile libraries of the names the extension needs, whose functions only abort."""
    needed = re.findall(
        r"\[(libnv[^\]]+)\]", subprocess.check_output(["readelf", "-d", extension], text=True)
    )
    lines = subprocess.check_output(["nm", "-D", "--undefined-only", extension], text=True).splitlines()
    wanted = [s for line in lines if re.match(r"(create|get|initLib|_ZN\d+nv)[^@]*$", s := line.split()[-1])]
    source = ["#include <stdlib.h>", "#include <stdio.h>"]
    for index, symbol in enumerate(wanted):
        head = f'void f{index}(void) __asm__("{symbol}"); void f{index}(void)'
        source.append(f'{head} {{ fputs("not a TensorRT: {symbol}\\n", stderr); abort(); }}')
    (folder / "all.c").write_text("\n".join(source) + "\n")
    (folder / "none.c").write_text("int none;\n")
    for name in needed:
        text = folder / ("all.c" if "libnvinfer.so" in name else "none.c")
        subprocess.check_call(["cc", "-shared", "-fPIC", "-o", folder / name, text, f"-Wl,-soname,{name}"])


def extract(wheel: Path) -> dict[str, Any]:
    """The surface in one wheel, read in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        zipfile.ZipFile(wheel).extractall(folder)
        stub_libraries(next(folder.rglob("tensorrt*.so")), folder)
        paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
        command = [sys.executable, __file__, "--introspect"]
        return dict(json.loads(subprocess.check_output(command, env={**os.environ, **paths}, text=True)))


def write(release: str, surface: dict[str, Any]) -> None:
    """One line a name, so that a difference of two releases can be read."""
    lines: Iterator[str] = (
        f"{json.dumps(n)}:{json.dumps(c, separators=(',', ':'))}" for n, c in surface["names"].items()
    )
    head = json.dumps({key: value for key, value in surface.items() if key != "names"})[:-1]
    (HERE / f"{release}.json").write_text(head + ',"names":{\n' + ",\n".join(lines) + "\n}}\n")


def main(argument: str) -> None:
    if argument == "--introspect":
        bindings = importlib.import_module("tensorrt_bindings")
        print(json.dumps({"version": bindings.__version__, "names": read_module(bindings)}))
        return
    for release, wheel in json.loads(WHEELS.read_text()).items():
        path = Path(argument) / wheel["file"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != wheel["sha256"]:
            sys.exit(f"{path}: not the wheel that {WHEELS.name} names")
        write(release, extract(path))


if __name__ == "__main__":
    main(sys.argv[1])
