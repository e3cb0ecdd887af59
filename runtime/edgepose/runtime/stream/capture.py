"""Cameras, RTSP sources and video files as GStreamer pipelines that end in the newest BGR frame."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.stream import gst
from edgepose.runtime.stream.grammar import Camera, File, Network, redacted
from edgepose.runtime.stream.pace import Lag
from edgepose.runtime.stream.pixels import CAPS, Pixels
from edgepose.runtime.stream.source import Frame, SourceEndedError, SourceLostError
from edgepose.runtime.stream.supervise import Patience

# queue: one stale frame at most before the conversion. drop=true: else one more frame of latency stays.
_LIVE_TAIL = (
    "queue max-size-buffers=1 max-size-bytes=0 max-size-time=0 leaky=downstream ! {convert} ! "
    "appsink name=frames sync=false max-buffers=1 drop=true"
)
# sync=true plays a file at its own speed.
_FILE_TAIL = "{convert} ! appsink name=frames sync=true max-buffers=1 drop=true"
DECODE = "decodebin expose-all-streams=false caps=video/x-raw(ANY)"
_HEADS = {
    Camera: f"v4l2src name=head ! {DECODE}",
    # tcp-timeout and teardown-timeout (us, ns): a dead server must not hold up the rebuilding.
    Network: (
        "rtspsrc name=head latency=100 protocols=tcp tcp-timeout=3000000 teardown-timeout=200000000 ! "
        f"{DECODE}"
    ),
    File: f"filesrc name=head ! {DECODE}",
}
_ADDRESS = {Camera: "device", Network: "location", File: "location"}  # property of the head


def converter(size: tuple[int, int] | None = None) -> str:
    """The elements from a decoder's frames, whatever they are, to what `Pixels` reads, of `size` if given."""
    scale = f",width={size[0]},height={size[1]},pixel-aspect-ratio=1/1" if size else ""
    # On a Jetson decodebin picks NVIDIA's decoder, whose frames only nvvidconv brings to CPU memory.
    download = "nvvidconv ! " if gst.has_element("nvvidconv") else ""
    # videoflip: phones store the picture lying down and a tag that says so.
    turn = "videoflip video-direction=auto ! " if gst.has_element("videoflip") else ""
    return f"{download}videoconvert ! {turn}videoscale ! {CAPS}{scale}"


def check_there(spec: Camera | Network | File) -> None:
    """Raises HardwareError or EdgeposeError when the device or file is plainly not there."""
    if isinstance(spec, Camera) and not Path(spec.device).exists():
        found = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise HardwareError(f"{spec.device}: no such camera; cameras here: {found}")
    if isinstance(spec, File):
        _check_file(spec.path)


def _check_file(path: str) -> None:
    if Path(path).is_dir():
        raise EdgeposeError(f"{path}: is a folder; give a video file to --source")
    if not Path(path).is_file():
        raise EdgeposeError(f"{path}: no such video file; give an existing one to --source")
    try:
        path.encode()
    except UnicodeEncodeError as error:  # GStreamer takes UTF-8 alone
        raise EdgeposeError(f"{path!a}: the name is not in UTF-8; rename the file") from error


_FIELD = {Camera: "device", Network: "url", File: "path"}


def name_of(spec: Camera | Network | File) -> str:
    """For messages; a password in an address is left out."""
    return redacted(spec.url) if isinstance(spec, Network) else str(getattr(spec, _FIELD[type(spec)]))


PATIENCE = {
    Camera: Patience(first_s=5.0, next_s=2.0),
    Network: Patience(first_s=10.0, next_s=2.0),
    # Of variable rate it has no frame while nothing changes; where it breaks it says so.
    File: Patience(first_s=10.0, next_s=math.inf),
}


class Capture:
    """One run of a source, from opening to loss or end. Its times are on the monotonic clock."""

    def __init__(self, spec: Camera | Network | File, size: tuple[int, int] | None = None) -> None:
        """Raises SourceLostError when it cannot be opened. `size` (width, height) scales the pictures."""
        Gst = gst.namespace("Gst")
        self._name = name_of(spec)
        self._live = not isinstance(spec, File)
        self._lag = Lag()
        self._pixels = Pixels()
        self._fault: str | None = None
        tail = _LIVE_TAIL if self._live else _FILE_TAIL
        self._pipeline = gst.launch(f"{_HEADS[type(spec)]} ! {tail.format(convert=converter(size))}")
        self._sink = self._pipeline.get_by_name("frames")
        head = self._pipeline.get_by_name("head")
        head.set_property(_ADDRESS[type(spec)], getattr(spec, _FIELD[type(spec)]))
        if isinstance(spec, Network):
            head.connect("select-stream", _only_video)  # sound and data of the source stay where they are
        self._pipeline.use_clock(Gst.SystemClock.obtain())  # CLOCK_MONOTONIC, as time.monotonic_ns
        if self._pipeline.set_state(Gst.State.PLAYING) == Gst.StateChangeReturn.FAILURE:
            reason = gst.fault_of(self._pipeline)
            self.close()
            raise SourceLostError(reason or "it cannot be opened")

    def read(self, timeout_s: float) -> Frame | None:
        """The newest frame."""
        sample = self._sink.try_pull_sample(round(timeout_s * 1e9))
        # Each time: the bus keeps what nobody takes from it, such as the tags of a week.
        self._fault = self._fault or gst.fault_of(self._pipeline)
        if sample is not None:
            return self._frame(sample)
        if self._fault:
            raise SourceLostError(self._fault)
        if self._sink.get_property("eos"):
            # rtspsrc reports a server that went away as the end of the stream, not as an error.
            raise (
                SourceLostError("the source closed the stream")
                if self._live
                else SourceEndedError(self._name)
            )
        return None

    def _frame(self, sample: Any) -> Frame:
        fps, running_ns, now_ns = gst.rate_of(sample), gst.running_time_ns(sample), time.monotonic_ns()
        taken_ns = now_ns if running_ns is None else self._pipeline.get_base_time() + running_ns
        if self._live and self._lag.grows(now_ns - taken_ns, now_ns):
            # What waits lies before the decoder, where nothing may be left out: begin again with what is new.
            raise SourceLostError("it falls behind: decoding is slower than the source; let it send less")
        return Frame(self._pixels(sample), min(taken_ns, now_ns), self._index(sample, fps), fps)

    def _index(self, sample: Any, fps: float) -> int | None:
        """The frame's number in a file of constant rate; a camera has none."""
        position_ns = None if self._live else gst.stream_time_ns(sample)
        return None if position_ns is None or not fps else round(position_ns * fps / 1e9)

    def close(self) -> None:
        """Stop the pipeline."""
        self._pipeline.set_state(gst.namespace("Gst").State.NULL)


def _only_video(_head: Any, _number: int, caps: Any) -> bool:
    return "media=(string)video" in caps.to_string()
