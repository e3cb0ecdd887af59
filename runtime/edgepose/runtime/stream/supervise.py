"""Keeps a source going: a lost one is opened again with growing pauses, a frozen one counts as lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgepose.runtime.stream.pace import Backoff
from edgepose.runtime.stream.source import Frame, Source, SourceEndedError, SourceLostError

log = logging.getLogger(__name__)
_POLL_S = 0.1  # how soon a stop is noticed
_SILENCE_S = (
    0.5  # without a picture until `on_silence` is called, and again: a file that begins again takes less
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a source may be silent before it counts as lost, in seconds."""

    first_s: float = 10.0  # until its first frame after opening
    next_s: float = 2.0  # between two frames: a camera that froze sends neither error nor end


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told. All are called in the supervisor's thread."""

    on_frame: Callable[[Frame], None]
    on_silence: Callable[[], None]  # about twice a second while the source is lost


class Supervisor:
    """Reads a source until it is told to stop.

    Before the first frame nothing is retried: a camera that is not there at the start is the user's to mend.
    SourceLostError then leaves `run`. At its end a source is opened again. With `once` nothing is: `run`
    returns at the end, and a loss leaves it.
    """

    def __init__(
        self, open_source: Callable[[], Source], listener: Listener, patience: Patience, once: bool = False
    ) -> None:
        self._open_source = open_source
        self._listener = listener
        self._patience = patience
        self._once = once
        self._backoff = Backoff()
        self._stop = threading.Event()
        self._seen = False  # any frame since the start
        self._shown_s = 0.0  # when the listener was called last, monotonic
        self.losses = 0

    def run(self) -> None:
        """Deliver frames until `stop` or the end. Raises SourceLostError for a loss that is not mended."""
        while not self._stop.is_set():
            try:
                self._read_until_gone()
            except SourceEndedError:
                if self._once:
                    return
            except SourceLostError as lost:
                if self._once or not self._seen:
                    raise
                self._wait(lost)

    def stop(self) -> None:
        """From any thread: `run` returns soon."""
        self._stop.set()

    def _read_until_gone(self) -> None:
        source = self._open_source()
        try:
            self._read(source)
        finally:
            source.close()

    def _read(self, source: Source) -> None:
        fresh, last_s = True, time.monotonic()
        while not self._stop.is_set():
            frame = self._next(source, fresh)
            if frame is not None:
                fresh, last_s = False, time.monotonic()
                self._deliver(frame)
                continue
            limit_s = self._patience.first_s if fresh else self._patience.next_s
            if time.monotonic() - last_s > limit_s:
                raise SourceLostError(f"no picture for {limit_s:g} s")
            if fresh and self._seen:
                self._tell_silence()

    def _next(self, source: Source, fresh: bool) -> Frame | None:
        try:
            return source.read(_POLL_S)
        except SourceEndedError as end:
            if fresh:  # opening it again at once would spin
                raise SourceLostError(f"it ended before its first picture ({end})") from end
            raise

    def _deliver(self, frame: Frame) -> None:
        self._seen = True
        self._backoff.reset()
        self._listener.on_frame(frame)
        self._shown_s = time.monotonic()

    def _wait(self, lost: SourceLostError) -> None:
        self.losses += 1
        wait_s = self._backoff.next_s()
        log.warning("source lost (%s); trying again in %.2g s", lost, wait_s)
        end_s = time.monotonic() + wait_s
        while not self._stop.is_set() and (left_s := end_s - time.monotonic()) > 0:
            self._tell_silence()
            self._stop.wait(min(left_s, _POLL_S))

    def _tell_silence(self) -> None:
        if time.monotonic() - self._shown_s >= _SILENCE_S:
            self._shown_s = time.monotonic()
            self._listener.on_silence()
