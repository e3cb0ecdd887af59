"""The little of CUDA that running an engine takes, as one protocol behind which pycuda or cuda-python."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgepose.runtime.errors import EdgeposeError, HardwareError, require

Bytes = npt.NDArray[np.uint8]
THREADS = (16, 16, 1)  # of a block, in every launch: what `prepare.cu` is written for


class OutOfMemory(HardwareError):
    """The GPU's memory does not hold what was asked for."""


class DeviceLost(HardwareError):
    """The GPU or its context answers no more; nothing on it can be trusted or used again."""


class NotLoaded(EdgeposeError):
    """Compiled code that this GPU does not take, such as that for another one."""


class NotRecorded(EdgeposeError):
    """The work cannot be made a CUDA graph; done step by step it is the same work."""


@dataclass(slots=True, eq=False)
class Buffer:
    """Page-locked memory and its counterpart on the device: copied between, or one and the same (mapped)."""

    host: Bytes  # (size,) page-locked
    address: int  # on the device
    mapped: bool  # one memory under both names: nothing is copied
    owner: Any = None  # what the library frees


class Cuda(Protocol):
    """One device's primary context. Everything but `close` is called inside `with cuda.current()`.

    All raise OutOfMemory or DeviceLost, and MissingLibrary when the library is not there.
    """

    def current(self) -> AbstractContextManager[None]:
        """The context is this thread's inside the block, and what was before it afterwards."""
        ...

    def allocate(self, size: int, mapped: bool) -> Buffer: ...

    def free(self, buffer: Buffer) -> None: ...

    def stream(self) -> int:
        """A handle of a new stream; it goes with `close`."""
        ...

    def upload(self, buffer: Buffer, size: int, stream: int) -> None:
        """The first `size` bytes of the host's side, queued for the device's."""
        ...

    def download(self, buffer: Buffer, size: int, stream: int) -> None:
        """The first `size` bytes of the device's side, queued for the host's."""
        ...

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Bytes from one address of the device to another, queued."""
        ...

    def wait(self, stream: int) -> None:
        """Until all that was queued is done."""
        ...

    def kernel(self, cubin: bytes, name: str) -> Any:
        """A function of compiled code, which stays loaded until `close`.

        Raises NotLoaded instead of DeviceLost.
        """
        ...

    def launch(
        self, kernel: Any, blocks: tuple[int, int, int], arguments: Sequence[int | bytes], stream: int
    ) -> None:
        """The kernel in `blocks` of THREADS, queued. Arguments are addresses, or structs by value."""
        ...

    def record(self, stream: int, work: Callable[[], None]) -> Any | None:
        """What `work` queues, as one graph instead of done; None where the library has no graphs.

        Raises NotRecorded when something in it cannot be part of a graph.
        """
        ...

    def replay(self, graph: Any, stream: int) -> None:
        """All of a graph, queued in one call."""
        ...

    def forget(self, graph: Any) -> None:
        """Free a graph."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        ...

    def close(self) -> None: ...


# Each is reached by one module of ours, and is there when one of its own can be imported.
LIBRARIES = {
    "pycuda": "edgepose.runtime.trt.cuda_pycuda:PyCuda",
    "cuda-python": "edgepose.runtime.trt.cuda_python:CudaPython",
}

# What must be importable for each.
DRIVERS = {"pycuda": "pycuda.driver", "cuda-python": "cuda.bindings.driver"}


def any_library() -> str:
    """The first of LIBRARIES that is installed; without any the first, whose absence `open_cuda` tells."""
    for library, driver in DRIVERS.items():
        with suppress(ImportError):
            importlib.import_module(driver)
            return library
    return next(iter(DRIVERS))


def require_library(library: str) -> None:
    """Raises MissingLibrary when it is not there, EdgeposeError when it is none of LIBRARIES."""
    if library not in LIBRARIES:
        raise EdgeposeError(f"CUDA library {library!r}: choose one of {', '.join(LIBRARIES)}")
    require(DRIVERS[library])


def open_cuda(library: str = "pycuda") -> Cuda:
    """The first GPU through one of LIBRARIES. The driver must have been asked (`driver.require_gpu`)."""
    require_library(library)
    module, _, name = LIBRARIES[library].partition(":")
    opened: Cuda = getattr(importlib.import_module(module), name)()
    return opened
