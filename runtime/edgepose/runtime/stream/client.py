"""A small reader of our own streams: pictures and poses of one RTSP session, paired by RTP timestamp."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from edgepose.runtime.errors import HardwareError
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import gst, klv
from edgepose.runtime.stream.grammar import redacted
from edgepose.runtime.stream.pairing import Recent
from edgepose.runtime.stream.pixels import CAPS, Pixels

_POLL_S = 0.05
_GRACE_S = 1.0  # for poses that arrive after their picture
_TRACKED = 2000  # packets whose RTP timestamp is remembered until their picture is decoded

_PIPELINE = (
    # protocols=tcp: nothing is lost; latency=0: nothing is waited for.
    "rtspsrc name=source protocols=tcp latency=0 tcp-timeout=5000000 teardown-timeout=200000000 "
    "rtph264depay name=video ! h264parse ! avdec_h264 max-threads=1 ! videoconvert ! "
    f"{CAPS} ! appsink name=frames sync=false async=false max-buffers=500 "
    "rtpklvdepay name=data ! appsink name=poses sync=false async=false max-buffers=500"
)
_ENTRANCE = {"H264": "video", "SMPTE336M": "data"}  # RTP encoding name -> depayloader


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedFrame:
    """A decoded picture (H, W, 3) BGR with the JSON message of the same RTP timestamp.

    `poses` is None when no message came: with `--overlay none|latest` not every frame is estimated.
    """

    image: U8
    rtp_timestamp: int  # 90 kHz
    received_ns: int  # when it was decoded here, UTC nanoseconds
    poses: dict[str, Any] | None


class _Reader:
    """One session. Pads come up in GStreamer's threads, everything else is the caller's."""

    def __init__(self, url: str) -> None:
        gst.require_elements("rtspsrc", "rtph264depay", "avdec_h264", "rtpklvdepay")
        self._lock = threading.Lock()
        # PTS -> RTP timestamps in order: the jitter buffer may give pictures that came together one PTS.
        self._timestamps: dict[str, Recent[int, list[int]]] = {
            n: Recent(_TRACKED) for n in _ENTRANCE.values()
        }
        self.pipeline = gst.launch(_PIPELINE)
        self.frames, self.poses = (self.pipeline.get_by_name(name) for name in ("frames", "poses"))
        source = self.pipeline.get_by_name("source")
        source.set_property("location", url)
        source.connect("pad-added", self._on_pad)
        self.pipeline.set_state(gst.namespace("Gst").State.PLAYING)

    def _on_pad(self, _source: Any, pad: Any) -> None:
        Gst = gst.namespace("Gst")
        structure = Gst.Structure.new_from_string(pad.get_current_caps().to_string())
        name = _ENTRANCE.get(structure.get_string("encoding-name"))
        if name:
            pad.add_probe(Gst.PadProbeType.BUFFER, self._on_packet, name)
            pad.link(self.pipeline.get_by_name(name).get_static_pad("sink"))

    def _on_packet(self, _pad: Any, info: Any, name: str) -> Any:
        buffer = info.get_buffer()
        with gst.mapped(buffer) as data, self._lock:
            timestamp = int.from_bytes(data[4:8].tobytes(), "big")  # RFC 3550 section 5.1
            known = self._timestamps[name].get(buffer.pts) or []
            if timestamp not in known:  # several packets make one picture
                self._timestamps[name].put(buffer.pts, [*known, timestamp])
        return gst.namespace("Gst").PadProbeReturn.OK

    def timestamp(self, name: str, sample: Any) -> int | None:
        """The RTP timestamp of what became this sample."""
        with self._lock:
            known = self._timestamps[name].get(sample.get_buffer().pts)
            return known.pop(0) if known else None

    def close(self) -> None:
        self.pipeline.set_state(gst.namespace("Gst").State.NULL)


def read_rtsp(url: str, frames: int, timeout_s: float = 20.0) -> list[ReceivedFrame]:
    """The first `frames` pictures of a stream with their poses, in order; a password goes into the URL.

    Raises HardwareError when the stream cannot be read, or not so many come within `timeout_s`.
    """
    with contextlib.closing(watch_rtsp(url, timeout_s, time.monotonic() + timeout_s)) as coming:
        return list(itertools.islice(coming, frames))


def watch_rtsp(
    url: str, patience_s: float = 20.0, end_s: float = math.inf, stop: Callable[[], bool] = lambda: False
) -> Generator[ReceivedFrame, None, None]:
    """Pictures with their poses as they come, until `stop`; close it to leave the session.

    A picture whose poses are not there yet waits for them, a second at most. Raises HardwareError when the
    stream cannot be read or ends, no picture comes for `patience_s`, or `end_s` (monotonic) is over.
    """
    reader, pixels = _Reader(url), Pixels()
    waiting: deque[tuple[int, U8, int, float]] = deque()  # RTP timestamp, picture, when: UTC ns, monotonic s
    messages: Recent[int, dict[str, Any]] = Recent(_TRACKED)
    count, last_s = 0, time.monotonic()
    try:
        while not stop():
            if sample := reader.frames.try_pull_sample(round(_POLL_S * 1e9)):
                timestamp = reader.timestamp("video", sample)
                if timestamp is not None:
                    count, last_s = count + 1, time.monotonic()
                    waiting.append((timestamp, pixels(sample), time.time_ns(), last_s))
            _read_message(reader, url, messages)
            while waiting and (messages.get(waiting[0][0]) or time.monotonic() - waiting[0][3] > _GRACE_S):
                timestamp, image, when_ns, _ = waiting.popleft()
                yield ReceivedFrame(image, timestamp, when_ns, messages.pop(timestamp))
            _check(reader, url, f"{count} pictures came", min(end_s, last_s + patience_s))
    finally:
        reader.close()


def _read_message(reader: _Reader, url: str, messages: Recent[int, dict[str, Any]]) -> None:
    while sample := reader.poses.try_pull_sample(0):
        timestamp = reader.timestamp("data", sample)
        try:
            message = json.loads(klv.decode(gst.bytes_of(sample.get_buffer())))
        except ValueError as error:
            raise HardwareError(f"{redacted(url)}: its data are no poses ({error})") from error
        if timestamp is not None and message["people"] is not None:
            messages.put(timestamp, message)


def _check(reader: _Reader, url: str, progress: str, end_s: float) -> None:
    if fault := gst.fault_of(reader.pipeline):
        raise HardwareError(f"{redacted(url)}: cannot be read ({fault})")
    if reader.frames.get_property("eos"):
        raise HardwareError(f"{redacted(url)}: the stream ended; {progress}")
    if time.monotonic() > end_s:
        raise HardwareError(f"{redacted(url)}: too slow; {progress}")
