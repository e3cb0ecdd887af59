"""What a stream reads from: frames with their capture time, and the two ways in which they end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream.pace import Metronome


class SourceLostError(Exception):
    """The source gives no more frames but may come back; the text says why."""


class SourceEndedError(Exception):
    """The source has come to its proper end."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture (H, W, 3) BGR with its capture time on the monotonic clock."""

    image: U8
    clock_ns: int
    index: int | None = None  # number in the source; None where it has none
    fps: float = 0.0  # of the source, nominal; 0 when it does not say


class Source(Protocol):
    """An opened source. Owned by one thread; `close` frees it."""

    def read(self, timeout_s: float) -> Frame | None:
        """The newest frame, or None when none came in time. Raises SourceLostError or SourceEndedError."""
        ...

    def close(self) -> None: ...


class Feeder:
    """Frames made by a function, delivered in real time. Frames whose time has passed are never made."""

    def __init__(self, name: str, frame: Callable[[int], U8], fps: float, count: int | None = None) -> None:
        self._name = name
        self._fps = fps
        self._frame = frame
        self._count = count  # None: endless
        self._index = 0
        self._metronome: Metronome | None = None
        self._ready: U8 | None = None  # made ahead, so that the making is no part of the latency

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame once it is due. Raises SourceEndedError after the last one."""
        if self._count is not None and self._index >= self._count:
            raise SourceEndedError(f"{self._name}: all {self._count} frames were read")
        if self._ready is None:
            self._ready = self._frame(self._index)
        if self._metronome is None:
            self._metronome = Metronome(self._fps, time.monotonic_ns())
        wait_s = (self._metronome.due_ns(self._index) - time.monotonic_ns()) / 1e9
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return None
        time.sleep(max(0.0, wait_s))
        return self._deliver(self._metronome)

    def _deliver(self, metronome: Metronome) -> Frame | None:
        image, index = self._ready, self._index
        now_ns = time.monotonic_ns()
        self._ready, self._index = None, metronome.next_index(index, now_ns)
        return None if image is None else Frame(image, now_ns, index, self._fps)

    def close(self) -> None:
        """Nothing is held."""
