"""A deployment on this machine: kept, proven, tried out, and settled or taken back."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.deploy.proof import prove
from edgepose.runtime.deploy.service import Service
from edgepose.runtime.deploy.shelf import Release, Shelf
from edgepose.runtime.deploy.streaming import Streaming
from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.stream.client import watch_rtsp
from edgepose.runtime.stream.counters import Watched
from edgepose.runtime.stream.grammar import Endpoint
from edgepose.runtime.topdown.pair import require_pair

log = logging.getLogger(__name__)

PICTURES = 10  # with poses, of a camera that gives a signal: then a release streams
_AGAIN_S = 0.5
_RUNNING_S = 10.0  # within which what is live already shows that it streams
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Deployed:
    """What came of it."""

    name: str
    release: str  # that is live
    before: str | None  # that can be gone back to
    url: str  # without a password in it
    proof: dict[str, Any] | None  # None: it was proven when it first went live
    watched: dict[str, Any]  # what its first pictures were like

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def sentence(self) -> str:
        """For people, one line."""
        runs = f" on {runs_on(self.proof)}" if self.proof else ""
        before = f"; before it: {self.before}" if self.before else ""
        late = self.watched["latency_p50_ms"]
        return f"{self.name}: {self.release} streams{runs} at {self.url}, {late:.0f} ms late{before}"


def runs_on(proof: dict[str, Any]) -> str:
    """What was proven, in words."""
    second = f", refined on {proof['second']['runs']}" if "second" in proof else ""
    return f"{proof['runs']}{second}"


@dataclass(frozen=True, slots=True)
class Wish:
    """How a bundle is to be streamed, as far as it was said."""

    options: Sequence[str]  # of `edgepose stream`; none: those of what is live
    login: str | None  # NAME:PASSWORD for viewers; None: that of what is live; empty: nobody is asked for one
    second: Bundle | None = None  # that refines what the bundle finds; goes with the options

    def refiner(self, live: Release | None) -> Bundle | None:
        """The bundle that is to refine: where neither it nor options were said, that of what is live."""
        if self.second is not None or self.options or live is None or live.second is None:
            return self.second
        return Bundle.open(live.second)

    def granted(self, live: Release | None) -> Streaming:
        """Raises EdgeposeError, or click's UsageError, for what cannot be a service."""
        refines = self.refiner(live) is not None
        if live is None:
            if not self.options:
                raise EdgeposeError(
                    "nothing is live here whose options could hold; give them: "
                    "edgepose deploy BUNDLE --here -- --source v4l2:/dev/video0 --rtsp :8554/pose"
                )
            return Streaming.of(self.options, self.login or None, refines)
        known = live.streaming()
        login = known.login if self.login is None else self.login
        return Streaming.of(self.options or known.options, login or None, refines)


def deployed(shelf: Shelf, bundle: Bundle, wish: Wish, patience_s: float) -> Deployed:
    """Take the bundle live here, if it is proven and streams within `patience_s`; else all stays as it was.

    Raises what `Wish.granted` and `require_pair` raise, GateFailed for one that fails its proof,
    HardwareError when it does not stream: what was live then streams again, or the sentence says that it does
    not.
    """
    with shelf.locked():
        _end_of_last_trial(shelf)
        live = shelf.live()
        streaming, second = wish.granted(live), wish.refiner(live)
        if second is not None:
            require_pair(bundle, second)
        release = shelf.stage(bundle, streaming, second)
        if release == shelf.live() and (watched := _streams(release)):
            return _told(shelf, None, watched)
        with _discarded_on_error(shelf, release):
            log.info("%s: %s is being proven", shelf.name, release.id)
            proof = prove(Bundle.open(release.bundle), streaming)
            if release.second is not None:
                proof["second"] = prove(Bundle.open(release.second), streaming)
            watched = _tried(shelf, release, patience_s)
        return _told(shelf, proof, watched)


def back(shelf: Shelf, patience_s: float) -> Deployed:
    """Take live again what was live before. Raises EdgeposeError without it, else as `deployed`."""
    with shelf.locked():
        _end_of_last_trial(shelf)
        before = shelf.before()
        if before is None:
            raise EdgeposeError(f"{shelf.name}: there is nothing to go back to here")
        watched = _tried(shelf, before, patience_s)
        return _told(shelf, None, watched)


def _streams(release: Release) -> Watched | None:
    """Its pictures, when nothing needs to be done for them."""
    with contextlib.suppress(HardwareError):
        return seen(_url(release.streaming().endpoint, login=True), _RUNNING_S)
    return None


def _told(shelf: Shelf, proof: dict[str, Any] | None, watched: Watched) -> Deployed:
    live, before = shelf.live(), shelf.before()
    assert live is not None
    url = _url(live.streaming().endpoint, login=False)
    return Deployed(shelf.name, live.id, before.id if before else None, url, proof, watched.as_dict())


def _end_of_last_trial(shelf: Shelf) -> None:
    if shelf.on_trial:
        log.warning("%s: the last deployment was killed; what was live before it counts", shelf.name)
        shelf.go_back()


@contextlib.contextmanager
def _discarded_on_error(shelf: Shelf, release: Release) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shelf.discard(release)
        raise


def _tried(shelf: Shelf, release: Release, patience_s: float) -> Watched:
    """Start it, and see it stream; else go back, whatever the reason was."""
    service = Service(shelf)
    service.install()
    shelf.try_out(release)
    try:
        watched = _streaming(service, release, patience_s)
    except BaseException as error:
        was = shelf.go_back()
        told = _restored(service, was, patience_s)
        if isinstance(error, HardwareError):
            raise HardwareError(f"{shelf.name}: {release.id} does not stream: {error}; {told}") from error
        log.warning("%s: %s", shelf.name, told)
        raise
    shelf.settle()
    return watched


def _restored(service: Service, was: Release | None, patience_s: float) -> str:
    """Start what was live before, and say how that went."""
    if was is None:
        service.stop()
        return "nothing was live here before, and nothing is now"
    try:
        _streaming(service, was, patience_s)
    except HardwareError as error:
        return f"{was.id}, which was live before, is started again but does not stream either: {error}"
    return f"{was.id}, which was live before, streams again"


def _streaming(service: Service, release: Release, patience_s: float) -> Watched:
    """Start what is live; its first pictures. Raises HardwareError when too few come in time."""
    begin_s = time.time()
    service.restart()
    url = _url(release.streaming().endpoint, login=True)
    try:
        return seen(url, patience_s, lambda: service.has_failed)
    except HardwareError as error:
        words = service.last_words(begin_s)
        if service.has_failed and words:
            raise HardwareError(words) from error
        raise HardwareError(f"{error}; its last words: {words}" if words else str(error)) from error


def seen(url: str, patience_s: float, has_failed: Callable[[], bool] = lambda: False) -> Watched:
    """Watch a stream until it has shown enough pictures of a camera that gives a signal, with their poses.

    Raises HardwareError when they have not come within `patience_s`, or `has_failed`.
    """
    end_s = time.monotonic() + patience_s
    while True:
        watched = Watched()
        try:
            with contextlib.closing(watch_rtsp(url, patience_s, end_s)) as coming:
                for frame in coming:
                    watched.add(frame.received_ns, frame.poses)
                    if watched.with_poses - watched.no_signal >= PICTURES:
                        return watched
        except HardwareError:
            if time.monotonic() + _AGAIN_S > end_s or has_failed():
                raise
        time.sleep(_AGAIN_S)


def _url(endpoint: Endpoint, *, login: bool) -> str:
    """Where this machine finds the stream."""
    host = _EVERYWHERE.get(endpoint.host, endpoint.host)
    url = Endpoint(host, endpoint.port, endpoint.mount).url(endpoint.port)
    if endpoint.login is None or not login:
        return url
    name, password = (quote(word, safe="") for word in (endpoint.login.name, endpoint.login.password))
    return url.replace("//", f"//{name}:{password}@", 1)
