"""What the hub hands to viewers that jam or pause, told by stand-ins for their elements; a server's end."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgepose.runtime.stream import gst
from edgepose.runtime.stream.rtsp import Hub

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")

FRAME_NS, KEY_EVERY = 40_000_000, 25


@dataclass(eq=False)
class AppSrc:
    """Plays or pauses, holds as many bytes as it is told, keeps what it is given."""

    bytes_waiting: int = 0
    plays: bool = True
    taken: list[Any] = field(default_factory=list)

    def get_state(self, _timeout: int) -> tuple[None, Any, None]:
        State = gst.namespace("Gst").State
        return None, State.PLAYING if self.plays else State.PAUSED, None

    def get_current_level_bytes(self) -> int:
        return self.bytes_waiting

    def push_buffer(self, buffer: Any) -> None:
        self.taken.append(buffer)


@dataclass(eq=False)
class Media:
    """A viewer's media, and its element."""

    video: AppSrc = field(default_factory=AppSrc)
    poses: AppSrc = field(default_factory=AppSrc)
    base_ns: int = 0

    def get_element(self) -> Media:
        return self

    def get_by_name(self, name: str) -> AppSrc:
        return {"video": self.video, "poses": self.poses}[name]

    def get_base_time(self) -> int:
        return self.base_ns


class Broadcast:
    """Access units, each of which says in its only byte whether it is a key frame; the encoder obeys."""

    def __init__(self) -> None:
        self.hub, self.media, self.asked = Hub(), Media(), 0
        self._number, self._wanted = 0, False
        self.hub.add(self.media)
        self.hub.wants_key = self._ask

    def _ask(self) -> None:
        self.asked += 1
        self._wanted = True

    def send(self, units: int) -> None:
        for _ in range(units):
            is_key = self._wanted or self._number % KEY_EVERY == 0
            self._wanted = False
            buffer = gst.namespace("Gst").Buffer.new_wrapped(bytes([is_key]))
            self.hub.push_video(buffer, self._number * FRAME_NS, is_key)
            self._number += 1

    def taken(self) -> list[int]:
        """Since the last call: 1 for a key frame."""
        units = [gst.bytes_of(buffer)[0] for buffer in self.media.video.taken]
        self.media.video.taken.clear()
        return units


def test_a_viewer_that_does_not_read_asks_for_no_key_frames() -> None:
    """They are larger, and everybody gets them. It comes back when half of what waited has been read."""
    broadcast = Broadcast()
    broadcast.send(10)
    assert broadcast.taken() == [1] + [0] * 9
    for bytes_waiting in (5_000_000, 3_000_000):
        broadcast.media.video.bytes_waiting = bytes_waiting
        broadcast.send(17)
    assert (broadcast.taken(), broadcast.asked) == ([], 0)
    broadcast.media.video.bytes_waiting = 1_000_000
    broadcast.send(5)
    assert (broadcast.taken(), broadcast.asked) == ([1, 0, 0, 0], 1)
    broadcast.media.video.bytes_waiting = 3_000_000
    broadcast.send(5)
    assert len(broadcast.taken()) == 5


@pytest.mark.parametrize("paused", [3, 0])
def test_after_a_pause_a_viewer_begins_with_a_key_frame(paused: int) -> None:
    """Frames taken before it plays again are lost to it too, however short the pause was."""
    broadcast = Broadcast()
    broadcast.send(10)
    broadcast.taken()
    broadcast.media.video.plays = False
    broadcast.send(paused)
    broadcast.media.video.plays = True
    broadcast.media.base_ns = (10 + paused + 2) * FRAME_NS
    broadcast.send(6)
    assert broadcast.taken() == [1, 0, 0]


# In a process of its own: what it is about is a thread of GStreamer's that never ends, and its complaints.
_CLOSED_UNDER_CLIENTS_THAT_TALK = """
import contextlib, os, socket, threading, time, urllib.parse
from edgepose.runtime.stream.grammar import parse_endpoint
from edgepose.runtime.stream.rtsp import Hub, Server

def talk():
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as client:
        while True:
            client.sendall(20 * b"OPTIONS rtsp://127.0.0.1/poses RTSP/1.0\\r\\nCSeq: 1\\r\\n\\r\\n")
            if not client.recv(65536):
                return

for _ in range(5):
    server = Server(parse_endpoint("127.0.0.1:0/poses"), Hub())
    server.serve()
    port = urllib.parse.urlsplit(server.url).port
    talkers = [threading.Thread(target=talk, daemon=True) for _ in range(4)]
    for talker in talkers:
        talker.start()
    time.sleep(0.2)
    server.close()
    for talker in talkers:
        talker.join(2)
        assert not talker.is_alive()
time.sleep(0.1)
start_s = time.process_time()
time.sleep(0.5)
print(f"{time.process_time() - start_s:.2f} s")
os._exit(0)  # else a thread that never ends keeps the interpreter
"""


def test_a_server_that_closes_while_clients_talk_leaves_no_thread_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CLOSED_UNDER_CLIENTS_THAT_TALK], capture_output=True, text=True, timeout=60
    )
    assert (done.stderr[:500], done.returncode) == ("", 0)
    assert (
        float(done.stdout.split()[0]) < 0.25
    )  # of half a second; a thread that reads for ever takes all of it
