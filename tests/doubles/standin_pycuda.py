"""A strict stand-in for `pycuda.driver`, on the memory of `standin_gpu`; only what edgepose uses.

The names, defaults and exceptions are those of pycuda 2026.1; `test_real_cuda.py` runs the same checks on
the real one where it is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import host_kernel
import numpy as np
from standin_gpu import Gpu


class Error(Exception):
    pass


class LogicError(Error):
    pass


class MemoryError(Error):  # pycuda's own name
    pass


def _require_alive(gpu: Gpu) -> None:
    if not gpu.has_context():
        raise LogicError("call failed: invalid device context")
    if gpu.faults.lost:
        raise LogicError("call failed: an illegal memory access was encountered")


class _Allocation:
    """Page-locked memory, the base of the array that pycuda hands out."""

    def __init__(self, gpu: Gpu, size: int, mapped: bool) -> None:
        self._gpu, self._mapped = gpu, mapped
        self._address = gpu.allocate(size, gpu.pinned)
        block = gpu.pinned[self._address]
        block.is_mapped = mapped
        self.__array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (self._address, False),
            "version": 3,
        }
        self._block = block

    def get_device_pointer(self) -> int:
        if not self._mapped:
            raise LogicError("cuMemHostGetDevicePointer failed: invalid argument")
        return int(self._address)

    def free(self) -> None:
        _require_alive(self._gpu)
        del self._gpu.pinned[self._address]


class _Device:
    """Memory of the device; `int()` is its address."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        address = gpu.allocate(size, gpu.blocks)
        if address is None:
            raise MemoryError("cuMemAlloc failed: out of memory")
        self._gpu, self._address = gpu, address

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        _require_alive(self._gpu)
        del self._gpu.blocks[self._address]


class _Context:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def push(self) -> None:
        self._gpu.push()

    def pop(self) -> None:
        if not self._gpu.has_context():
            raise LogicError("cuCtxPopCurrent failed: invalid device context")
        self._gpu.push(-1)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except host_kernel.Refused as error:
        raise LogicError(f"call failed: {error}") from error


def _launched(kernel: Any, args: tuple[Any, ...], block: Any, grid: Any) -> None:
    """As pycuda packs them: numbers by their type, arrays that are not of the device by their bytes."""
    if not all(isinstance(arg, np.number | np.ndarray) for arg in args):
        raise TypeError("invalid type on parameter: a NumPy number or an array is wanted")
    with _refusals():
        kernel(grid, block, [arg.tobytes() for arg in args])


def load(gpu: Gpu) -> ModuleType:
    """The module, working on `gpu`."""
    module, streams = ModuleType("pycuda.driver"), iter(range(1000, 10**6))

    def checked(function: Any) -> Any:
        def inner(*args: Any, **kwargs: Any) -> Any:
            _require_alive(gpu)
            return function(*args, **kwargs)

        return inner

    def init() -> None:
        if not gpu.ready():
            raise Error("cuInit failed: no CUDA-capable device is detected")

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        if mem_flags and not gpu.integrated:
            raise LogicError("mapped memory is for integrated devices in these tests")
        made = _Allocation(gpu, int(shape) * np.dtype(dtype).itemsize, bool(mem_flags))
        return np.asarray(made)

    def module_from_buffer(image: bytes) -> Any:
        def get_function(name: str) -> Any:
            with _refusals():
                kernel = host_kernel.function(gpu, bytes(image), name)
            return checked(lambda *args, block, grid, stream: _launched(kernel, args, block, grid))

        return SimpleNamespace(get_function=checked(get_function))

    def copied(target: int, source: int, size: int, device: int) -> None:
        if not gpu.owns(device, size):
            raise LogicError("cuMemcpy failed: invalid argument")
        ctypes.memmove(target, source, size)

    def to_device(target: Any, source: Any, stream: Any) -> None:
        copied(int(target), source.ctypes.data, source.nbytes, int(target))

    def to_host(target: Any, source: Any, stream: Any) -> None:
        copied(target.ctypes.data, int(source), target.nbytes, int(source))

    def on_device(target: int, source: int, size: int, stream: Any) -> None:
        if not gpu.owns(int(source), size):
            raise LogicError("cuMemcpy failed: invalid argument")
        copied(int(target), int(source), size, int(target))

    def stream() -> Any:
        return SimpleNamespace(handle=next(streams), synchronize=checked(lambda: None))

    module.__dict__.update(
        Error=Error,
        LogicError=LogicError,
        MemoryError=MemoryError,
        init=init,
        Device=lambda number: SimpleNamespace(retain_primary_context=lambda: _Context(gpu)),
        host_alloc_flags=SimpleNamespace(DEVICEMAP=2),
        pagelocked_empty=checked(pagelocked_empty),
        mem_alloc=checked(lambda size: _Device(gpu, int(size))),
        memcpy_htod_async=checked(to_device),
        memcpy_dtoh_async=checked(to_host),
        memcpy_dtod_async=checked(on_device),
        mem_get_info=checked(lambda: (gpu.free(), gpu.total)),
        Stream=checked(stream),
        module_from_buffer=checked(module_from_buffer),
    )
    return module
