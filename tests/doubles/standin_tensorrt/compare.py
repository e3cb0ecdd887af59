"""The stand-in and the real bindings answering the same questions: enums, shapes, loggers, wrong arguments.

    PYTHONPATH=tests/doubles python -m standin_tensorrt.compare FOLDER   # with the wheels of wheels.json

Prints what differs, release by release; exits 1 when anything does. Not in the gate: it needs the wheels.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from standin_gpu import Gpu
from trt_surface import extract

import standin_tensorrt


def _derived(base: type, *, calls_base: bool, has_init: bool = True) -> Any:
    """A user's class, which must call the base's __init__ when it has one of its own."""

    def init(self: Any) -> None:
        if calls_base:
            base.__init__(self)

    return type(
        "Mine", (base,), {"log": lambda self, severity, msg: None, **({"__init__": init} if has_init else {})}
    )


PROBES: dict[str, Any] = {
    "shift by enum": lambda trt: 1 << trt.BuilderFlag.DEBUG,
    "shift by int": lambda trt: 1 << int(trt.BuilderFlag.DEBUG),
    "or of enums": lambda trt: trt.BuilderFlag.DEBUG | trt.BuilderFlag.REFIT,
    "enum equals int": lambda trt: int(trt.BuilderFlag.DEBUG) == trt.BuilderFlag.DEBUG,
    "enum equals itself": lambda trt: trt.BuilderFlag(2) == trt.BuilderFlag(2),
    "enum less than enum": lambda trt: trt.BuilderFlag.DEBUG < trt.BuilderFlag.REFIT,
    "enum as key": lambda trt: {trt.BuilderFlag.DEBUG: 1}[trt.BuilderFlag.DEBUG],
    "enum shown": lambda trt: trt.BuilderFlag.DEBUG,
    "enum's name and value": lambda trt: (trt.BuilderFlag.DEBUG.name, trt.BuilderFlag.DEBUG.value),
    "no such member": lambda trt: trt.BuilderFlag.NOPE,
    "enum of int": lambda trt: trt.BuilderFlag(2).name,
    "enum of text": lambda trt: trt.BuilderFlag("x"),
    "attribute of enum": lambda trt: setattr(trt.BuilderFlag.DEBUG, "x", 1),
    "own logger": lambda trt: _derived(trt.ILogger, calls_base=True)() is not None,
    "own logger without init": lambda trt: (
        _derived(trt.ILogger, calls_base=False, has_init=False)() is not None
    ),
    "own logger, base not called": lambda trt: _derived(trt.ILogger, calls_base=False)(),
    "attribute of own logger": lambda trt: setattr(_derived(trt.ILogger, calls_base=True)(), "x", 1),
    "no such name": lambda trt: trt.nope,
    "config made by hand": lambda trt: trt.IBuilderConfig(),
    "profile made by hand": lambda trt: trt.IOptimizationProfile(),
    "parser of numbers": lambda trt: trt.OnnxParser(1, 2),
    "runtime of a number": lambda trt: trt.Runtime(3),
    "builder of nothing": lambda trt: trt.Builder(),
    "plugins of a number": lambda trt: trt.init_libnvinfer_plugins(3, ""),
    "dims": lambda trt: tuple(trt.Dims((1, 2, 3))),
    "dims of list": lambda trt: list(trt.Dims([1, 2])),
    "dims of floats": lambda trt: trt.Dims((1.5, 2)),
    "nine dims": lambda trt: trt.Dims([1] * 9),
    "dims equal tuple": lambda trt: trt.Dims((1, -1)) == (1, -1),
    "dims equal list": lambda trt: trt.Dims((1, -1)) == [1, -1],
    "dims by index": lambda trt: (trt.Dims((1, 2))[-1], trt.Dims((1, 2, 3))[0:2], len(trt.Dims((1,)))),
    "dims as key": lambda trt: hash(trt.Dims((1,))),
    "in dims": lambda trt: -1 in trt.Dims((1, -1)),
    "severities": lambda trt: sorted(trt.ILogger.Severity.__members__),
    "severity of logger": lambda trt: trt.Logger.Severity is trt.ILogger.Severity,
    "severity in short": lambda trt: trt.ILogger.ERROR == trt.ILogger.Severity.ERROR,
    "float32": lambda trt: trt.float32 == trt.DataType.FLOAT,
    "size of half": lambda trt: trt.DataType.HALF.itemsize,
    "volume": lambda trt: trt.volume((2, 3)),
    "own monitor": lambda trt: _derived(trt.IProgressMonitor, calls_base=True)() is not None,
}


def answers(trt: Any) -> dict[str, str]:
    """Each probe's answer as text, or the kind of error it raises."""
    found = {}
    for name, probe in PROBES.items():
        try:
            found[name] = repr(probe(trt))
        except Exception as error:  # whatever the bindings raise is the answer
            found[name] = type(error).__name__
    return found


def real(wheel: Path) -> dict[str, str]:
    """The answers of the bindings in a wheel, in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        zipfile.ZipFile(wheel).extractall(folder)
        extract.stub_libraries(next(folder.rglob("tensorrt*.so")), folder)
        paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
        command = [sys.executable, "-m", "standin_tensorrt.compare", "--real"]
        return dict(json.loads(subprocess.check_output(command, env={**os.environ, **paths}, text=True)))


def main(argument: str) -> int:
    if argument == "--real":
        print(json.dumps(answers(importlib.import_module("tensorrt_bindings"))))
        return 0
    differing = 0
    for release, wheel in json.loads(extract.WHEELS.read_text()).items():
        mine, theirs = answers(standin_tensorrt.load(release, Gpu())), real(Path(argument) / wheel["file"])
        wrong = {name: (theirs[name], mine[name]) for name in PROBES if theirs[name] != mine[name]}
        print(f"{release}: {len(PROBES)} probes, {len(wrong)} differ (real, stand-in): {wrong or ''}")
        differing += len(wrong)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
