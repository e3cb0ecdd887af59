"""A strict stand-in for `cuda.bindings.driver`, on the memory of `standin_gpu`; only what edgepose uses.

Every function gives a tuple that begins with a CUresult, as NVIDIA's bindings do. Streams can be recorded:
what is queued meanwhile is done by the graph, each time it is launched.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import host_kernel
from standin_gpu import Gpu


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


OK, INVALID = CUresult.CUDA_SUCCESS, CUresult.CUDA_ERROR_INVALID_VALUE
Answer = tuple[Any, ...]


class _Driver:
    """The functions by their names; the methods' arguments are those of the real ones."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._handles = gpu, iter(range(1000, 10**6))
        self._streams: set[int] = set()
        self._graphs: dict[int, list[Callable[[], None]]] = {}

    def cuInit(self, flags: int) -> Answer:  # noqa: N802
        return (OK if self._gpu.ready() else CUresult.CUDA_ERROR_NO_DEVICE,)

    def cuDeviceGet(self, number: int) -> Answer:  # noqa: N802
        return OK, number

    def cuDevicePrimaryCtxRetain(self, device: int) -> Answer:  # noqa: N802
        return OK, 77

    def cuDevicePrimaryCtxRelease(self, device: int) -> Answer:  # noqa: N802
        return (OK,)

    def cuCtxPushCurrent(self, context: int) -> Answer:  # noqa: N802
        self._gpu.push()
        return (OK,)

    def cuCtxPopCurrent(self) -> Answer:  # noqa: N802
        self._gpu.push(-1)
        return OK, 77

    def cuMemHostAlloc(self, size: int, flags: int) -> Answer:  # noqa: N802
        address = self._gpu.allocate(size, self._gpu.pinned)
        self._gpu.pinned[address].is_mapped = bool(flags & 2)
        return OK, address

    def cuMemHostGetDevicePointer(self, pointer: int, flags: int) -> Answer:  # noqa: N802
        return (OK, pointer) if pointer in self._gpu.mapped() else (INVALID, 0)

    def cuMemAlloc(self, size: int) -> Answer:  # noqa: N802
        address = self._gpu.allocate(size, self._gpu.blocks)
        return (OK, address) if address is not None else (CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0)

    def cuMemFree(self, address: int) -> Answer:  # noqa: N802
        del self._gpu.blocks[address]
        return (OK,)

    def cuMemFreeHost(self, address: int) -> Answer:  # noqa: N802
        del self._gpu.pinned[address]
        return (OK,)

    def cuMemGetInfo(self) -> Answer:  # noqa: N802
        return OK, self._gpu.free(), self._gpu.total

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> Answer:  # noqa: N802
        return self._copied((to, source, size), to, stream)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> Answer:  # noqa: N802
        return self._copied((to, source, size), source, stream)

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> Answer:  # noqa: N802
        if not self._gpu.owns(source, size):
            return (INVALID,)
        return self._copied((to, source, size), to, stream)

    def _copied(self, copy: tuple[int, int, int], device: int, stream: int) -> Answer:
        if not self._gpu.owns(device, copy[2]) or stream not in self._streams:
            return (INVALID,)
        self._gpu.queue(stream, lambda: ctypes.memmove(*copy) and None)
        return (OK,)

    def cuStreamCreate(self, flags: Any) -> Answer:  # noqa: N802
        self._streams.add(made := next(self._handles))
        return OK, made

    def cuStreamDestroy(self, stream: int) -> Answer:  # noqa: N802
        self._streams.remove(stream)
        return (OK,)

    def cuStreamSynchronize(self, stream: int) -> Answer:  # noqa: N802
        return (INVALID if stream in self._gpu.capturing else OK,)

    def cuModuleLoadData(self, image: bytes) -> Answer:  # noqa: N802
        return OK, bytes(image)

    def cuModuleUnload(self, image: bytes) -> Answer:  # noqa: N802
        return (OK,)

    def cuModuleGetFunction(self, image: bytes, name: bytes) -> Answer:  # noqa: N802
        try:
            return OK, host_kernel.function(self._gpu, image, name.decode())
        except host_kernel.Refused:
            return INVALID, None

    def cuLaunchKernel(self, kernel: Any, *rest: Any) -> Answer:  # noqa: N802
        *shape, shared, stream, places, extra = rest
        assert (len(shape), shared, extra) == (6, 0, 0)
        pointers = (ctypes.c_void_p * 5).from_address(places)
        sizes = (8, 8, 8, host_kernel.TASK_BYTES, 8)
        # Read now: the caller's memory goes when the call returns.
        arguments = [ctypes.string_at(at or 0, size) for at, size in zip(pointers, sizes, strict=True)]
        try:
            self._gpu.queue(stream, lambda: kernel(tuple(shape[:3]), tuple(shape[3:]), arguments))
        except host_kernel.Refused:
            return (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> Answer:  # noqa: N802
        self._gpu.capturing[stream] = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Answer:  # noqa: N802
        work = self._gpu.capturing.pop(stream)
        if self._gpu.faults.unrecordable:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        self._graphs[made := next(self._handles)] = work
        return OK, made

    def cuGraphInstantiate(self, graph: int, flags: int) -> Answer:  # noqa: N802
        if self._gpu.faults.no_room_for_graphs:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        self._graphs[made := next(self._handles)] = list(self._graphs[graph])
        return OK, made

    def cuGraphDestroy(self, graph: int) -> Answer:  # noqa: N802
        del self._graphs[graph]
        return (OK,)

    def cuGraphExecDestroy(self, graph: int) -> Answer:  # noqa: N802
        return self.cuGraphDestroy(graph)

    def cuGraphLaunch(self, graph: int, stream: int) -> Answer:  # noqa: N802
        self._gpu.replays += 1
        for work in self._graphs[graph]:
            work()
        return (OK,)


_ANYWHERE = frozenset(
    {"cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"}
    | {"cuCtxPushCurrent", "cuCtxPopCurrent"}
)


def load(gpu: Gpu) -> ModuleType:
    """The module, working on `gpu`; what needs a context fails without one, and everything on a lost GPU."""
    module, driver = ModuleType("cuda.bindings.driver"), _Driver(gpu)

    def checked(function: Any) -> Any:
        def inner(*args: Any) -> Answer:
            if not gpu.has_context():
                return (CUresult.CUDA_ERROR_INVALID_CONTEXT, 0)
            return (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, 0) if gpu.faults.lost else function(*args)

        return inner

    for name in (name for name in dir(driver) if name.startswith("cu")):
        function = getattr(driver, name)
        setattr(module, name, function if name in _ANYWHERE else checked(function))
    module.__dict__.update(
        CUresult=CUresult,
        CU_MEMHOSTALLOC_DEVICEMAP=2,
        CUstream_flags=SimpleNamespace(CU_STREAM_NON_BLOCKING=1),
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
    )
    module._driver = driver  # type: ignore[attr-defined]
    return module
