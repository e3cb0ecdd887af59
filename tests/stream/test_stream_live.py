"""Whole streams over loopback, read by real clients: our own on GStreamer's rtspsrc, and ffmpeg."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from stream_standins import FPS, feeder, free_port, knowing, number_of, numbered, settings, truth

from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import capture, gst, rtsp, session
from edgepose.runtime.stream.client import ReceivedFrame, read_rtsp
from edgepose.runtime.stream.encoder import CODECS, Codec, Picture
from edgepose.runtime.stream.grammar import Camera, File, Login, Network, parse_endpoint, parse_source
from edgepose.runtime.stream.lines import people_of
from edgepose.runtime.stream.pace import Lag
from edgepose.runtime.stream.session import Input, Settings, Stream
from edgepose.runtime.stream.source import Feeder, Frame, SourceEndedError, SourceLostError
from edgepose.runtime.stream.supervise import Patience

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def assert_exactly_paired(frames: list[ReceivedFrame]) -> None:
    """The number seen in the picture is the number in its message, and so is the pose."""
    for frame in frames:
        assert frame.poses is not None
        number = number_of(frame.image)
        assert frame.poses["frame"] == number
        np.testing.assert_allclose(people_of(frame.poses).keypoints, truth(number).keypoints, atol=0.06)


def ffmpeg(url: str, *output: str) -> bytes:
    """What ffmpeg writes to its standard output."""
    command = ["ffmpeg", "-v", "error", "-rtsp_transport", "tcp", "-i", url, *output]
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


def is_silent(frame: ReceivedFrame) -> bool:
    return frame.poses is not None and frame.poses.get("signal") is False


def assert_nearly_all(numbers: list[int]) -> None:
    """In order, each once, few missing: a busy machine drops, never repeats."""
    assert numbers == sorted(set(numbers))
    assert np.median(np.diff(numbers)) <= 2


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of numbered frames with sound, as a camera would write them."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    path = tmp_path_factory.mktemp("movie") / "numbered film.mp4"
    raw = b"".join(numbered(index).tobytes() for index in range(2 * FPS))
    command = [
        *(
            "ffmpeg",
            "-v",
            "error",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "bgr24",
            "-s",
            "320x240",
            "-r",
            str(FPS),
            "-i",
            "-",
        ),
        *("-f", "lavfi", "-i", "sine=duration=2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac"),
        str(path),
    ]
    subprocess.run(command, input=raw, check=True, timeout=60)
    return path


@needs_ffmpeg
def test_picture_and_poses_of_one_frame_have_one_rtp_timestamp() -> None:
    lines: list[str] = []
    with Stream(settings("sync"), feeder(), knowing(0.01), lines.append) as stream:
        frames = read_rtsp(stream.url, 2 * FPS)
        again = read_rtsp(stream.url, 5)  # a viewer that comes later
        pictures = ffmpeg(
            stream.url, *("-frames:v", "1", "-map", "0:v", "-f", "image2pipe", "-c:v", "png", "-")
        )
    assert_exactly_paired(frames + again)
    numbers = [number_of(frame.image) for frame in frames]
    assert_nearly_all(numbers)
    steps = np.diff([frame.rtp_timestamp for frame in frames])
    per_frame = steps / np.diff(numbers)
    assert abs(np.median(per_frame) - 90_000 / FPS) < 900  # RFC 6184: a 90 kHz clock
    for frame in frames[5:]:  # the times are those of capture: the client on this machine got it at once
        assert frame.poses is not None
        assert 0 < frame.received_ns - frame.poses["t_ns"] < 3_000_000_000
    from_ffmpeg = cv2.imdecode(np.frombuffer(pictures, np.uint8), cv2.IMREAD_COLOR)
    assert from_ffmpeg is not None
    number = number_of(from_ffmpeg.astype(np.uint8))
    assert number > numbers[0]
    joint = truth(number).keypoints[0, 5].astype(int)  # the overlay is where the pose is
    assert (
        np.abs(from_ffmpeg[joint[1], joint[0]].astype(int) - numbered(number)[joint[1], joint[0]]).max() > 60
    )
    assert_nearly_all([json.loads(line)["seq"] for line in lines])
    summary = stream.summary()
    assert summary.clients == 3
    assert 0.4 * FPS < summary.fps < 1.1 * FPS


class Bursts:
    """A network camera that catches up: four pictures in a row have one capture time."""

    def __init__(self) -> None:
        self._index, self._clock_ns = -1, 0

    def read(self, timeout_s: float) -> Frame | None:
        time.sleep(1 / FPS)
        self._index += 1
        if self._index % 4 == 0:
            self._clock_ns = time.monotonic_ns()
        return Frame(numbered(self._index), self._clock_ns, self._index)

    def close(self) -> None:
        """Nothing is held."""


def test_pictures_taken_at_one_time_are_still_told_apart() -> None:
    with Stream(settings("sync"), Input("bursts", Bursts), knowing()) as stream:
        frames = read_rtsp(stream.url, FPS)
    assert_exactly_paired(frames)
    assert_nearly_all([number_of(frame.image) for frame in frames])
    assert len({frame.rtp_timestamp for frame in frames}) == len(frames)


@pytest.mark.parametrize("overlay", ["latest", "none"])
def test_video_does_not_wait_for_a_slow_network(overlay: str) -> None:
    with Stream(settings(overlay), feeder(), knowing(0.15, untouched=True)) as stream:
        frames = read_rtsp(stream.url, 2 * FPS)
    numbers = [number_of(frame.image) for frame in frames]
    assert_nearly_all(numbers)
    estimated = [frame for frame in frames if frame.poses is not None]
    assert 2 <= len(estimated) <= 20  # about one in four
    assert_exactly_paired(estimated)
    summary = stream.summary()
    assert summary.video_latency_p50_ms is not None
    assert summary.pose_latency_p50_ms is not None
    assert summary.video_latency_p50_ms < summary.pose_latency_p50_ms - 100


def test_latency_is_bounded_when_inference_is_slower_than_the_camera() -> None:
    """150 ms for a frame every 40 ms: without dropping, every estimated frame would add 110 ms of delay."""
    delays_ms: list[float] = []
    with Stream(
        settings("sync"), feeder(), knowing(0.15), lambda s: delays_ms.append(json.loads(s)["latency_ms"])
    ) as stream:
        frames = read_rtsp(stream.url, 20)
    assert_exactly_paired(frames)
    assert np.median(delays_ms) < 150 + 1000 / FPS + 200  # inference, a frame's wait, and much scheduling
    assert max(delays_ms) < 1500
    summary = stream.summary()
    assert summary.frames_dropped > summary.frames_estimated
    assert summary.frames_in == pytest.approx(summary.frames_estimated + summary.frames_dropped, abs=2)


@needs_ffmpeg
def test_ffprobe_sees_a_video_and_a_data_stream() -> None:
    with Stream(settings(), feeder(), knowing()) as stream:
        found = subprocess.run(
            ["ffprobe", "-v", "error", "-rtsp_transport", "tcp", "-show_streams", "-of", "json", stream.url],
            check=True,
            capture_output=True,
            timeout=30,
        ).stdout
    streams = json.loads(found)["streams"]
    assert [s["codec_type"] for s in streams] == ["video", "data"]
    assert (streams[0]["codec_name"], streams[0]["width"], streams[0]["height"]) == ("h264", 320, 240)


def test_a_file_is_played_at_its_own_speed_and_looped(movie: Path) -> None:
    source = Input("film", lambda: capture.Capture(File(str(movie))), capture.PATIENCE[File])
    with Stream(settings("sync"), source, knowing()) as stream:
        start_s = time.monotonic()
        frames = read_rtsp(stream.url, 4 * FPS)
        assert 3.0 < time.monotonic() - start_s < 20
    frames = [
        frame for frame in frames if not is_silent(frame)
    ]  # a very busy machine is slow to open it again
    numbers = [number_of(frame.image) for frame in frames]
    assert_exactly_paired(frames)  # the index comes from the file's own times
    assert sum(b < a for a, b in itertools.pairwise(numbers)) >= 1  # it began again
    assert set(numbers) <= set(range(2 * FPS))
    assert stream.summary().losses == 0


def test_once_ends_after_the_last_frame_of_a_file(movie: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    source = Input(
        "film", lambda: capture.Capture(File(str(movie)), (160, 120)), capture.PATIENCE[File], once=True
    )

    def slow(image: U8) -> Poses:
        time.sleep(0.1)  # so that frames still wait for it when the file is at its end
        return truth(image.shape[1])

    with Stream(settings("sync"), source, lambda: contextlib.nullcontext(slow), lines.append) as stream:
        stream.wait(10)
        assert stream.is_done
    values = [json.loads(line) for line in lines]
    assert values[-1]["frame"] == 2 * FPS - 1
    assert (values[-1]["w"], values[-1]["h"]) == (160, 120)
    assert stream.summary().frames_out == len(lines)


class Torn(Feeder):
    """A file that cannot be read beyond its tenth frame."""

    def read(self, timeout_s: float) -> Frame | None:
        try:
            return super().read(timeout_s)
        except SourceEndedError as end:
            raise SourceLostError("the data are broken") from end


def test_once_ends_with_a_sentence_where_a_file_breaks_off() -> None:
    source = Input("torn.mp4", lambda: Torn("torn.mp4", numbered, FPS, 10), once=True)
    said = r"torn\.mp4: it breaks off \(the data are broken\); give a video file that plays to its end"
    with Stream(settings(), source, knowing()) as stream, pytest.raises(EdgeposeError, match=said) as caught:
        stream.wait(5)
    assert caught.value.exit_code == 2


def test_the_frame_rate_can_be_limited() -> None:
    with Stream(settings(fps=10), feeder(), knowing()) as stream:
        stream.wait(2.0)
    assert 5 < stream.summary().fps < 11


@pytest.mark.parametrize(
    ("said", "limit", "nominal"),
    [
        (25.0, None, 25),
        (29.97, 10, 10),
        (25.0, 60, 25),
        (90_000.0, None, 30),
        (1000.0, 15, 15),
        (0.0, None, 30),
    ],
)
def test_the_encoder_shares_its_bits_by_a_rate_that_can_be(
    said: float, limit: int | None, nominal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 90000 frames a second, which some sources say, a picture would get 2 bytes."""

    def no_encoder(_codec: Codec, picture: Picture, *_rest: object) -> None:
        raise EdgeposeError(f"nominal rate {picture.fps}")

    monkeypatch.setattr(session, "Encoder", no_encoder)
    monkeypatch.setattr(session, "choose", lambda: CODECS[0])
    source = Input("fast", lambda: Feeder("fast", numbered, said or 25))
    if not said:
        monkeypatch.setattr(Feeder, "read", lambda _self, _timeout_s: Frame(numbered(0), time.monotonic_ns()))
    with pytest.raises(EdgeposeError, match=f"nominal rate {nominal}$"):
        Stream(settings(fps=limit), source, knowing()).__enter__()


def test_an_rtsp_source_that_goes_away_and_comes_back() -> None:
    """Camera, stream and viewer; the camera is unplugged for two seconds, the viewer stays."""
    port, frames = free_port(), []
    camera_settings = settings(rtsp=f":{port}/camera")
    source = Input(
        "camera",
        lambda: capture.Capture(Network(f"rtsp://127.0.0.1:{port}/camera")),
        Patience(first_s=5, next_s=2),
        is_hardware=True,
    )
    camera = Stream(camera_settings, feeder(), knowing())
    camera.__enter__()
    try:
        with Stream(settings("sync"), source, knowing()) as stream:
            viewer = threading.Thread(target=lambda: frames.extend(read_rtsp(stream.url, 6 * FPS, 60)))
            viewer.start()
            stream.wait(1.0)
            camera.close()
            stream.wait(2.0)
            camera = Stream(camera_settings, feeder(), knowing())
            camera.__enter__()
            viewer.join(60)
            late = read_rtsp(stream.url, 3)
    finally:
        camera.close()
    assert len(frames) == 6 * FPS  # one connection saw all of it
    silent = [is_silent(frame) for frame in frames]
    first, last = silent.index(True), len(silent) - silent[::-1].index(True)
    assert first >= 1  # pictures, then "no signal" twice a second, then pictures again
    assert 2 <= sum(silent) <= 60
    assert len(frames) - last > 5
    for picture in (frame.image for frame, silence in zip(frames, silent, strict=True) if silence):
        assert picture[:60].std() < 4
    assert_numbers_match(frames[:first] + frames[last:] + late)
    assert stream.summary().losses >= 1


def test_a_source_faster_than_its_decoding_is_lost_and_not_ever_older(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not decoded piles up in TCP, before every queue of ours."""
    slow = capture._HEADS[Network] + " ! identity sleep-time=200000"  # us for a picture
    monkeypatch.setitem(capture._HEADS, Network, slow)
    monkeypatch.setattr(capture, "Lag", lambda: Lag(most_s=0.6))
    with Stream(settings(), feeder(), knowing()) as camera:
        source = capture.Capture(Network(camera.url))
        ages_s: list[float] = []

        def read_on() -> None:
            while len(ages_s) < 100:
                if frame := source.read(0.1):
                    ages_s.append((time.monotonic_ns() - frame.clock_ns) / 1e9)

        with pytest.raises(SourceLostError, match="falls behind: decoding is slower than the source"):
            read_on()
        source.close()
    assert ages_s[-1] > 0.6
    assert len(ages_s) > 3


def test_a_source_that_works_leaves_no_messages_on_its_bus() -> None:
    """Decoders say the bit rate again and again."""
    Gst = gst.namespace("Gst")
    with Stream(settings(), feeder(), knowing()) as camera:
        source = capture.Capture(Network(camera.url))
        try:
            while source.read(1.0) is None:
                pass
            source._pipeline.get_bus().post(Gst.Message.new_tag(source._pipeline, Gst.TagList.new_empty()))
            assert source.read(5.0) is not None
            assert not source._pipeline.get_bus().have_pending()
        finally:
            source.close()


def test_data_that_are_no_poses_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtsp.klv, "encode", lambda _value: bytes.fromhex("060e2b34") + bytes(12) + b"\2ab")
    with Stream(settings("sync"), feeder(), knowing()) as camera:
        said = rf"{camera.url}: its data are no poses \(.*label.*\)"
        with pytest.raises(HardwareError, match=said):
            read_rtsp(camera.url, 5)


def test_a_camera_with_sound_is_read_for_its_picture() -> None:
    """The sound comes first in its description: what is linked first must not be taken."""
    Gst, GLib, GstRtspServer = (gst.namespace(name) for name in ("Gst", "GLib", "GstRtspServer"))
    for element in ("alawenc", "rtppcmapay", "x264enc"):
        if Gst.ElementFactory.find(element) is None:
            pytest.skip(f"{element} is not installed")
    context, server, factory = (
        GLib.MainContext.new(),
        GstRtspServer.RTSPServer(),
        GstRtspServer.RTSPMediaFactory(),
    )
    factory.set_launch(
        "( audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay0 videotestsrc is-live=true ! "
        "video/x-raw,width=160,height=120,framerate=25/1 ! x264enc tune=zerolatency ! rtph264pay name=pay1 )"
    )
    server.set_address("127.0.0.1")
    server.set_service("0")
    server.get_mount_points().add_factory("/both", factory)
    server.attach(context)
    stop, set_up = threading.Event(), []

    def on_client(_server: Any, client: Any) -> None:
        client.connect("setup-request", lambda _client, request: set_up.append(request.uri.abspath))

    server.connect("client-connected", on_client)

    def serve() -> None:
        while not stop.is_set():
            context.iteration(False)
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        spec = Network(f"rtsp://127.0.0.1:{server.get_bound_port()}/both")
        source = Input("both", lambda: capture.Capture(spec), is_hardware=True)
        opened = lambda: contextlib.nullcontext(lambda _image: Poses.empty())  # noqa: E731
        with Stream(settings(), source, opened) as stream:
            stream.wait(1.5)
        assert stream.summary().frames_in > 15
        assert len(set_up) == 1
    finally:
        stop.set()
        thread.join()


def assert_numbers_match(frames: list[ReceivedFrame]) -> None:
    for frame in frames:
        assert frame.poses is not None
        expected = truth(number_of(frame.image)).keypoints
        np.testing.assert_allclose(people_of(frame.poses).keypoints, expected, atol=0.06)


@needs_ffmpeg
def test_a_password_is_asked_for() -> None:
    endpoint = parse_endpoint("127.0.0.1:0/pose", Login("me", "secret"))
    with Stream(Settings(endpoint), feeder(), knowing()) as stream:
        assert "secret" not in stream.url
        assert len(read_rtsp(stream.url.replace("rtsp://", "rtsp://me:secret@"), 2)) == 2
        for wrong in (stream.url, stream.url.replace("rtsp://", "rtsp://me:guess@")):
            with pytest.raises(HardwareError, match="cannot be read") as caught:
                read_rtsp(wrong, 1, 10)
            assert "guess" not in str(caught.value)
        assert stream.summary().clients == 1


def test_a_second_stream_on_a_port_in_use_names_the_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HardwareError, match=f"port {port} on 127.0.0.1 cannot be used .*in use"):
            Stream(settings(rtsp=f":{port}/pose"), feeder(), knowing()).__enter__()


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="/dev/video99: no such camera"):
        capture.check_there(Camera("/dev/video99"))
    foreign = tmp_path / os.fsdecode(b"w\xe4lk.mp4")
    foreign.touch()
    for path, said in (
        (tmp_path / "nowhere.mp4", "no such video file"),
        (tmp_path, "is a folder; give a video file"),
        (foreign, r"w\\udce4lk.mp4': the name is not in UTF-8; rename the file"),
    ):
        with pytest.raises(EdgeposeError, match=said) as caught:
            capture.check_there(File(str(path)))
        assert caught.value.exit_code == 2
        assert str(caught.value).isascii()


def test_gstreamer_reads_a_percent_encoded_password() -> None:
    spec = parse_source("RTSP://me:a%23b%2Fc%3Fd%40e@cam/x")
    assert isinstance(spec, Network)
    _, url = gst.namespace("GstRtsp").RTSPUrl.parse(spec.url)
    assert (url.user, url.passwd, url.host, url.abspath) == ("me", "a#b/c?d@e", "cam", "/x")


@pytest.mark.parametrize(
    "content", [b"", b"no video at all\n" * 100, b"\x00\x00\x00\x18ftypmp42" + bytes(4000)]
)
def test_a_file_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "walk.mp4"
    path.write_bytes(content)
    source = Input(str(path), lambda: capture.Capture(File(str(path))), Patience(first_s=2))
    with pytest.raises(EdgeposeError, match=r"walk\.mp4: no picture in it") as caught:
        Stream(settings(), source, knowing()).__enter__()
    assert caught.value.exit_code == 2


def test_a_device_that_is_no_camera_and_a_server_that_is_not_there() -> None:
    for spec in (Camera("/dev/null"), Network(f"rtsp://me:secret@127.0.0.1:{free_port()}/x")):
        name = capture.name_of(spec)
        source = Input(name, lambda spec=spec: capture.Capture(spec), is_hardware=True)  # type: ignore[misc]
        start_s = time.monotonic()
        with pytest.raises(HardwareError, match="no picture from it") as caught:
            Stream(settings(), source, knowing()).__enter__()
        assert "secret" not in str(caught.value)
        assert time.monotonic() - start_s < 8
