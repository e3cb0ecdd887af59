"""The stream's decisions with plain values: no camera, no GStreamer."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.stream import klv
from edgepose.runtime.stream.counters import Latencies, Summary, Tally
from edgepose.runtime.stream.gate import KeyGate
from edgepose.runtime.stream.grammar import (
    Camera,
    File,
    Login,
    Network,
    Synthetic,
    parse_endpoint,
    parse_login,
    parse_size,
    parse_source,
    redacted,
)
from edgepose.runtime.stream.lines import Stamp, no_signal_line, people_of, pose_line
from edgepose.runtime.stream.mailbox import LatestOnly
from edgepose.runtime.stream.pace import Answers, Backoff, Lag, Metronome, RateLimit
from edgepose.runtime.stream.pairing import Recent
from edgepose.runtime.stream.picture import fitted, no_signal, stream_size

STAMP = Stamp(
    seq=3, frame=7, pts_ns=120_000_000, t_ns=1_700_000_000_000_000_000, width=640, height=480, latency_ms=8
)


# Mailbox.


def test_a_new_frame_replaces_an_unread_one_and_is_counted() -> None:
    box: LatestOnly[int] = LatestOnly()
    for item in (1, 2, 3):
        box.put(item)
    assert box.take(0) == 3
    assert box.take(0) is None
    assert box.dropped == 2


@given(st.lists(st.sampled_from(["put", "take"]), max_size=60))
def test_every_frame_is_taken_dropped_or_waiting(moves: list[str]) -> None:
    box: LatestOnly[int] = LatestOnly()
    put, taken = 0, []
    for move in moves:
        if move == "put":
            put += 1
            box.put(put)
        elif (item := box.take(0)) is not None:
            taken.append(item)
    waiting = 1 if box.take(0) is not None else 0
    assert put == len(taken) + box.dropped + waiting
    assert taken == sorted(set(taken))  # never an old one after a newer one


def test_closing_wakes_who_waits_and_leaves_the_last_frame() -> None:
    box: LatestOnly[int] = LatestOnly()
    box.put(1)
    box.close()
    assert not box.closed
    assert box.take(0) == 1
    assert box.closed
    box.put(2)
    assert box.take(0) is None
    waiting: LatestOnly[int] = LatestOnly()
    threading.Timer(0.05, waiting.close).start()
    assert waiting.take(5) is None  # and not after 5 s: the suite would be slow


# Pace.


def test_backoff_doubles_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(0.25, 4)
    assert [backoff.next_s() for _ in range(7)] == [0.25, 0.5, 1, 2, 4, 4, 4]
    backoff.reset()
    assert backoff.next_s() == 0.25


@example(camera=30, limit=30, jitter=3)
@given(camera=st.integers(5, 120), limit=st.integers(1, 120), jitter=st.integers(0, 3))
def test_a_rate_limit_keeps_the_rate(camera: int, limit: int, jitter: int) -> None:
    """Over 20 s: never more than the limit, and not much less than the slower of limit and camera."""
    rate, rng = RateLimit(limit), np.random.default_rng(jitter)
    times = [round(i * 1e9 / camera + rng.uniform(0, jitter / 20) * 1e9 / camera) for i in range(20 * camera)]
    admitted = sum(rate.admits(time) for time in times)
    assert admitted <= 20 * limit + 2
    assert admitted >= 0.95 * 20 * min(limit, camera) - 2


def test_a_rate_limit_makes_no_burst_after_a_gap() -> None:
    rate = RateLimit(10)
    times = [
        0,
        100_000_000,
        *(10_000_000_000 + i * 10_000_000 for i in range(20)),
    ]  # 0.2 s of 100/s after 10 s
    assert sum(rate.admits(time) for time in times) <= 2 + 3


def test_a_rate_limit_lets_frames_through_when_their_clock_goes_back() -> None:
    """As after a loss: 3 s of 25/s, the second 1.5 s beginning where the first did."""
    rate, times = RateLimit(10), [i * 40_000_000 for i in range(38)]
    before, after = ([rate.admits(time) for time in times] for _ in range(2))
    assert sum(before) == 15
    assert sum(after) >= 14
    assert after.index(True) <= 3  # not 1.5 s later


def late_at(ages_s: list[float]) -> int | None:
    """The number of the frame, at 25/s, by which the source counts as falling behind."""
    lag = Lag(most_s=2.0)
    told = [lag.grows(round(age_s * 1e9), i * 40_000_000) for i, age_s in enumerate(ages_s)]
    return told.index(True) if True in told else None


def test_a_reader_that_falls_ever_further_behind_is_told() -> None:
    """Half a second more in each second: over 2 s after 4 s, and still so 2 s later."""
    assert late_at([0.02 * i for i in range(400)]) == pytest.approx(150, abs=2)
    assert late_at([5 + 0.02 * i for i in range(400)]) == pytest.approx(150, abs=2)  # after a slow start too
    assert late_at([min(0.02 * i, 2.5) for i in range(400)]) == pytest.approx(150, abs=2)


def test_a_healthy_source_never_falls_behind() -> None:
    rng = np.random.default_rng(0)
    assert late_at(list(rng.uniform(3, 4.9, 2000))) is None  # a decoder that always keeps some pictures
    assert late_at([max(0.1, 8 - 0.02 * i) for i in range(1000)]) is None  # a slow start that is made good
    stall = [0.1] * 100 + [max(0.1, 6 - 0.02 * i) for i in range(900)]  # a machine that stood still for 6 s
    assert late_at(stall) is None
    assert late_at([0.1, 0.1, *[9.0] * 40, *[0.1] * 100, *[9.0] * 40]) is None  # two stalls, each made good


def test_a_network_has_ten_times_what_it_took_at_most() -> None:
    answers = Answers(first_s=120, least_s=10)
    assert answers.overdue_s(1e9) is None  # nobody asked
    answers.begin(100)
    assert answers.overdue_s(220) is None
    assert answers.overdue_s(221) == 121
    answers.end(100.5)
    assert answers.overdue_s(1e9) is None
    for took_s, most_s in ((0.1, 0.5), (3.0, 3.0), (0.2, 3.0)):
        answers.begin(200)
        answers.end(200 + took_s)
        answers.begin(300)
        limit_s = max(10, 10 * most_s)
        assert answers.overdue_s(300 + limit_s) is None
        assert answers.overdue_s(301 + limit_s) == limit_s + 1
        answers.end(300)


def test_a_metronome_leaves_out_what_is_overdue() -> None:
    metronome = Metronome(fps=10, start_ns=1_000)
    assert metronome.due_ns(3) == 300_001_000
    assert metronome.next_index(3, now_ns=300_001_500) == 4  # in time
    assert metronome.next_index(3, now_ns=950_000_000) == 9  # 4 to 8 are gone, 9 is on


# What one viewer gets.


def test_nothing_flows_before_a_key_frame_and_again_after_a_jam() -> None:
    gate = KeyGate()
    #        delta  key   delta  jam    delta  key
    units = [(0, 1), (1, 1), (0, 1), (0, 0), (0, 1), (1, 1)]
    passed = [gate.video(bool(key), bool(room)) for key, room in units]
    assert passed == [False, True, True, False, False, True]
    assert gate.dropped == 1


# Pairing.


def test_recent_forgets_the_oldest_and_sorts_by_key() -> None:
    recent: Recent[int, str] = Recent(3)
    for key in (5, 1, 9, 7):
        recent.put(key, str(key))
    assert recent.get(5) is None
    assert recent.since(2) == [(7, "7"), (9, "9")]
    assert recent.pop(9) == "9"
    assert recent.since(0) == [(1, "1"), (7, "7")]


# KLV.


@pytest.mark.parametrize(
    ("size", "header"),
    [(0, "00"), (127, "7f"), (128, "8180"), (255, "81ff"), (256, "820100"), (70000, "83011170")],
)
def test_klv_length_is_ber(size: int, header: str) -> None:
    """Against lengths written by hand from the rule: below 128 one byte, else 0x80 + count and the bytes."""
    item = klv.encode(b"x" * size)
    assert item[16 : 16 + len(header) // 2].hex() == header
    assert klv.decode(item) == b"x" * size


@given(st.binary(max_size=400), st.integers(0, 300))
def test_a_cut_klv_item_is_refused(value: bytes, cut: int) -> None:
    item = klv.encode(value)
    assert klv.decode(item) == value
    if cut < len(item):
        with pytest.raises(ValueError, match="KLV"):
            klv.decode(item[:cut])
    with pytest.raises(ValueError, match="label"):
        klv.decode(b"\x07" + item[1:])


# Lines.


def random_poses(people: int) -> Poses:
    rng = np.random.default_rng(people)
    keypoints = rng.uniform(-20, 2000, (people, 17, 2)).astype(np.float32)
    return Poses(
        keypoints,
        rng.uniform(0, 1, (people, 17)).astype(np.float32),
        rng.uniform(0, 1, people).astype(np.float32),
        boxes_of(keypoints),
    )


@pytest.mark.parametrize("people", [0, 1, 30])
def test_a_line_gives_the_poses_back(people: int) -> None:
    poses = random_poses(people)
    line = pose_line(STAMP, poses)
    assert "\n" not in line
    value = json.loads(line)
    assert {k: value[k] for k in ("v", "seq", "frame", "pts_ns", "t_ns", "w", "h", "latency_ms")} == {
        **{"v": 1, "seq": 3, "frame": 7, "pts_ns": 120_000_000, "t_ns": 1_700_000_000_000_000_000},
        **{"w": 640, "h": 480, "latency_ms": 8},
    }
    back = people_of(value)
    assert len(back) == people
    np.testing.assert_allclose(back.keypoints, poses.keypoints, atol=0.051)
    np.testing.assert_allclose(back.keypoint_scores, poses.keypoint_scores, atol=0.0051)
    np.testing.assert_allclose(back.scores, poses.scores, atol=0.00051)


def test_a_person_costs_less_than_340_bytes() -> None:
    assert len(pose_line(STAMP, random_poses(30))) < 30 * 340  # nested objects with full floats: 1100


def test_no_signal_is_a_message_without_people() -> None:
    value = json.loads(no_signal_line(STAMP))
    assert value["signal"] is False
    assert value["people"] == []


def test_not_a_number_never_becomes_a_line_and_costs_nobody_theirs() -> None:
    poses = random_poses(3)
    poses.keypoints[1, 0, 0] = np.nan
    back = people_of(json.loads(pose_line(STAMP, poses[poses.finite()])))
    np.testing.assert_allclose(back.keypoints, poses.keypoints[[0, 2]], atol=0.051)


# Figures.


def test_percentiles_and_the_summary() -> None:
    latencies = Latencies()
    assert latencies.percentile(50) is None
    for value in range(1, 102):
        latencies.add(value)
    assert (latencies.percentile(50), latencies.percentile(95)) == (51, 96)
    tally = Tally()
    assert tally.seconds() == 0
    tally.first_ns = 1_000_000_000
    tally.encoded(clock_ns=2_990_000_000, now_ns=3_000_000_000)
    assert (tally.seconds(), tally.video_ms.percentile(50)) == (2, 10)
    summary = Summary(2.0, 50, 40, 10, 41, 20.5, 10.0, 12.4, None, None, 3, 0, 2, 0, "x264enc")
    assert "50 in, 40 estimated, 10 dropped, 41 out (20.5/s" in summary.sentence()
    assert "video 10/12, poses none" in summary.sentence()
    assert "people left out, their pose no numbers: 2" in summary.sentence()
    assert json.loads(json.dumps(summary.as_dict()))["clients"] == 3


# Grammar.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synthetic:", Synthetic(1, (640, 480), 25)),
        ("synthetic:seed=7,size=320x240,fps=10", Synthetic(7, (320, 240), 10)),
        ("walk.mp4", File("walk.mp4")),
        ("file:///tmp/a b.mp4", File("/tmp/a b.mp4")),
        ("FILE:///tmp/a%20b%25.mp4", File("/tmp/a b%.mp4")),
        ("a%20b.mp4", File("a%20b.mp4")),
        ("v4l2:/dev/video0", Camera("/dev/video0")),
        ("rtsp://me:secret@cam:554/a?b=1", Network("rtsp://me:secret@cam:554/a?b=1")),
        ("RTSP://me:secret@Cam/a@b", Network("rtsp://me:secret@Cam/a@b")),
    ],
)
def test_sources(text: str, expected: object) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("synthetic:sed=1", "'sed' is unknown; known are seed, size, fps"),
        ("synthetic:seed=-1", "seed is '-1'"),
        ("synthetic:size=641x480", "both sides must be even"),
        ("synthetic:fps=0", "from 1 to 240"),
        ("v4l2:", "names nothing"),
        ("", "names nothing"),
        ("rtsp://", "has no host"),
        ("rtsp://cam:port/x", "has no host"),
        ("http://cam/x", "not read"),
    ],
)
def test_a_wrong_source_says_what_next(text: str, said: str) -> None:
    with pytest.raises(EdgeposeError, match=said):
        parse_source(text)


def test_endpoints() -> None:
    assert parse_endpoint(":8554/pose").url(8554) == "rtsp://127.0.0.1:8554/pose"
    assert parse_endpoint("rtsp://localhost:0/a/b/").url(1234) == "rtsp://localhost:1234/a/b"
    assert parse_endpoint("[::1]:8554/pose").url(8554) == "rtsp://[::1]:8554/pose"
    open_to_all = parse_endpoint("0.0.0.0:8554/pose", Login("me", "secret"))
    assert (open_to_all.host, open_to_all.login) == ("0.0.0.0", Login("me", "secret"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.0.0.0:8554/pose", "add --user"),
        ("192.168.1.5:8554/pose", "add --user"),
        ("127.0.0.1.evil.org:8554/pose", "add --user"),
        (":8554", "give \\[HOST\\]:PORT/MOUNT"),
        (":8554/", "mount"),
        (":8554/a b", "give"),
        (":8554/ü", "mount"),
        (":99999/pose", "65535"),
        ("pose", "give"),
        ("me:secret@:8554/pose", "give"),
    ],
)
def test_a_wrong_endpoint_says_what_next(text: str, said: str) -> None:
    with pytest.raises(EdgeposeError, match=said):
        parse_endpoint(text)


def test_logins_and_sizes() -> None:
    assert parse_login("me:a:b") == Login("me", "a:b")
    assert parse_size("1280x720") == (1280, 720)
    for wrong in ("me", ":x", "me:", ""):
        with pytest.raises(EdgeposeError, match="NAME:PASSWORD"):
            parse_login(wrong)
    for wrong in ("640", "640x", "x480", "640x481", "16x16", "99999x2", "６40x480"):
        with pytest.raises(EdgeposeError, match="--size"):
            parse_size(wrong)


@pytest.mark.parametrize(
    "password", ["secret", "se#cret", "se/cret", "se?cret", "se@cret", "se://cret", "[cret"]
)
def test_no_message_shows_a_password(password: str) -> None:
    for scheme in ("rtsp", "RTSP"):
        assert redacted(f"{scheme}://me:{password}@cam:554/a") == f"{scheme}://***@cam:554/a"
    assert redacted(f"me:{password}@cam:554/a") == "***@cam:554/a"
    for scheme in ("http", "HTTP"):
        with pytest.raises(EdgeposeError) as caught:
            parse_source(f"{scheme}://me:{password}@cam/x")
        assert "cret" not in str(caught.value)
    for rtsp in ("me:{}@cam:1/x", "rtsp://me:{}@cam:1/x"):
        with pytest.raises(EdgeposeError) as caught:
            parse_endpoint(rtsp.format(password))
        assert "cret" not in str(caught.value)
    assert redacted("rtsp://cam/a") == "rtsp://cam/a"


@pytest.mark.parametrize("password", ["se#cret", "secr?et", "se/cret", "se@cret"])
def test_a_password_that_hides_the_host_is_to_be_written_otherwise(password: str) -> None:
    """As GStreamer reads it, which takes what is percent-encoded (`test_stream_live.py`)."""
    with pytest.raises(EdgeposeError) as caught:
        parse_source(f"RTSP://me:{password}@10.0.0.5/x")
    assert str(caught.value) == (
        "--source rtsp://***@10.0.0.5/x: has no host to be read; "
        "write #, /, ? and @ of a password as %23, %2F, %3F and %40"
    )


# Pictures.


def test_pictures_are_fitted_to_even_sides() -> None:
    odd = np.arange(101 * 75 * 3, dtype=np.uint32).reshape(75, 101, 3).astype(np.uint8)
    assert stream_size(odd, None) == (100, 74)
    np.testing.assert_array_equal(fitted(odd, (100, 74)), odd[:74, :100])  # cut, so poses keep their place
    assert fitted(odd, (64, 48)).shape == (48, 64, 3)
    with pytest.raises(EdgeposeError, match=r"1x1.*give --size"):
        stream_size(np.zeros((1, 1, 3), np.uint8), None)


def test_the_no_signal_picture_has_writing_in_its_middle() -> None:
    picture = no_signal((320, 240))
    assert picture.shape == (240, 320, 3)
    assert picture[:80].std() == 0
    assert picture[80:160].std() > 10
