"""What breaks or hangs inside a stream: it ends with a sentence, or costs what is broken alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from stream_standins import HANGING, feeder, knowing, number_of, settings, truth

from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import encoder, session
from edgepose.runtime.stream.client import read_rtsp
from edgepose.runtime.stream.encoder import Encoder
from edgepose.runtime.stream.pace import Answers
from edgepose.runtime.stream.session import Stream

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")


def test_what_breaks_in_a_thread_is_raised_by_wait() -> None:
    def broken(_image: U8) -> Poses:
        raise EdgeposeError("the network gave up")

    opened = lambda: contextlib.nullcontext(broken)  # noqa: E731
    with pytest.raises(EdgeposeError, match="gave up"), Stream(settings(), feeder(), opened) as stream:
        stream.wait(5)


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_a_pose_that_is_no_numbers_costs_its_person_and_nothing_else(
    fault: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two people in each frame, the second one of the third and fourth answers is none."""
    lines: list[str] = []
    answers = itertools.count(1)

    def estimate(image: U8) -> Poses:
        known = truth(number_of(image))
        poses = Poses(*(np.concatenate([values, values]) for values in known.arrays()))
        if next(answers) in (3, 4):
            poses.keypoints[1, 5] = fault
        return poses

    opened = lambda: contextlib.nullcontext(estimate)  # noqa: E731
    with Stream(settings("sync"), feeder(), opened, lines.append) as stream:
        assert len(read_rtsp(stream.url, 10)) == 10
    people = [len(json.loads(line)["people"]) for line in lines]
    assert people == [2, 2, 1, 1] + [2] * (len(people) - 4)
    assert stream.summary().broken == 2
    assert [record.message for record in caplog.records if "no numbers" in record.message] == [
        "a pose that is no numbers: its person is left out, and counted in the summary"
    ]


def test_a_network_that_does_not_load_stops_the_start() -> None:
    @contextlib.contextmanager
    def refused() -> Iterator[Callable[[U8], Poses]]:
        raise EdgeposeError("no such precision")
        yield

    with pytest.raises(EdgeposeError, match="no such precision"):
        Stream(settings(), feeder(), refused).__enter__()


def test_a_stop_during_the_start_does_not_wait_for_the_encoders_to_be_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "choose", lambda: time.sleep(5))
    opened = lambda: pytest.fail("the network was loaded after the stop")  # noqa: E731
    stream = Stream(settings(), feeder(), opened)
    threading.Timer(0.2, stream.request_stop).start()
    start_s = time.monotonic()
    stream.__enter__()
    assert time.monotonic() - start_s < 1
    stream.close()
    assert time.monotonic() - start_s < 3
    stream.wait()  # nothing went wrong
    assert stream.summary().encoder == "none"


def test_closing_does_not_wait_for_a_long_inference() -> None:
    stream = Stream(settings("sync"), feeder(), knowing(6.0))
    with stream:
        stream.wait(0.3)
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 3


def test_an_encoder_that_hangs_ends_the_stream_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver's does: it takes no frame, and does not let its pipeline be stopped."""
    stop, over = Encoder.close, threading.Event()
    monkeypatch.setattr(session, "choose", lambda: HANGING)
    monkeypatch.setattr(encoder, "_HANG_S", 0.5)
    monkeypatch.setattr(Encoder, "close", lambda self: (over.wait(20), stop(self)))
    stream = Stream(settings("sync"), feeder(), knowing()).__enter__()
    with pytest.raises(HardwareError, match="encoder hangs"):
        stream.wait(10)
    start_s = time.monotonic()
    stream.close()
    assert time.monotonic() - start_s < 3
    over.set()


def test_a_network_that_hangs_ends_the_stream_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU's driver does after ten good pictures: the call does not come back."""
    over, shown = threading.Event(), itertools.count()
    monkeypatch.setattr(session, "Answers", lambda: Answers(first_s=5, least_s=1))

    def estimate(image: U8) -> Poses:
        if next(shown) == 10:
            over.wait(20)
        return truth(number_of(image))

    opened = lambda: contextlib.nullcontext(estimate)  # noqa: E731
    stream = Stream(settings("sync"), feeder(), opened).__enter__()
    with pytest.raises(HardwareError, match="the network has not answered for 1 s: its GPU or driver hangs"):
        stream.wait(10)
    assert next(shown) == 11
    start_s = time.monotonic()
    stream.close()
    assert time.monotonic() - start_s < 3
    over.set()


def test_a_machine_that_stood_still_is_no_network_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended, or a debugger's: the picture that was asked then is late once, and answered soon."""
    late = iter([5.0, None, 5.0, None])
    monkeypatch.setattr(Answers, "overdue_s", lambda *_: next(late, None))
    with Stream(settings("sync"), feeder(), knowing()) as stream:
        stream.wait(1)
    assert next(late, None) is None  # it was looked at
