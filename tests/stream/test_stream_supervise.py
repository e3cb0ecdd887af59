"""Keeping a source going, with sources that are told how to behave."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import capture, supervise
from edgepose.runtime.stream.grammar import File
from edgepose.runtime.stream.source import Feeder, Frame, SourceEndedError, SourceLostError
from edgepose.runtime.stream.supervise import Listener, Patience, Supervisor

PICTURE = np.zeros((4, 4, 3), np.uint8)
SHORT = Patience(first_s=0.3, next_s=0.2)


class Scripted:
    """Gives `frames` frames and then does what `after` does."""

    def __init__(self, frames: int, after: Callable[[], None]) -> None:
        self._left, self._after = frames, after
        self.is_closed = False

    def read(self, timeout_s: float) -> Frame | None:
        if self._left:
            self._left -= 1
            return Frame(PICTURE, time.monotonic_ns())
        self._after()
        time.sleep(min(timeout_s, 0.02))
        return None

    def close(self) -> None:
        self.is_closed = True


def lost() -> None:
    raise SourceLostError("cable pulled")


def ended() -> None:
    raise SourceEndedError("last frame")


def frozen() -> None:
    """Neither frames nor errors."""


class Run:
    """A supervisor over scripted sources, stopped when the script has been played."""

    def __init__(
        self,
        script: list[Scripted | SourceLostError],
        once: bool = False,
        patience: Patience = SHORT,
    ) -> None:
        self.opened_s: list[float] = []
        self.frames = self.silences = 0
        self.clocks_ns: list[int] = []
        self._script = list(script)
        self.supervisor = Supervisor(self._open, Listener(self._frame, self._silence), patience, once)

    def _open(self) -> Scripted:
        self.opened_s.append(time.monotonic())
        if not self._script:
            self.supervisor.stop()
            return Scripted(0, frozen)
        step = self._script.pop(0)
        if isinstance(step, SourceLostError):
            raise step
        return step

    def _frame(self, frame: Frame) -> None:
        self.frames += 1
        self.clocks_ns.append(frame.clock_ns)

    def _silence(self) -> None:
        self.silences += 1


def test_a_lost_source_is_opened_again_with_growing_pauses() -> None:
    refused = SourceLostError("connection refused")
    first = Scripted(3, lost)
    run = Run([first, refused, refused, Scripted(2, lost)])
    run.supervisor.run()
    assert run.frames == 5
    assert run.supervisor.losses == 4
    pauses = np.diff(run.opened_s)
    np.testing.assert_allclose(pauses, [0.25, 0.5, 1.0, 0.25], atol=0.15)  # frames start the back-off again
    assert run.silences >= 2  # somebody keeps the viewers busy meanwhile
    assert first.is_closed


def test_a_camera_that_is_not_there_at_the_start_is_not_retried() -> None:
    run = Run([SourceLostError("no such device")])
    with pytest.raises(SourceLostError, match="no such device"):
        run.supervisor.run()
    assert run.silences == 0


def test_a_source_without_a_first_picture_gives_up_in_time() -> None:
    source = Scripted(0, frozen)
    with pytest.raises(SourceLostError, match=r"no picture for 0\.3 s"):
        Run([source]).supervisor.run()
    assert source.is_closed


def test_a_frozen_source_counts_as_lost() -> None:
    run = Run([Scripted(2, frozen), Scripted(1, lost)])
    run.supervisor.run()
    assert (run.frames, run.supervisor.losses) == (3, 2)


def test_a_file_begins_again_at_its_end_or_stops_with_once() -> None:
    looping = Run([Scripted(2, ended), Scripted(2, ended)])
    looping.supervisor.run()
    assert (looping.frames, looping.supervisor.losses) == (4, 0)
    assert min(np.diff(looping.opened_s)) >= 0.3  # a picture as a file does not keep a core busy
    once = Run([Scripted(2, ended), Scripted(2, ended)], once=True)
    once.supervisor.run()
    assert once.frames == 2


def test_a_loss_is_the_end_with_once() -> None:
    run = Run([Scripted(2, lost), Scripted(2, ended)], once=True)
    with pytest.raises(SourceLostError, match="cable pulled"):
        run.supervisor.run()
    assert (run.frames, len(run.opened_s), run.supervisor.losses) == (2, 1, 0)


def test_a_still_part_of_a_file_is_played_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides: a file of variable rate has no frame where nothing changes."""
    minutes = itertools.count(step=60)
    clock = SimpleNamespace(monotonic=lambda: next(minutes), monotonic_ns=lambda: next(minutes) * 10**9)
    monkeypatch.setattr(supervise, "time", clock)
    still = iter([frozen, frozen, ended])
    source = Scripted(2, lambda: next(still)())
    run = Run([source], patience=capture.PATIENCE[File])
    run.supervisor.run()
    assert (run.frames, run.supervisor.losses) == (2 + 2, 0)


def test_a_still_picture_is_delivered_again_for_those_who_come_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a picture and its message the server has no answer for them."""
    monkeypatch.setattr(supervise, "_STILL_S", 0.2)
    run = Run([Scripted(2, frozen)], patience=capture.PATIENCE[File])
    threading.Timer(1.1, run.supervisor.stop).start()
    run.supervisor.run()
    assert 2 + 2 <= run.frames <= 2 + 5
    assert np.diff(run.clocks_ns[1:]).min() >= 0.19e9  # each with its own time
    assert (run.silences, run.supervisor.losses) == (0, 0)


class Slow:
    """A camera with a picture in `gap_s`, whose caps may say another rate."""

    def __init__(self, gap_s: float, fps: float = 0.0) -> None:
        self._gap_s, self._fps, self._due_s = gap_s, fps, time.monotonic()

    def read(self, timeout_s: float) -> Frame | None:
        left_s = self._due_s - time.monotonic()
        if left_s > timeout_s:
            time.sleep(timeout_s)
            return None
        time.sleep(max(0.0, left_s))
        self._due_s += self._gap_s
        return Frame(PICTURE, time.monotonic_ns(), fps=self._fps)

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(("fps", "losses"), [(2.5, 0), (30.0, 1), (0.0, 1)])
def test_a_slow_source_is_not_taken_for_a_frozen_one(fps: float, losses: int) -> None:
    """A picture in 0.4 s, with a patience of 0.2 s: where its caps lie, one loss teaches it."""
    seen: list[Frame] = []
    patience = Patience(first_s=1.0, next_s=0.2)
    listener = Listener(seen.append, lambda: None)
    supervisor = Supervisor(lambda: Slow(0.4, fps), listener, patience)
    threading.Timer(2.2, supervisor.stop).start()
    supervisor.run()
    assert supervisor.losses == losses
    assert len(seen) >= 4


def test_more_patience_than_for_the_first_picture_is_never_learnt() -> None:
    patience = Patience(first_s=10, next_s=2)
    assert [patience.after(gaps_s) for gaps_s in ([], [0.04, 0.1], [0.04, 1.5], [5.0])] == [2, 2, 4.5, 10]


def test_a_file_without_pictures_is_no_endless_loop() -> None:
    with pytest.raises(SourceLostError, match="before its first picture"):
        Run([Scripted(0, ended)]).supervisor.run()


def test_stopping_is_noticed_while_it_waits() -> None:
    run = Run([Scripted(1, lost), *[SourceLostError("still gone")] * 50])
    threading.Timer(1.2, run.supervisor.stop).start()
    start_s = time.monotonic()
    run.supervisor.run()
    assert time.monotonic() - start_s < 1.6


def test_a_feeder_keeps_real_time_and_leaves_out_frames_when_making_them_is_slow() -> None:
    made: list[int] = []

    def slow(index: int) -> U8:
        made.append(index)
        time.sleep(0.05)
        return PICTURE

    feeder = Feeder("slow", slow, fps=50, count=40)
    frames, start_s = [], time.monotonic()
    with contextlib.suppress(SourceEndedError):
        while time.monotonic() - start_s < 5:
            frame = feeder.read(0.1)
            if frame is not None:
                frames.append(frame)
    assert 0.7 < time.monotonic() - start_s < 1.2  # 40 frames at 50/s, though making all would take 2 s
    indices = [frame.index or 0 for frame in frames]
    assert indices == sorted(set(indices)) == made
    assert 10 <= len(frames) <= 20
