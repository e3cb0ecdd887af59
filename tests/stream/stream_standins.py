"""Stand-ins: a moving picture with its number in it, a network that knows the truth, a hanging encoder."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream.encoder import Codec
from edgepose.runtime.stream.grammar import parse_endpoint
from edgepose.runtime.stream.session import Input, Settings
from edgepose.runtime.stream.source import Feeder

# An encoder that waits a minute with each frame, and says nothing.
HANGING = Codec("identity", False, "identity sync=true ts-offset=60000000000")
FPS = 25
BITS, CELL = 16, 16  # the frame's number as squares in the top row, coarse enough for H.264


def numbered(index: int, size: tuple[int, int] = (320, 240)) -> U8:
    """A picture whose top row of squares is `index` in binary, with a disc that moves."""
    width, height = size
    image = np.full((height, width, 3), (90, 120, 60), np.uint8)
    for bit in range(BITS):
        image[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if index >> bit & 1 else 0
    x, y = truth(index).keypoints[0, 0]
    cv2.circle(image, (int(x), int(y)), 20, (40, 40, 220), -1)
    return image


def feeder(count: int | None = None) -> Input:
    """Numbered pictures in real time, `count` of them or without end."""
    return Input("numbered", lambda: Feeder("numbered", numbered, FPS, count), once=count is not None)


def number_of(image: U8) -> int:
    """The index painted into a picture, after any lossy coding."""
    row = image[CELL // 2, CELL // 2 : BITS * CELL : CELL, 1]
    return int(sum(1 << bit for bit, value in enumerate(row) if value > 128))


def truth(index: int) -> Poses:
    """One person whose place follows from the frame's number."""
    joints = np.arange(17, dtype=np.float32)
    keypoints = np.stack([60 + (index * 3) % 200 + joints, 80 + 4 * joints], axis=1)[None]  # (1, 17, 2)
    return Poses(
        keypoints, np.full((1, 17), 0.9, np.float32), np.array([0.8], np.float32), boxes_of(keypoints)
    )


def knowing(
    delay_s: float = 0.0, untouched: bool = False
) -> Callable[[], contextlib.AbstractContextManager[Callable[[U8], Poses]]]:
    """Opens a network that reads the number in the picture and answers with the truth after `delay_s`.

    `untouched` insists on the very pixels of `numbered`: the source is lossless and nobody drew in them.
    """

    def estimate(image: U8) -> Poses:
        time.sleep(delay_s)
        number = number_of(image)
        assert not untouched or np.array_equal(image, numbered(number))
        return truth(number)

    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[U8], Poses]]:
        yield estimate

    return opened


def settings(overlay: str = "none", rtsp: str = ":0/pose", **more: object) -> Settings:
    return Settings(parse_endpoint(rtsp), overlay, **more)  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
