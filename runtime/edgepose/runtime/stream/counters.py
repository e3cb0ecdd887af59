"""How many frames, how late: the figures that a stream reports about itself."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgepose.runtime.topdown.cascade import Refined

_KEPT = 20_000  # newest latencies that count, about ten minutes at 30 frames/s; bounds the memory
_COUNTED = ("people", "looked", "again", "broken")  # of each frame's refinement


class Latencies:
    """Latencies in ms, percentiles of the newest ones. May be fed from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values_ms: deque[float] = deque(maxlen=_KEPT)

    def add(self, value_ms: float) -> None:
        """Count one."""
        with self._lock:
            self._values_ms.append(value_ms)

    def percentile(self, percent: float) -> float | None:
        """In ms; None before the first value."""
        with self._lock:
            values = list(self._values_ms)
        return float(np.percentile(values, percent)) if values else None


@dataclass(frozen=True, slots=True)
class RefinedPeople:
    """What a cascade's second model did, over all frames."""

    people: int  # whom the policy would look at
    looked: int  # of these, at whom there was time to look
    again: int  # of these, twice
    broken: int  # of these, whose new pose is no numbers
    p50_ms: float | None  # of a frame, beyond the first model's time
    p95_ms: float | None

    def sentence(self) -> str:
        """For people."""
        broken = f", {self.broken} broken" if self.broken else ""
        return (
            f"refined: {self.looked} of {self.people} people, {self.again} twice{broken}, "
            f"in ms {_pair(self.p50_ms, self.p95_ms)}"
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """What a stream did from its first frame to its end."""

    seconds: float
    frames_in: int  # delivered by the source
    frames_estimated: int  # went through the network
    frames_dropped: int  # never estimated, because a newer one was there
    frames_out: int  # encoded, with those of "no signal"
    fps: float  # encoded frames per second
    video_latency_p50_ms: float | None  # capture -> encoded
    video_latency_p95_ms: float | None
    pose_latency_p50_ms: float | None  # capture -> poses known
    pose_latency_p95_ms: float | None
    clients: int  # that asked to play
    losses: int  # times the source was lost
    broken: int  # people left out, because their pose is no numbers
    lines_dropped: int  # pose lines that their reader did not take
    encoder: str
    refined: RefinedPeople | None = None  # with a second model

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return _rounded(asdict(self))

    def sentence(self) -> str:
        """For people, one line."""
        parts = [
            f"{self.seconds:.1f} s",
            f"frames: {self.frames_in} in, {self.frames_estimated} estimated, "
            f"{self.frames_dropped} dropped, {self.frames_out} out ({self.fps:.1f}/s, {self.encoder})",
            f"latency p50/p95 ms: video {_pair(self.video_latency_p50_ms, self.video_latency_p95_ms)}, "
            f"poses {_pair(self.pose_latency_p50_ms, self.pose_latency_p95_ms)}",
            f"clients served: {self.clients}",
        ]
        if self.refined:
            parts.append(self.refined.sentence())
        if self.losses:
            parts.append(f"source lost: {self.losses} times")
        if self.broken:
            parts.append(f"people left out, their pose no numbers: {self.broken}")
        if self.lines_dropped:
            parts.append(f"pose lines that their reader did not take: {self.lines_dropped}")
        return "; ".join(parts)


class Tally:
    """Counts while the stream runs. Each figure has one writing thread."""

    def __init__(self) -> None:
        self.frames_in = 0  # capture thread
        self.frames_estimated = 0  # the network's thread
        self.broken = 0  # people; the network's thread
        self.frames_out = 0  # encoder's thread
        self.first_ns: int | None = None  # capture time of the first frame, monotonic
        self.last_ns = 0  # when the last frame was encoded
        self.video_ms = Latencies()
        self.pose_ms = Latencies()

    def encoded(self, clock_ns: int, now_ns: int) -> None:
        """The frame captured at `clock_ns` left the encoder."""
        self.frames_out += 1
        self.last_ns = now_ns
        self.video_ms.add((now_ns - clock_ns) / 1e6)

    def seconds(self) -> float:
        """From the first frame's capture to the last one's encoding."""
        return 0.0 if self.first_ns is None else max(0, self.last_ns - self.first_ns) / 1e9


class Watched:
    """What a reader of a stream got. For one thread."""

    def __init__(self) -> None:
        self.pictures = 0
        self.with_poses = 0  # of them: the network may be slower than the camera
        self.no_signal = 0  # of them
        self.people = 0
        self._first_ns: int | None = None  # when the first picture came, UTC, and the last
        self._last_ns = 0
        self._ms = Latencies()  # capture -> here, by both machines' clocks

    def add(self, received_ns: int, message: dict[str, Any] | None) -> None:
        """Count a picture that came at this time, with its pose line if it has one."""
        self.pictures += 1
        self._first_ns = received_ns if self._first_ns is None else self._first_ns
        self._last_ns = received_ns
        if message is not None:
            self.with_poses += 1
            self.no_signal += message.get("signal") is False
            self.people += len(message["people"])
            self._ms.add((received_ns - message["t_ns"]) / 1e6)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        seconds = (self._last_ns - (self._first_ns or self._last_ns)) / 1e9
        return _rounded(
            {
                "pictures": self.pictures,
                "with_poses": self.with_poses,
                "no_signal": self.no_signal,
                "people": self.people,
                "seconds": seconds,
                "fps": (self.pictures - 1) / seconds if seconds > 0 else None,
                "latency_p50_ms": self._ms.percentile(50),
                "latency_p95_ms": self._ms.percentile(95),
            }
        )

    def sentence(self) -> str:
        """For people, one line."""
        known = self.as_dict()
        rate = "" if known["fps"] is None else f" in {known['seconds']:.1f} s ({known['fps']:.1f}/s)"
        quiet = f", {self.no_signal} of no signal" if self.no_signal else ""
        late = _pair(known["latency_p50_ms"], known["latency_p95_ms"])
        return (
            f"{self.pictures} pictures{rate}, {self.with_poses} with poses{quiet}; {self.people} people; "
            f"capture to here p50/p95 ms: {late}"
        )


class Refinements:
    """Counts of a cascade's frames; the network's thread writes."""

    def __init__(self) -> None:
        self._people: Counter[str] = Counter()
        self._ms = Latencies()

    def add(self, frame: Refined) -> None:
        """Count one."""
        self._people.update({name: getattr(frame, name) for name in _COUNTED})
        self._ms.add(1000 * frame.seconds)

    def figures(self) -> RefinedPeople:
        """Of all frames so far."""
        counts = {name: self._people[name] for name in _COUNTED}
        return RefinedPeople(**counts, p50_ms=self._ms.percentile(50), p95_ms=self._ms.percentile(95))


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value)
        if isinstance(value, dict)
        else round(value, 3)
        if isinstance(value, float)
        else value
        for key, value in values.items()
    }


def _pair(p50: float | None, p95: float | None) -> str:
    return "none" if p50 is None or p95 is None else f"{p50:.0f}/{p95:.0f}"
