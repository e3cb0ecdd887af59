"""The CUDA driver, asked before TensorRT is touched: without one TensorRT's objects crash the process."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from edgepose.runtime.errors import HardwareError

LIBRARY = "libcuda.so.1"

# CUdevice_attribute of cuda.h; these numbers are part of the driver's binary interface.
_INTEGRATED, _SM_MAJOR, _SM_MINOR = 18, 75, 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    sm: int  # compute capability times ten, such as 87
    integrated: bool  # shares the host's memory, as on every Jetson
    cuda: str  # newest CUDA release the driver serves, such as "12.6"


def load() -> ctypes.CDLL:
    """The driver's library. Raises OSError when there is none."""
    return ctypes.CDLL(LIBRARY)


def require_gpu() -> Gpu:
    """The GPU that engines are built for and run on. Raises HardwareError when no driver or GPU answers."""
    try:
        library = load()
    except OSError as error:
        raise HardwareError(
            f"no CUDA driver on this machine ({LIBRARY} cannot be loaded); ONNX Runtime runs the model "
            "on the CPU"
        ) from error
    _ask(library.cuInit(0), "cuInit")
    device, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    _ask(library.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _ask(library.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    _ask(library.cuDriverGetVersion(ctypes.byref(number)), "cuDriverGetVersion")

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        _ask(library.cuDeviceGetAttribute(ctypes.byref(value), which, device), "cuDeviceGetAttribute")
        return value.value

    cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    sm = 10 * attribute(_SM_MAJOR) + attribute(_SM_MINOR)
    return Gpu(name.value.decode(errors="replace"), sm, bool(attribute(_INTEGRATED)), cuda)


def _ask(code: int, what: str) -> None:
    if code != 0:
        raise HardwareError(
            f"the CUDA driver does not answer: {what} says error {code}; see `edgepose doctor`, and whether "
            "the user may use the GPU (group `video` on a Jetson, `--runtime nvidia` in a container)"
        )
