"""Keeps a source going: a lost one is opened again with growing pauses, a frozen one counts as lost."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from edgepose.runtime.stream.pace import Backoff
from edgepose.runtime.stream.source import Frame, Source, SourceEndedError, SourceLostError

log = logging.getLogger(__name__)
_POLL_S = 0.1  # how soon a stop is noticed
_AGAIN_S = 0.3  # from opening to opening at least: a file may be a single picture; sooner than silence is
_STILL_S = 2.0  # a picture that stands longer is delivered again: who comes meanwhile waits for one
_GAPS = 5  # between pictures, remembered to know a slow source from a frozen one
# Without a picture until `on_silence` is called, and again: a file that begins again takes less.
_SILENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a source may be silent before it counts as lost, in seconds."""

    first_s: float = 10.0  # until its first frame after opening
    next_s: float = 2.0  # between two frames: a camera that froze sends neither error nor end

    def after(self, gaps_s: Iterable[float]) -> float:
        """The limit between two frames when the last ones came so far apart: a slow source gets more time."""
        return max(self.next_s, min(self.first_s, 3 * max(gaps_s, default=0.0)))


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
        self._gaps_s: deque[float] = deque(maxlen=_GAPS)  # kept when the source is opened again
        self._seen = False  # any frame since the start
        self._shown_s = 0.0  # when the listener was called last, monotonic
        self.losses = 0

    def run(self) -> None:
        """Deliver frames until `stop` or the end. Raises SourceLostError for a loss that is not mended."""
        while not self._stop.is_set():
            opened_s = time.monotonic()
            try:
                self._read_until_gone()
            except SourceEndedError:
                if self._once:
                    return
                self._stop.wait(opened_s + _AGAIN_S - time.monotonic())
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
        newest, last_s = None, time.monotonic()
        while not self._stop.is_set():
            frame = self._next(source, newest is None)
            if frame is not None:
                self._note_gap(frame, None if newest is None else time.monotonic() - last_s)
                newest, last_s = frame, time.monotonic()
                self._deliver(frame)
            else:
                self._bear(newest, time.monotonic() - last_s)

    def _note_gap(self, frame: Frame, gap_s: float | None) -> None:
        """Before the first frame there is none but what the source says of itself."""
        if gap_s is not None:
            self._gaps_s.append(gap_s)
        elif frame.fps:
            self._gaps_s.append(1 / frame.fps)

    def _bear(self, newest: Frame | None, silent_s: float) -> None:
        """No frame now. Raises SourceLostError when the patience is over."""
        limit_s = self._patience.first_s if newest is None else self._patience.after(self._gaps_s)
        if silent_s > limit_s:
            if newest is not None:
                self._gaps_s.append(silent_s)  # it may be slow and not frozen: next time it gets longer
            raise SourceLostError(f"no picture for {limit_s:g} s")
        if newest is None:
            if self._seen:
                self._tell_silence()
        elif not self._once and time.monotonic() - self._shown_s >= _STILL_S:
            self._deliver(replace(newest, clock_ns=time.monotonic_ns()))

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
