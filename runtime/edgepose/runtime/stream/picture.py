"""What is shown: pictures fitted to the stream's size, and the one that says there is no signal."""

from __future__ import annotations

import cv2
import numpy as np

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream.grammar import LARGEST, SMALLEST

_GREY, _WHITE = 48, (230, 230, 230)


def stream_size(image: U8, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of the stream: as wanted, else the picture's, cut to the even sides that H.264 needs.

    Raises EdgeposeError when H.264 cannot carry it.
    """
    height, width = image.shape[:2]
    size = wanted or (width // 2 * 2, height // 2 * 2)
    if not all(SMALLEST <= side <= LARGEST for side in size):
        raise EdgeposeError(
            f"the pictures are {width}x{height}, which H.264 cannot carry; give --size, such as 640x480"
        )
    return size


def fitted(image: U8, size: tuple[int, int]) -> U8:
    """(H, W, 3) in the stream's (width, height): one odd row or column is cut, anything else is scaled."""
    height, width = image.shape[:2]
    if (width // 2 * 2, height // 2 * 2) == size:
        return image[: size[1], : size[0]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def no_signal(size: tuple[int, int]) -> U8:
    """A grey picture that says so."""
    image = np.full((size[1], size[0], 3), _GREY, np.uint8)
    scale = size[0] / 400
    (width, height), _ = cv2.getTextSize("no signal", cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    place = ((size[0] - width) // 2, (size[1] + height) // 2)
    cv2.putText(
        image,
        "no signal",
        place,
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        _WHITE,
        max(1, size[0] // 320),
        cv2.LINE_AA,
    )
    return image
