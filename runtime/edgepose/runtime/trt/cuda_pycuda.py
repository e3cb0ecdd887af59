"""CUDA through pycuda, but not `pycuda.autoinit`: its context belongs to the thread that imports it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgepose.runtime.errors import require
from edgepose.runtime.trt.cuda import THREADS, Buffer, DeviceLost, NotLoaded, OutOfMemory


class PyCuda:
    """The primary context of GPU 0, which TensorRT and everything else in the process share."""

    def __init__(self) -> None:
        self._driver: Any = require("pycuda.driver")
        self._streams: dict[int, Any] = {}
        self._modules: list[Any] = []
        with self._translated():
            self._driver.init()
            self._context: Any = _primary_context(self._driver)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._driver.MemoryError as error:
            raise OutOfMemory(f"the GPU's memory is exhausted ({error})") from error
        except self._driver.Error as error:
            raise DeviceLost(f"the GPU does not answer as it should ({error})") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._translated():
            self._context.push()
        try:
            yield
        finally:
            with self._translated():
                self._context.pop()

    def allocate(self, size: int, mapped: bool) -> Buffer:
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        with self._translated():
            host = self._driver.pagelocked_empty(size, np.uint8, mem_flags=flags)
            if mapped:
                return Buffer(host, int(host.base.get_device_pointer()), mapped)
            try:
                owner = self._driver.mem_alloc(size)
            except self._driver.MemoryError:
                host.base.free()
                raise
        return Buffer(host, int(owner), mapped, owner)

    def free(self, buffer: Buffer) -> None:
        with self._translated():
            if buffer.owner is not None:
                buffer.owner.free()
            buffer.host.base.free()  # type: ignore[union-attr]  # pycuda's own allocation object

    def stream(self) -> int:
        with self._translated():
            made = self._driver.Stream()
        self._streams[int(made.handle)] = made
        return int(made.handle)

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            with self._translated():
                self._driver.memcpy_htod_async(buffer.address, buffer.host[:size], self._streams[stream])

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        if not buffer.mapped:
            with self._translated():
                self._driver.memcpy_dtoh_async(buffer.host[:size], buffer.address, self._streams[stream])

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        with self._translated():
            self._driver.memcpy_dtod_async(target, source, size, self._streams[stream])

    def wait(self, stream: int) -> None:
        with self._translated():
            self._streams[stream].synchronize()

    def kernel(self, cubin: bytes, name: str) -> Any:
        try:
            with self._translated():
                module = self._driver.module_from_buffer(cubin)
                self._modules.append(module)
                return module.get_function(name)
        except DeviceLost as error:
            raise NotLoaded(f"the kernel {name} cannot be loaded ({error})") from error

    def launch(
        self, kernel: Any, blocks: tuple[int, int, int], arguments: Sequence[int | bytes], stream: int
    ) -> None:
        # An array that is not of the device is passed as its bytes, a NumPy number as itself.
        given = [np.uintp(a) if isinstance(a, int) else np.frombuffer(a, np.uint8) for a in arguments]
        with self._translated():
            kernel(*given, block=THREADS, grid=blocks, stream=self._streams[stream])

    def record(self, stream: int, work: Callable[[], None]) -> Any | None:
        return None  # pycuda 2026.1 has no stream capture

    def replay(self, graph: Any, stream: int) -> None:
        raise AssertionError("pycuda records no graphs")

    def forget(self, graph: Any) -> None:
        raise AssertionError("pycuda records no graphs")

    def memory(self) -> tuple[int, int]:
        with self._translated():
            free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        """Streams and code go while the context is there; the context stays for the process."""
        with self.current():
            self._streams.clear()
            self._modules.clear()


@functools.cache
def _primary_context(driver: Any) -> Any:
    """Held once for the whole process: pycuda's `detach` would leave it pushed on this thread."""
    return driver.Device(0).retain_primary_context()
