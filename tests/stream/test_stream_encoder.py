"""Which encoder works here, and what comes out of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from stream_standins import HANGING

from edgepose.runtime.errors import HardwareError, MissingLibrary
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import encoder, gst
from edgepose.runtime.stream.encoder import CODECS, Codec, Encoder, Picture, choose, works

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")

BY_NAME = {codec.element: codec for codec in CODECS}


def test_an_encoder_is_tried_before_it_is_chosen() -> None:
    """`identity` is installed and fails at work, as nvv4l2h264enc does on a board without the chip."""
    pretender = Codec("identity", False, "identity error-after=2")
    x264 = BY_NAME["x264enc"]
    assert choose((pretender, x264)) == x264
    with pytest.raises(HardwareError, match=r"no H\.264 encoder works here \(tried identity\)"):
        choose((pretender,))
    with pytest.raises(MissingLibrary, match=r"nosuchenc.*apt-get install"):
        choose((Codec("nosuchenc", False, "nosuchenc"),))


def test_hardware_is_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "works", lambda codec: pytest.fail("tried in this process"))
    works_apart = Codec("x264enc", True, "")
    assert choose((works_apart,)) == works_apart
    if gst.has_element("nvv4l2h264enc"):
        pytest.skip("this machine has the element that the next lines take as missing")
    monkeypatch.setattr(gst, "has_element", lambda name: True)
    with pytest.raises(HardwareError, match="tried nvv4l2h264enc"):
        choose((BY_NAME["nvv4l2h264enc"],))


def test_a_driver_that_hangs_does_not_keep_the_process_that_tries_it() -> None:
    """Who asked may have been stopped meanwhile."""
    code = (
        "import time; from edgepose.runtime.stream import encoder\n"
        "encoder._PROBE_S, encoder.works = 0.5, lambda codec: time.sleep(30)\n"
        "encoder._answer('x264enc')"
    )
    start_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGALRM
    assert time.monotonic() - start_s < 15


def test_two_threads_ask_for_a_namespace_at_once() -> None:
    """The first frame and the first client both want a key frame; PyGObject's import takes its time."""
    code = (
        "import time, gi.importer as importer; from concurrent.futures import ThreadPoolExecutor\n"
        "from edgepose.runtime.stream import gst; gst.namespace('Gst')\n"
        "name = 'load_module' if hasattr(importer.DynamicImporter, 'load_module') else 'create_module'\n"
        "load = getattr(importer.DynamicImporter, name)  # by the version of PyGObject\n"
        "slow = lambda self, one: (load(self, one), time.sleep(0.3))[0]\n"
        "setattr(importer.DynamicImporter, name, slow)\n"
        "with ThreadPoolExecutor(2) as pool:\n"
        "    later = pool.submit(lambda: (time.sleep(0.1), gst.namespace('GstVideo'))[1])\n"
        "    assert gst.namespace('GstVideo') is later.result()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("element", ["x264enc", "openh264enc"])
def test_software_encoders_work(element: str) -> None:
    if not gst.has_element(element):
        pytest.skip(f"{element} is not installed")
    assert works(BY_NAME[element])


def test_an_access_unit_for_each_frame_with_its_capture_time_and_a_key_frame_each_second() -> None:
    """At 10 frames a second, far below the nominal rate: key frames go by time."""
    units: list[tuple[int, bool]] = []

    def on_unit(_buffer: Any, clock_ns: int, is_key: bool) -> None:
        units.append((clock_ns, is_key))

    start_ns = time.monotonic_ns() - 60_000_000_000  # a machine that was busy for a minute loses nothing
    coder = Encoder(BY_NAME["x264enc"], Picture(322, 240, 30), start_ns, on_unit)
    stop = threading.Event()
    thread = threading.Thread(target=coder.run, args=(stop,))
    thread.start()
    times = [start_ns + i * 100_000_000 for i in range(35)]
    picture = np.zeros((240, 322, 3), np.uint8)
    try:
        for count, when in enumerate(times):
            assert coder.push(picture, when)
            patience = time.monotonic() + 10
            # A key frame is asked for beside the frames: it comes as early as the encoder is behind.
            while len(units) <= count and time.monotonic() < patience:
                time.sleep(0.002)
        assert not coder.push(picture, times[3])  # older than the last one: never goes back
        coder.end()
        thread.join(5)
        assert not thread.is_alive()
    finally:
        stop.set()
        coder.close()
    assert [when for when, _ in units] == times
    keys = [i for i, (_, is_key) in enumerate(units) if is_key]
    assert keys[0] == 0
    assert max(np.diff([*keys, 35])) <= 11


def test_an_encoder_that_works_leaves_no_messages_on_its_bus() -> None:
    """Encoders say the bit rate again and again. This one has a unit each time it is asked, three times."""
    Gst, GLib = gst.namespace("Gst"), gst.namespace("GLib")
    pipeline, pending, units = gst.launch("fakesrc ! fakesink"), [], iter("abc")
    fault = GLib.Error.new_literal(Gst.stream_error_quark(), "burnt out", 1)

    def pull(_timeout: int) -> str | None:
        unit = next(units, None)
        tag = Gst.Message.new_tag(pipeline, Gst.TagList.new_empty())
        pipeline.get_bus().post(tag if unit else Gst.Message.new_error(pipeline, fault, ""))
        return unit

    coder = SimpleNamespace(
        _units=SimpleNamespace(try_pull_sample=pull),
        _pipeline=pipeline,
        _hand_over=lambda _unit: pending.append(pipeline.get_bus().have_pending()),
    )
    with pytest.raises(HardwareError, match="burnt out"):
        Encoder.run(coder, threading.Event())  # type: ignore[arg-type]
    assert pending == [False, False, False]


def test_an_encoder_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_HANG_S", 0.5)
    now_ns = time.monotonic_ns()
    coder = Encoder(HANGING, Picture(32, 32, 30), now_ns, lambda *_: None)
    picture = np.zeros((32, 32, 3), np.uint8)
    feeder = threading.Thread(target=lambda: [coder.push(picture, now_ns + i) for i in range(9)], daemon=True)
    feeder.start()
    with pytest.raises(HardwareError, match=r"hangs: it has taken no frame for 0\.5 s; start"):
        coder.run(threading.Event())
    assert feeder.is_alive()
    coder.close()
    feeder.join(5)
    assert not feeder.is_alive()


def test_an_encoder_without_frames_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that pauses is no fault of the encoder's, one frame behind or not."""
    monkeypatch.setattr(encoder, "_HANG_S", 0.3)
    now_ns, stop = time.monotonic_ns(), threading.Event()
    coder = Encoder(BY_NAME["x264enc"], Picture(32, 32, 30), now_ns, lambda *_: None)
    assert coder.push(np.zeros((32, 32, 3), np.uint8), now_ns)
    threading.Timer(1.0, stop.set).start()
    coder.run(stop)
    coder.close()


@pytest.mark.parametrize("size", [(320, 240), (322, 242), (1280, 720)], ids=str)
def test_a_viewer_sees_the_colours_that_were_pushed(size: tuple[int, int]) -> None:
    """Decoded by another program's rules: players take HD for BT.709 where the stream does not say."""
    colours = ((20, 60, 200), (200, 60, 20), (60, 180, 60), (128, 128, 128))
    image = np.empty((size[1], size[0], 3), np.uint8)
    columns = np.arange(size[0]) * 4 // size[0]
    image[:] = np.array(colours, np.uint8)[columns]
    units: list[bytes] = []
    now_ns = time.monotonic_ns()
    coder = Encoder(
        BY_NAME["x264enc"], Picture(*size, 30), now_ns, lambda unit, *_: units.append(gst.bytes_of(unit))
    )
    for frame in range(5):
        coder.push(image, now_ns + frame * 33_000_000)
    coder.end()
    coder.run(threading.Event())
    coder.close()
    seen = first_picture(b"".join(units))
    assert seen.shape == image.shape
    for index, colour in enumerate(colours):
        middle = seen[:, np.flatnonzero(columns == index)[8:-8]]
        assert np.abs(middle.astype(int) - colour).mean((0, 1)).max() <= 4, colour


def first_picture(stream: bytes) -> U8:
    """Of an H.264 byte stream, decoded and converted by ffmpeg."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    command = ["ffmpeg", "-v", "error", "-f", "h264", "-i", "-", "-frames:v", "1"]
    command += ["-f", "image2pipe", "-c:v", "png", "-"]
    done = subprocess.run(command, input=stream, capture_output=True, check=True, timeout=30)
    return np.asarray(cv2.imdecode(np.frombuffer(done.stdout, np.uint8), cv2.IMREAD_COLOR), np.uint8)
