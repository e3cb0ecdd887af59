"""CUDA through NVIDIA's cuda-python: binary wheels, nothing to compile on the board."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgepose.runtime.errors import require
from edgepose.runtime.trt.cuda import (
    THREADS,
    Buffer,
    Bytes,
    DeviceLost,
    NotLoaded,
    NotRecorded,
    OutOfMemory,
)


class CudaPython:
    """The primary context of GPU 0, which TensorRT and everything else in the process share."""

    def __init__(self) -> None:
        self._driver: Any = require("cuda.bindings.driver")
        self._streams: dict[int, Any] = {}
        self._modules: list[Any] = []
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *answers = getattr(self._driver, name)(*arguments)
        results = self._driver.CUresult
        if code == results.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfMemory(f"the GPU's memory is exhausted ({name})")
        if code != results.CUDA_SUCCESS:
            raise DeviceLost(f"the GPU does not answer as it should ({name}: {code.name})")
        return answers[0] if len(answers) == 1 else tuple(answers)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, size: int, mapped: bool) -> Buffer:
        flags = self._driver.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0
        pointer = int(self._call("cuMemHostAlloc", size, flags))
        host: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        if mapped:
            return Buffer(host, int(self._call("cuMemHostGetDevicePointer", pointer, 0)), mapped, pointer)
        try:
            return Buffer(host, int(self._call("cuMemAlloc", size)), mapped, pointer)
        except OutOfMemory:
            self._call("cuMemFreeHost", pointer)
            raise

    def free(self, buffer: Buffer) -> None:
        if not buffer.mapped:
            self._call("cuMemFree", buffer.address)
        self._call("cuMemFreeHost", buffer.owner)

    def stream(self) -> int:
        made = self._call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._streams[int(made)] = made
        return int(made)

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            source = buffer.host.ctypes.data
            self._call("cuMemcpyHtoDAsync", buffer.address, source, size, self._streams[stream])

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            target = buffer.host.ctypes.data
            self._call("cuMemcpyDtoHAsync", target, buffer.address, size, self._streams[stream])

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, size, self._streams[stream])

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", self._streams[stream])

    def kernel(self, cubin: bytes, name: str) -> Any:
        try:
            module = self._call("cuModuleLoadData", cubin)
            self._modules.append(module)
            return self._call("cuModuleGetFunction", module, name.encode())
        except DeviceLost as error:
            raise NotLoaded(f"the kernel {name} cannot be loaded ({error})") from error

    def launch(
        self, kernel: Any, blocks: tuple[int, int, int], arguments: Sequence[int | bytes], stream: int
    ) -> None:
        given = [
            ctypes.c_void_p(a) if isinstance(a, int) else ctypes.create_string_buffer(a, len(a))
            for a in arguments
        ]
        places = (ctypes.c_void_p * len(given))(*(ctypes.addressof(value) for value in given))
        shape = (*blocks, *THREADS, 0)  # no shared memory beyond what the code declares
        self._call("cuLaunchKernel", kernel, *shape, self._streams[stream], ctypes.addressof(places), 0)

    def record(self, stream: int, work: Callable[[], None]) -> Any | None:
        # Thread-local: what other threads do with CUDA meanwhile does not spoil it.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._streams[stream], mode)
        problem: Exception | None = None
        try:
            work()
        except Exception as error:  # the stream must leave its capture, whatever went wrong
            problem = error
        try:
            recorded = self._call("cuStreamEndCapture", self._streams[stream])
            try:
                if problem is None:
                    return self._call("cuGraphInstantiate", recorded, 0)
            finally:
                self._call("cuGraphDestroy", recorded)
        except (DeviceLost, OutOfMemory) as error:
            problem = problem or error
        raise NotRecorded(f"the engine cannot be made a CUDA graph ({problem})") from problem

    def replay(self, graph: Any, stream: int) -> None:
        self._call("cuGraphLaunch", graph, self._streams[stream])

    def forget(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def close(self) -> None:
        """Give back the streams, the code and the hold on the context."""
        with self.current():
            for module in self._modules:
                self._call("cuModuleUnload", module)
            self._modules.clear()
            for made in self._streams.values():
                self._call("cuStreamDestroy", made)
            self._streams.clear()
        self._call("cuDevicePrimaryCtxRelease", self._device)
