"""H.264: which encoder works here, and the pipeline from frames to access units."""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepose.runtime.errors import SOURCE, HardwareError, MissingLibrary
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import gst
from edgepose.runtime.stream.pixels import I420, buffer_of

log = logging.getLogger(__name__)
_PROBE_S = 10.0
_HANG_S = 10.0  # that a frame may wait to be taken: no encoder that works needs as long for a few frames
_KEY_EVERY_NS = 1_000_000_000  # a viewer that missed a key frame waits a second at most
_KEY_PAUSE_NS = 150_000_000  # many viewers that come together share one key frame
_H264 = "video/x-h264,stream-format=byte-stream,alignment=au"


@dataclass(frozen=True, slots=True)
class Codec:
    """One encoder of `I420`, which all of them take, NVIDIA's converter too: that knows no BGR.

    `description` has the fields {bitrate} (bit/s), {kilobits} (kbit/s) and {gop} (frames).
    """

    element: str
    hardware: bool
    description: str


# Best first. On a Jetson Orin Nano the first is installed and does not work: it is tried, never assumed.
CODECS = (
    Codec(
        "nvv4l2h264enc",
        True,
        "nvvidconv ! video/x-raw(memory:NVMM),format=NV12 ! nvv4l2h264enc bitrate={bitrate} "
        f"iframeinterval={{gop}} idrinterval={{gop}} insert-sps-pps=true maxperf-enable=true ! {_H264}",
    ),
    Codec(
        "x264enc",
        False,
        "x264enc tune=zerolatency speed-preset=ultrafast "
        f"bitrate={{kilobits}} key-int-max={{gop}} threads=1 byte-stream=true ! {_H264},profile=baseline",
    ),
    Codec(
        "openh264enc",
        False,
        "openh264enc bitrate={bitrate} gop-size={gop} "
        f"complexity=low usage-type=camera ! {_H264} ! h264parse",
    ),
)


def description(codec: Codec, bitrate: int, gop: int) -> str:
    """The codec's part of a pipeline."""
    return codec.description.format(bitrate=bitrate, kilobits=max(1, bitrate // 1000), gop=gop)


def choose(codecs: tuple[Codec, ...] = CODECS) -> Codec:
    """The first codec that works here. Raises MissingLibrary or HardwareError when none does."""
    installed = [codec for codec in codecs if gst.has_element(codec.element)]
    if not installed:
        names = ", ".join(codec.element for codec in codecs)
        raise MissingLibrary(f"no H.264 encoder is installed ({names}); install one: {SOURCE['gi']}")
    for codec in installed:
        if _works_apart(codec) if codec.hardware else works(codec):
            return codec
        log.warning("the encoder %s is installed but does not work here", codec.element)
    names = ", ".join(codec.element for codec in installed)
    raise HardwareError(f"no H.264 encoder works here (tried {names}); see `edgepose doctor`")


def works(codec: Codec) -> bool:
    """Whether five frames come through, tried in this process."""
    Gst = gst.namespace("Gst")
    pipeline = gst.launch(
        f"videotestsrc num-buffers=5 ! {I420},width=320,height=240,framerate=30/1 ! "
        f"{description(codec, 500_000, 30)} ! fakesink sync=false"
    )
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(
        round(_PROBE_S * 1e9), Gst.MessageType.EOS | Gst.MessageType.ERROR
    )
    pipeline.set_state(Gst.State.NULL)
    return message is not None and message.type == Gst.MessageType.EOS


def _works_apart(codec: Codec) -> bool:
    """The same in a child process: a driver without its chip may hang or kill the process that asks."""
    command = [sys.executable, "-m", __name__, codec.element]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _answer(element: str) -> int:
    """What the child does. It ends by itself, hanging in a driver too: a stop does not wait for it."""
    signal.alarm(round(2 * _PROBE_S))
    return 0 if works(next(codec for codec in CODECS if codec.element == element)) else 1


@dataclass(frozen=True, slots=True)
class Picture:
    """What is encoded: size in pixels (even), nominal frames per second."""

    width: int
    height: int
    fps: int

    def bitrate(self) -> int:
        """Bits per second: 1.5 Mbit/s for 640x480, growing slower than the area, as H.264 does."""
        area: float = self.width * self.height / (640 * 480)
        return round(1_500_000 * math.pow(area, 0.75))


class Encoder:
    """Frames in, H.264 access units out to `on_unit(buffer, clock_ns, is_key)`, in the thread of `run`.

    `push` may be called from several threads. Frames must be newer than the last one.
    """

    def __init__(
        self, codec: Codec, picture: Picture, start_ns: int, on_unit: Callable[[Any, int, bool], None]
    ) -> None:
        """`start_ns`: capture time of the first frame, on the monotonic clock."""
        Gst = gst.namespace("Gst")
        self._on_unit = on_unit
        self._lock = threading.Lock()
        self._start_ns, self._last_ns = start_ns, start_ns - 1
        self._key_ns = 0
        self._offered_s: float | None = None  # since when a frame waits to be taken, monotonic
        size = f"width={picture.width},height={picture.height}"
        # block=true at one frame: an encoder that is too slow holds up its feeder, whose mailbox drops.
        frame_bytes = picture.width * picture.height * 3 // 2
        self._pipeline = gst.launch(
            f"appsrc name=frames is-live=true format=time block=true max-bytes={frame_bytes} "
            f"caps={I420},{size},framerate={picture.fps}/1 ! queue max-size-buffers=1 ! "
            f"{description(codec, picture.bitrate(), 2 * picture.fps)} ! "
            "appsink name=units sync=false max-buffers=60 drop=true"
        )
        self._frames = self._pipeline.get_by_name("frames")
        self._units = self._pipeline.get_by_name("units")
        self._pipeline.use_clock(Gst.SystemClock.obtain())
        if self._pipeline.set_state(Gst.State.PLAYING) == Gst.StateChangeReturn.FAILURE:
            raise HardwareError(f"{codec.element} does not start: {gst.fault_of(self._pipeline)}")

    def push(self, image: U8, clock_ns: int) -> bool:
        """Encode a (H, W, 3) BGR frame captured at `clock_ns`; False when it is not newer than the last."""
        buffer = buffer_of(image)
        with self._lock:
            if clock_ns <= self._last_ns:
                return False
            self._last_ns = clock_ns
            if clock_ns - self._key_ns >= _KEY_EVERY_NS:  # by time: a slow network makes few frames a second
                self._force_key(clock_ns)
            buffer.pts = clock_ns - self._start_ns
            self._offered_s = time.monotonic()
            self._frames.push_buffer(buffer)
            self._offered_s = None
        return True

    def force_key(self) -> None:
        """Make the next frame a key frame, because somebody came to watch."""
        now_ns = time.monotonic_ns()
        if now_ns - self._key_ns >= _KEY_PAUSE_NS:
            self._force_key(now_ns)

    def _force_key(self, now_ns: int) -> None:
        Gst, GstVideo = gst.namespace("Gst"), gst.namespace("GstVideo")
        self._key_ns = now_ns
        event = GstVideo.video_event_new_upstream_force_key_unit(Gst.CLOCK_TIME_NONE, True, 0)
        self._units.get_static_pad("sink").push_event(event)

    def run(self, stop: threading.Event) -> None:
        """Hand over access units until `stop` or the end.

        Raises HardwareError when the encoder breaks, or says nothing and takes no frame any more.
        """
        Gst, fault = gst.namespace("Gst"), None
        while not stop.is_set():
            sample = self._units.try_pull_sample(100 * Gst.MSECOND)
            # Asked each time: the bus keeps what nobody takes from it.
            fault = fault or gst.fault_of(self._pipeline)
            if sample is not None:
                self._hand_over(sample)
            elif fault:
                raise HardwareError(f"the H.264 encoder stopped: {fault}")
            elif self._units.get_property("eos"):
                return
            elif (offered_s := self._offered_s) and time.monotonic() - offered_s > _HANG_S:
                raise HardwareError(
                    f"the H.264 encoder hangs: it has taken no frame for {_HANG_S:g} s; start the stream "
                    "again, or the board where that does not help"
                )

    def _hand_over(self, sample: Any) -> None:
        buffer, running_ns = sample.get_buffer(), gst.running_time_ns(sample)
        if running_ns is not None:
            is_key = not buffer.get_flags() & gst.namespace("Gst").BufferFlags.DELTA_UNIT
            self._on_unit(buffer, self._start_ns + running_ns, bool(is_key))

    def end(self) -> None:
        """No more frames: `run` returns after the last access unit."""
        self._frames.emit("end-of-stream")

    def close(self) -> None:
        """Stop at once; a waiting `push` returns."""
        self._pipeline.set_state(gst.namespace("Gst").State.NULL)


if __name__ == "__main__":
    sys.exit(_answer(sys.argv[1]))
