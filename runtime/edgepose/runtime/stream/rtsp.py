"""The RTSP server: every viewer gets the encoded video and the poses of one session on the same clock."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgepose.runtime.errors import HardwareError
from edgepose.runtime.stream import gst, klv
from edgepose.runtime.stream.gate import KeyGate
from edgepose.runtime.stream.grammar import Endpoint, Login
from edgepose.runtime.stream.lines import not_estimated_line
from edgepose.runtime.stream.pairing import Recent

log = logging.getLogger(__name__)
_ROLE = "viewer"
_BACKLOG_BYTES = 4_000_000  # waiting for one viewer; beyond it that viewer loses frames, nobody else does
_RECENT = 240  # messages kept for a viewer whose first key frame is still in the encoder
_SWEEP_S = 2.0
_GOODBYE_S = 0.5  # for viewers' threads to end before the interpreter does, whose code they call

# timestamp-offset=0 on both: frame and poses with one PTS get one RTP timestamp, the exact key of pairing.
_MEDIA = (
    "( appsrc name=video is-live=true format=time block=false max-bytes=8000000 "
    "caps=video/x-h264,stream-format=byte-stream,alignment=au ! h264parse ! "
    "rtph264pay name=pay0 pt=96 config-interval=-1 timestamp-offset=0 "
    "appsrc name=poses is-live=true format=time block=false max-bytes=8000000 caps=meta/x-klv,parsed=true ! "
    "rtpklvpay name=pay1 pt=97 timestamp-offset=0 )"
)


@dataclass(slots=True, eq=False)
class _Viewer:
    """The media of one viewer."""

    element: Any
    video: Any  # appsrc
    poses: Any  # appsrc
    gate: KeyGate = field(default_factory=KeyGate)

    def base_ns(self) -> int | None:
        """The media's base time on the monotonic clock; None while it does not play."""
        Gst = gst.namespace("Gst")
        if self.video.get_state(0)[1] != Gst.State.PLAYING or self.poses.get_state(0)[1] != Gst.State.PLAYING:
            return None
        return int(self.element.get_base_time())


class Hub:
    """Hands access units and messages to all who watch; a viewer that cannot keep up loses only its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._viewers: dict[Any, _Viewer] = {}
        self._recent: Recent[int, bytes] = Recent(_RECENT)  # capture time -> KLV item
        self.wants_key: Callable[[], None] = lambda: None

    def add(self, media: Any) -> None:
        """A viewer's media was made; it asks for a key frame until it has one."""
        element = media.get_element()
        viewer = _Viewer(element, element.get_by_name("video"), element.get_by_name("poses"))
        with self._lock:
            self._viewers[media] = viewer
        self.wants_key()

    def remove(self, media: Any) -> None:
        """The viewer left."""
        with self._lock:
            self._viewers.pop(media, None)

    def push_video(self, buffer: Any, clock_ns: int, is_key: bool) -> None:
        """An access unit of the frame captured at `clock_ns`."""
        for viewer in self._present():
            base_ns = viewer.base_ns()
            if base_ns is None or clock_ns < base_ns:
                viewer.gate.shut()  # it pauses or has just begun
                continue
            was_open = viewer.gate.is_open
            # A viewer that lost frames must be well ahead again, or a slow one would ask all the time.
            most_bytes = _BACKLOG_BYTES if was_open else _BACKLOG_BYTES // 2
            has_room = viewer.video.get_current_level_bytes() < most_bytes
            if not viewer.gate.video(is_key, has_room):
                if has_room:  # key frames are everybody's: not for one that could not take it
                    self.wants_key()
                continue
            if not was_open:
                self._catch_up(viewer, base_ns, clock_ns)
            viewer.video.push_buffer(_copy_of(buffer, clock_ns - base_ns))

    def push_poses(self, line: str, clock_ns: int) -> None:
        """The message of the frame captured at `clock_ns`."""
        item = klv.encode(line.encode())
        with self._lock:
            self._recent.put(clock_ns, item)
        for viewer in self._present():
            base_ns = viewer.base_ns()
            if base_ns is not None and clock_ns >= base_ns and viewer.gate.is_open:
                self._push_item(viewer, item, clock_ns - base_ns)

    def _catch_up(self, viewer: _Viewer, base_ns: int, clock_ns: int) -> None:
        """Messages overtake their frame in the encoder: send those of the first key frame and later."""
        with self._lock:
            items = self._recent.since(clock_ns)
        for when_ns, item in items or [(clock_ns, klv.encode(not_estimated_line().encode()))]:
            self._push_item(viewer, item, when_ns - base_ns)

    def _push_item(self, viewer: _Viewer, item: bytes, pts_ns: int) -> None:
        if viewer.poses.get_current_level_bytes() < _BACKLOG_BYTES:
            buffer = gst.namespace("Gst").Buffer.new_wrapped(item)
            buffer.pts = pts_ns
            viewer.poses.push_buffer(buffer)

    def _present(self) -> list[_Viewer]:
        with self._lock:
            return list(self._viewers.values())


def _copy_of(buffer: Any, pts_ns: int) -> Any:
    """A new header on the same memory. Gst.Buffer.copy() from Python gives the same buffer to everybody."""
    Gst = gst.namespace("Gst")
    flags = Gst.BufferCopyFlags.FLAGS | Gst.BufferCopyFlags.TIMESTAMPS | Gst.BufferCopyFlags.MEMORY
    copy = buffer.copy_region(flags, 0, buffer.get_size())
    copy.pts = copy.dts = pts_ns
    return copy


class Server:
    """An RTSP server bound to its address from the beginning, with its stream from `serve` on."""

    def __init__(self, endpoint: Endpoint, hub: Hub) -> None:
        """Raises HardwareError when the address cannot be bound, MissingLibrary without GStreamer."""
        GstRtspServer, GLib = gst.namespace("GstRtspServer"), gst.namespace("GLib")
        gst.require_elements("appsrc", "h264parse", "rtph264pay", "rtpklvpay")
        self._endpoint = endpoint
        self._hub = hub
        self._players: set[int] = set()
        self._sockets: dict[int, Any] = {}  # of the open connections
        self._server = GstRtspServer.RTSPServer()
        self._server.set_address(endpoint.host)
        self._server.set_service(str(endpoint.port))
        # With the default of one thread, one hanging viewer held up the others for 19 s.
        self._server.get_thread_pool().set_max_threads(4)
        self._server.connect("client-connected", self._on_client)
        self._context = GLib.MainContext.new()
        try:
            self._source = self._server.create_source(None)
        except GLib.Error as error:
            raise HardwareError(
                f"port {endpoint.port} on {endpoint.host} cannot be used ({_reason(error)}); "
                "stop the other program or give another port to --rtsp"
            ) from error
        self._source.attach(self._context)
        self.url = endpoint.url(self._server.get_bound_port())
        self._running = True
        self._thread = threading.Thread(target=self._run, name="rtsp", daemon=True)
        self._thread.start()

    @property
    def players(self) -> int:
        """Connections that asked to play since the start."""
        return len(self._players)

    def serve(self) -> None:
        """From now on the mount answers."""
        GstRtspServer = gst.namespace("GstRtspServer")
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(_MEDIA)
        # A media for each viewer: a shared one answers 503 to who comes while its last viewer is leaving, and
        # newcomers begin in the middle of a GOP. It costs 0.3 % of a core more for each of 32 viewers.
        factory.set_shared(False)
        factory.set_suspend_mode(GstRtspServer.RTSPSuspendMode.NONE)
        factory.connect("media-configure", self._on_media)
        if self._endpoint.login:
            self._protect(factory, self._endpoint.login)
        self._server.get_mount_points().add_factory(self._endpoint.mount, factory)

    def _protect(self, factory: Any, login: Login) -> None:
        Gst, GstRtspServer = gst.namespace("Gst"), gst.namespace("GstRtspServer")
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(gst.namespace("GstRtsp").RTSPAuthMethod.DIGEST)  # basic sends the password
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", _ROLE)
        auth.add_digest(login.name, login.password, token)
        rights = f"{_ROLE},media.factory.access=true,media.factory.construct=true"
        factory.add_role_from_structure(Gst.Structure.new_from_string(rights))
        self._server.set_auth(auth)

    def _on_media(self, _factory: Any, media: Any) -> None:
        media.connect("unprepared", self._hub.remove)
        self._hub.add(media)

    def _on_client(self, _server: Any, client: Any) -> None:
        connection = time.monotonic_ns()
        self._sockets[connection] = client.get_connection().get_read_socket()
        client.connect("play-request", self._on_play, connection)
        client.connect("closed", self._on_closed, connection)

    def _on_play(self, _client: Any, _context: Any, connection: int) -> None:
        self._players.add(connection)
        self._hub.wants_key()

    def _on_closed(self, _client: Any, connection: int) -> None:
        self._sockets.pop(connection, None)

    def _run(self) -> None:
        GLib = gst.namespace("GLib")
        sweep = GLib.timeout_source_new(round(_SWEEP_S * 1000))
        sweep.set_callback(self._sweep)
        sweep.attach(self._context)
        while self._running:
            self._context.iteration(True)
        sweep.destroy()

    def _sweep(self, *_nothing: Any) -> bool:
        """Without it, viewers that died silently stay for ever."""
        self._server.get_session_pool().cleanup()
        return True

    def close(self) -> None:
        """Refuse new viewers, then send the present ones away."""
        if not self._running:
            return
        self._source.destroy()
        del self._source  # the last reference: only then is the port free again
        self._running = False
        self._context.wakeup()
        self._thread.join(1.0)
        # Only its own thread may close a client: while that reads a request, RTSPClient.close() by another
        # takes its stream away, and it reads nothing for ever. So each finds its connection at an end.
        for socket in list(self._sockets.values()):
            with contextlib.suppress(gst.namespace("GLib").Error):  # it has just left
                socket.shutdown(True, True)
        end_s = time.monotonic() + _GOODBYE_S
        while self._sockets and time.monotonic() < end_s:
            time.sleep(0.005)


def _reason(error: Any) -> str:
    return str(error.message).rpartition(": ")[2]
