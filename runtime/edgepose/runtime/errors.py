"""What a user may be told: one sentence saying what, which value and what next, and its exit code."""

from __future__ import annotations

import errno
import importlib
from types import ModuleType
from typing import ClassVar


class EdgeposeError(Exception):
    """A mistake of the user or of their files; printed without a traceback. Exit code 2."""

    exit_code: ClassVar[int] = 2


class GateFailed(EdgeposeError):
    """A measured figure misses its gate. Exit code 1."""

    exit_code: ClassVar[int] = 1


class MissingLibrary(EdgeposeError):
    """A library that this verb needs is not installed. Exit code 3."""

    exit_code: ClassVar[int] = 3


class HardwareError(EdgeposeError):
    """A camera, GPU, encoder or port does not answer as it should. Exit code 4."""

    exit_code: ClassVar[int] = 4


DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

_WORKSTATION = "pip install 'edgepose[workstation]'"
_STREAM = "pip install 'edgepose[stream]'"
_GSTREAMER = (
    "sudo apt-get install python3-gi python3-gst-1.0 gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav, "
    "in a virtual environment made by `/usr/bin/python3 -m venv --system-site-packages`"
)

# Where each library comes from: on a board `pip install` is the wrong advice for half of them.
SOURCE = {
    "torch": _WORKSTATION,
    "nncf": _WORKSTATION,
    "torch_pruning": _WORKSTATION,
    "onnx": _WORKSTATION,
    "onnxsim": _WORKSTATION,
    "onnxscript": _WORKSTATION,
    "lightning_fabric": _WORKSTATION,
    "scipy": _WORKSTATION,
    "safetensors": _WORKSTATION,
    "pydantic": _WORKSTATION,
    "yaml": _WORKSTATION,
    "pycocotools": _WORKSTATION,
    "tensorboard": _WORKSTATION,
    "matplotlib": _WORKSTATION,
    "jinja2": _WORKSTATION,
    "ansible": _WORKSTATION,
    "modelopt": "pip install --no-deps nvidia-modelopt (compression/README.md)",
    "transformers": "pip install 'edgepose[bench]'",
    "onnxruntime": _STREAM,
    "cv2": _STREAM,
    "gi": _GSTREAMER,
    "tensorrt": "on a Jetson it comes with JetPack (sudo apt-get install tensorrt python3-libnvinfer), for a "
    "virtual environment made by `python3 -m venv --system-site-packages`",
    "pycuda": "PATH=/usr/local/cuda/bin:$PATH pip install pycuda (it compiles for some minutes), or take "
    "`--cuda cuda-python`, which needs no compiler",
    "cuda": "pip install 'cuda-bindings==12.*' on JetPack 6, 'cuda-bindings==13.*' on JetPack 7",
}


def require(module: str) -> ModuleType:
    """Import `module`, or raise MissingLibrary naming the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module, error) from error


def missing(module: str, error: ImportError) -> MissingLibrary:
    """What to tell of a failed import: the command that installs it. Its first name stands in SOURCE."""
    source = SOURCE[module.partition(".")[0]]
    return MissingLibrary(f"{module} cannot be imported ({error}); install it: {source}")
