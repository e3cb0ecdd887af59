"""Picture files of every kind become one thing: 8-bit BGR pixels, or one sentence saying why not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8


@contextlib.contextmanager
def _opencv_silenced() -> Iterator[None]:
    """OpenCV's own complaints on stderr would stand beside our sentence."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)


def _bytes_of(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        # The last is of a name that no file can have, with a zero byte or half of a surrogate pair.
        raise EdgeposeError(f"{path}: no such file (a picture was expected)") from error
    if not content:
        raise EdgeposeError(f"{path}: the file is empty (a picture was expected)")
    return content


def read_image(path: Path, *, upright: bool = True) -> U8:
    """(H, W, 3) BGR of a file: grey is repeated, CMYK converted, 16 bits cut to 8, an alpha channel dropped.

    `upright` turns the picture as its EXIF orientation says; without it the pixels come as they are stored.
    """
    content = np.frombuffer(_bytes_of(path), np.uint8)
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with _opencv_silenced():
            image = cv2.imdecode(content, flags)
    except cv2.error as error:
        raise EdgeposeError(f"{path}: cannot be decoded as a picture ({error.err})") from error
    if image is None:
        raise EdgeposeError(
            f"{path}: not a picture that OpenCV reads, or cut short; copy it again or remove it"
        )
    return np.asarray(image, np.uint8)


def encode_png(image: U8) -> bytes:
    """The lossless PNG file of a (H, W, 3) BGR picture."""
    done, content = cv2.imencode(".png", image)
    if not done:
        raise RuntimeError(f"OpenCV could not write a picture of shape {image.shape} as PNG")
    return content.tobytes()
