"""A GPU of plain memory with book-keeping: what the stand-ins for CUDA and TensorRT both look at."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass
class Faults:
    """What is to go wrong; tests set it."""

    no_driver: bool = False
    lost: bool = False  # every call fails from now on, as after an illegal access
    strong_int8_fails: bool = False  # as NVIDIA/TensorRT issue 4832 reports of sm_87 with 10.16.2
    wrong_precisions: set[str] = field(default_factory=set)  # "int8", "fp16": engines that answer nonsense
    unrecordable: bool = False  # a stream cannot be recorded into a graph
    no_room_for_graphs: bool = False  # a recorded graph finds no memory
    skips_tactics: bool = False  # a builder that finds too little memory says so in warnings alone
    unbuildable: set[str] = field(default_factory=set)  # precisions no engine can be built of


@dataclass
class Gpu:
    """Device 0. Fresh memory is full of 0xCB, as no memory is zero by itself."""

    sm: int = 87
    total: int = 1024 * MIB
    integrated: bool = True
    dla_cores: int = 0
    faults: Faults = field(default_factory=Faults)
    blocks: dict[int, Any] = field(default_factory=dict)  # address -> ctypes array, on the device
    pinned: dict[int, Any] = field(default_factory=dict)  # address -> ctypes array, of the host
    depth: threading.local = field(default_factory=threading.local)
    capturing: dict[int, list[Callable[[], None]]] = field(default_factory=dict)  # by stream
    replays: int = 0  # of graphs
    dla_used: set[int] = field(default_factory=set)  # cores on which engines were loaded

    def allocate(self, size: int, where: dict[int, Any]) -> int | None:
        """The address of `size` new bytes, or None when the device has not so many left."""
        if where is self.blocks and size > self.free():
            return None
        block = (ctypes.c_uint8 * size)()
        ctypes.memset(block, 0xCB, size)
        where[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self) -> int:
        """Bytes of the device that are not taken."""
        return self.total - sum(map(len, self.blocks.values()))

    def owns(self, address: int, size: int) -> bool:
        """Whether all of it lies in one block that the device may touch."""
        blocks = {**self.blocks, **self.mapped()}
        return any(start <= address and address + size <= start + len(b) for start, b in blocks.items())

    def mapped(self) -> dict[int, Any]:
        """Page-locked memory that was asked for with the device in mind."""
        return {start: block for start, block in self.pinned.items() if getattr(block, "is_mapped", False)}

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        """Done at once, or part of the graph that the stream is being recorded into."""
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            work()

    def ready(self) -> bool:
        """What cuInit says."""
        return not self.faults.no_driver

    def has_context(self) -> bool:
        """Whether this thread has a context."""
        return getattr(self.depth, "value", 0) > 0

    def push(self, step: int = 1) -> None:
        """One context more, or one less, on this thread's stack."""
        self.depth.value = getattr(self.depth, "value", 0) + step
