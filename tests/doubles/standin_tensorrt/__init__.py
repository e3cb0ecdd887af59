"""A strict stand-in for the `tensorrt` module of one release; ONNX Runtime computes.

It has exactly the names, enum values and signatures of that release's surface: an unknown name raises
AttributeError, a wrong argument TypeError, a member that is not simulated NotSimulated, and what would crash
the real library WouldCrash. What it cannot show: TensorRT's numerics, fusions, speed, memory, its own bugs.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from standin_gpu import Gpu
from trt_surface import surface

from standin_tensorrt.classes import Maker
from standin_tensorrt.strictness import NotSimulated, WouldCrash

__all__ = ["NotSimulated", "WouldCrash", "load"]

_SEVERITY = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


def load(release: str, gpu: Gpu) -> ModuleType:
    """The module for a release of `trt_surface.RELEASES`, working on `gpu`."""
    found = surface(release)
    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__=found["version"], _gpu=gpu, _release=release, _plugins=False, _loggers=[]
    )
    maker = Maker(module, found["names"])
    for name, entry in found["names"].items():
        setattr(module, name, maker.made(name, entry))
    for name in _SEVERITY:
        for owner in (module.ILogger, module.Logger):
            setattr(owner, name, getattr(module.ILogger.Severity, name))
    _functions(module)
    return module


def _functions(module: ModuleType) -> None:
    """The few functions at the top of the module that have an honest simulation."""

    def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
        if logger is not None and not isinstance(logger, module.ILogger):
            raise TypeError("init_libnvinfer_plugins(): incompatible function arguments")
        module._plugins = True
        return True

    module.init_libnvinfer_plugins = init_libnvinfer_plugins
    module.volume = math.prod
