"""A running stream: source, network, overlay, encoder and server, joined so that the oldest is dropped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.overlay import draw
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.skeleton import COCO17, Skeleton
from edgepose.runtime.stream.counters import Summary, Tally
from edgepose.runtime.stream.encoder import Codec, Encoder, Picture, choose
from edgepose.runtime.stream.grammar import FASTEST, Endpoint
from edgepose.runtime.stream.lines import Stamp, no_signal_line, pose_line
from edgepose.runtime.stream.mailbox import LatestOnly
from edgepose.runtime.stream.pace import Answers, RateLimit
from edgepose.runtime.stream.picture import fitted, no_signal, stream_size
from edgepose.runtime.stream.rtsp import Hub, Server
from edgepose.runtime.stream.source import Frame, Source, SourceLostError
from edgepose.runtime.stream.supervise import Listener, Patience, Supervisor

log = logging.getLogger(__name__)
_POLL_S = 0.1
_JOIN_S = 0.6  # for each of at most three threads that hang at the end: with the rest it stays under 3 s
_APART_NS = 1_000_000  # between two pictures; a tick of RTP's 90 kHz clock is 11,111 ns
_NOMINAL_FPS = 30  # of a source that does not say

Estimate = Callable[[U8], Poses]
OVERLAYS = ("none", "latest", "sync")


@dataclass(frozen=True, slots=True)
class Input:
    """Where frames come from. `open` is called again after each loss."""

    name: str
    open: Callable[[], Source]
    patience: Patience = field(default_factory=Patience)
    is_hardware: bool = False  # a camera or network: its absence is no mistake in what the user gave
    once: bool = False  # stop at the end instead of beginning again


@dataclass(frozen=True, slots=True)
class Settings:
    """How the stream looks."""

    endpoint: Endpoint
    overlay: str = "sync"  # none | latest: video never waits; sync: each frame waits for its own poses
    size: tuple[int, int] | None = None  # pixels, even; None: the source's
    fps: int | None = None  # at most; None: the source's
    threshold: float = 0.25  # expected OKS below which nobody is shown
    skeleton: Skeleton = COCO17


def _nominal_fps(said: float, limit: int | None) -> int:
    """What the encoder shares its bits by: a rate far above the real one leaves too few for each picture."""
    rate = round(said) if 1 <= round(said) <= FASTEST else _NOMINAL_FPS  # some sources say 90000
    return min(rate, limit or rate)


class Stream:
    """Serves poses while its `with` block lasts.

    `open_estimator` is entered and left in the one thread that runs the network, because a CUDA context
    belongs to a thread. `on_line` gets each frame's JSON line in that thread.
    """

    def __init__(
        self,
        settings: Settings,
        source: Input,
        open_estimator: Callable[[], AbstractContextManager[Estimate]],
        on_line: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._open_estimator = open_estimator
        self._on_line = on_line
        self._hub = Hub()
        self._mailbox: LatestOnly[tuple[Frame, int]] = LatestOnly()
        self._limit = RateLimit(settings.fps) if settings.fps else None
        listener = Listener(self._on_frame, self._on_silence)
        self._supervisor = Supervisor(source.open, listener, source.patience, source.once)
        self._tally = Tally()
        self._answers = Answers()
        self._late = False  # the network, when it was looked at last
        self._stop = threading.Event()  # the threads leave
        self._done = threading.Event()  # `wait` returns
        self._asked = False  # set by a signal handler, which may not touch an Event's lock
        self._chosen, self._loaded, self._streaming = (threading.Event() for _ in range(3))
        self._failure: BaseException | None = None
        self._threads: dict[str, threading.Thread] = {}
        self._server: Server | None = None
        self._codec: Codec | None = None
        self._encoder: Encoder | None = None
        self._newest_ns = 0  # capture time of the newest picture
        self._size = (0, 0)  # width, height in pixels; known with the first frame
        self._shown = Poses.empty()  # the newest poses

    @property
    def url(self) -> str:
        """Where viewers find it, with the port that was bound."""
        assert self._server is not None, "the stream was not entered"
        return self._server.url

    def __enter__(self) -> Stream:
        try:
            self._server = Server(self._settings.endpoint, self._hub)  # first: a port in use is quickly said
            self._start("choose", self._choose, self._chosen)
            # Before the camera: its frames should find somebody who reads them.
            self._start("estimate", self._run_estimator, self._loaded)
            self._start("capture", self._run_capture, self._streaming)
            self._server.serve()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request_stop(self) -> None:
        """From any thread or signal handler: `wait` returns soon."""
        self._asked = True

    @property
    def is_done(self) -> bool:
        """Whether a stop was asked for, the source came to its end, or something failed."""
        return self._asked or self._done.is_set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until the stream is done or the time is over. Raises what went wrong in any of its threads."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.is_done and (end_s is None or time.monotonic() < end_s):
            self._done.wait(_POLL_S if end_s is None else min(_POLL_S, max(0.0, end_s - time.monotonic())))
            self._require_answers()
        self._raise_failure()

    def _require_answers(self) -> None:
        """Raises HardwareError for a network late twice in a row: a machine may stand still between."""
        silent_s, was_late = self._answers.overdue_s(time.monotonic()), self._late
        self._late = silent_s is not None
        if silent_s is not None and was_late and not self.is_done:
            raise HardwareError(
                f"the network has not answered for {silent_s:.0f} s: its GPU or driver hangs; start again"
            )

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _start(self, name: str, work: Callable[[], None], ready: threading.Event) -> None:
        """Begin `work` and wait until it is `ready` or the stream done; nothing begins in one that is."""
        if self.is_done:
            return
        self._begin(name, work)
        while not ready.is_set() and not self.is_done:
            ready.wait(_POLL_S)
        self._raise_failure()

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        self._threads[name] = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
        self._threads[name].start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised again in the thread that waits
            self._failure = self._failure or error
            self._done.set()

    def _choose(self) -> None:
        self._codec = choose()  # in a thread: a driver without its chip may take 20 s to say so
        self._chosen.set()

    # The capture thread.

    def _run_capture(self) -> None:
        try:
            self._supervisor.run()
        except SourceLostError as lost:
            raise self._end_of_source(lost) from lost
        self._drain()

    def _end_of_source(self, lost: SourceLostError) -> EdgeposeError:
        """What to tell the user about a loss that nothing mends."""
        name = self._source.name
        if self._source.is_hardware:
            return HardwareError(f"{name}: no picture from it ({lost}); check it and start again")
        if self._tally.frames_in:
            return EdgeposeError(f"{name}: it breaks off ({lost}); give a video file that plays to its end")
        return EdgeposeError(f"{name}: no picture in it ({lost}); give a video file that plays")

    def _drain(self) -> None:
        """The last frames go through network and encoder before the stream counts as ended."""
        self._mailbox.close()
        self._join("estimate")
        if self._encoder:
            self._encoder.end()
            self._join("encode")
        self._done.set()

    def _join(self, name: str) -> None:
        while self._threads[name].is_alive() and not self._stop.is_set():
            self._threads[name].join(_POLL_S)

    def _on_frame(self, frame: Frame) -> None:
        if self._limit and not self._limit.admits(frame.clock_ns):
            return
        if self._encoder is None:
            self._open_encoder(frame)
        frame = Frame(fitted(frame.image, self._size), self._later(frame.clock_ns), frame.index)
        self._tally.frames_in += 1
        if self._settings.overlay != "sync":
            self._show(frame, self._shown)
        self._mailbox.put((frame, self._tally.frames_in - 1))

    def _later(self, clock_ns: int) -> int:
        """`clock_ns`, or a little after the newest picture: no two pictures may share an RTP timestamp.

        A network camera that catches up gives several pictures one time.
        """
        self._newest_ns = max(clock_ns, self._newest_ns + _APART_NS)
        return self._newest_ns

    def _open_encoder(self, first: Frame) -> None:
        assert self._codec is not None
        self._size = stream_size(first.image, self._settings.size)
        picture = Picture(*self._size, _nominal_fps(first.fps, self._settings.fps))
        encoder = Encoder(self._codec, picture, first.clock_ns, self._on_unit)
        self._tally.first_ns = first.clock_ns
        self._hub.wants_key = encoder.force_key
        self._encoder = encoder
        self._begin("encode", lambda: encoder.run(self._stop))
        self._streaming.set()

    def _on_silence(self) -> None:
        now_ns = self._later(time.monotonic_ns())
        self._shown = Poses.empty()
        self._hub.push_poses(no_signal_line(self._stamp(now_ns, None, self._tally.frames_in)), now_ns)
        self._show(Frame(no_signal(self._size), now_ns), self._shown)

    def _show(self, frame: Frame, poses: Poses) -> None:
        image = frame.image
        if self._settings.overlay != "none" and len(poses):
            image = image.copy()  # the network reads the same frame
            draw(image, poses, self._settings.skeleton)
        assert self._encoder is not None
        self._encoder.push(image, frame.clock_ns)

    # The thread that owns the network.

    def _run_estimator(self) -> None:
        with self._open_estimator() as estimate:
            self._loaded.set()
            while not self._stop.is_set():
                item = self._mailbox.take(_POLL_S)
                if item is not None:
                    self._estimate(estimate, *item)
                elif self._mailbox.closed:
                    return

    def _estimate(self, estimate: Estimate, frame: Frame, seq: int) -> None:
        self._answers.begin(time.monotonic())
        found = estimate(frame.image)
        self._answers.end(time.monotonic())
        poses = self._whole(found.above(self._settings.threshold))
        stamp = self._stamp(frame.clock_ns, frame.index, seq)
        self._shown = poses
        self._tally.frames_estimated += 1
        self._tally.pose_ms.add(stamp.latency_ms)
        line = pose_line(stamp, poses)
        self._hub.push_poses(line, frame.clock_ns)
        if self._settings.overlay == "sync":
            self._show(frame, poses)
        self._on_line(line)

    def _whole(self, poses: Poses) -> Poses:
        """Without the people whose pose is no numbers, which neither JSON nor a picture can hold."""
        finite = poses.finite()
        broken = len(poses) - int(np.count_nonzero(finite))
        if broken and not self._tally.broken:
            log.warning("a pose that is no numbers: its person is left out, and counted in the summary")
        self._tally.broken += broken
        return poses[finite]

    def _stamp(self, clock_ns: int, index: int | None, seq: int) -> Stamp:
        age_ns = time.monotonic_ns() - clock_ns
        pts_ns = clock_ns - (self._tally.first_ns or clock_ns)
        return Stamp(seq, index, pts_ns, time.time_ns() - age_ns, *self._size, latency_ms=age_ns / 1e6)

    # The encoder's thread.

    def _on_unit(self, buffer: object, clock_ns: int, is_key: bool) -> None:
        self._tally.encoded(clock_ns, time.monotonic_ns())
        self._hub.push_video(buffer, clock_ns, is_key)

    # The end.

    def close(self) -> None:
        """Stop everything; returns within 3 s even while the network is busy or the encoder hangs."""
        self._supervisor.stop()
        self._stop.set()
        if self._server:
            self._server.close()
        if self._encoder:
            # Frees whoever waits to push a frame. In a thread: a driver that hangs does not end, either.
            self._begin("close", self._encoder.close)
        for thread in list(self._threads.values()):
            thread.join(_JOIN_S)

    def summary(self, lines_dropped: int = 0) -> Summary:
        """What was done so far."""
        tally, seconds = self._tally, self._tally.seconds()
        return Summary(
            seconds=seconds,
            frames_in=tally.frames_in,
            frames_estimated=tally.frames_estimated,
            frames_dropped=self._mailbox.dropped,
            frames_out=tally.frames_out,
            fps=tally.frames_out / seconds if seconds else 0.0,
            video_latency_p50_ms=tally.video_ms.percentile(50),
            video_latency_p95_ms=tally.video_ms.percentile(95),
            pose_latency_p50_ms=tally.pose_ms.percentile(50),
            pose_latency_p95_ms=tally.pose_ms.percentile(95),
            clients=self._server.players if self._server else 0,
            losses=self._supervisor.losses,
            broken=tally.broken,
            lines_dropped=lines_dropped,
            encoder=self._codec.element if self._codec else "none",
        )
