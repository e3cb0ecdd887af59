"""From a camera frame to the network's input and back: the same pixels for training, calibration, camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.runtime.poses import F32
from edgepose.runtime.spec import Spec

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The affine map of a letterbox: aspect kept, picture at the top left, padding right and below.

    Integer coordinates are pixel centres on both sides, so the map has the half-pixel term of
    `cv2.resize`.
    """

    scale_x: float  # network pixels per source pixel
    scale_y: float
    width: int  # of the resized picture inside the input, pixels
    height: int

    @classmethod
    def fit(cls, source: tuple[int, int], target: tuple[int, int]) -> Letterbox:
        """From (width, height) of the source to (width, height) of the network input."""
        scale = min(target[0] / source[0], target[1] / source[1])
        width, height = (max(1, min(t, round(s * scale))) for s, t in zip(source, target, strict=True))
        return cls(width / source[0], height / source[1], width, height)

    def _scales(self) -> F32:
        return np.array([self.scale_x, self.scale_y], np.float32)

    def to_input(self, points: F32) -> F32:
        """(..., 2) source pixels -> network pixels."""
        return ((points + 0.5) * self._scales() - 0.5).astype(np.float32)

    def to_source(self, points: F32) -> F32:
        """(..., 2) network pixels -> source pixels."""
        return ((points + 0.5) / self._scales() - 0.5).astype(np.float32)


def letterbox(frame: U8, width: int, height: int, pad: tuple[int, int, int]) -> tuple[U8, Letterbox]:
    """Resize (H, W, 3) into (height, width, 3), padded right and below with the colour `pad`."""
    box = Letterbox.fit((frame.shape[1], frame.shape[0]), (width, height))
    shrinking = box.scale_x < 0.5  # INTER_AREA keeps thin limbs that bilinear sampling would skip
    resized = cv2.resize(
        frame, (box.width, box.height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    )
    canvas = np.full((height, width, 3), pad, np.uint8)
    canvas[: box.height, : box.width] = resized
    return canvas, box


def pad_colour(spec: Spec) -> tuple[int, int, int]:
    """The padding colour in the frame's BGR order: the normalisation mean, so that padding is 0 after it."""
    red, green, blue = (round(255 * value) for value in spec.mean)
    return (blue, green, red)


def normalise(image: U8, spec: Spec) -> F32:
    """(H, W, 3) BGR of the network's size -> (1, 3, H, W) normalised in the spec's colour order."""
    ordered = image[..., ::-1] if spec.colour == "RGB" else image
    scale = np.float32(1) / (np.float32(255) * np.array(spec.std, np.float32))
    shift = np.array(spec.mean, np.float32) / np.array(spec.std, np.float32)
    return np.ascontiguousarray((ordered * scale - shift).transpose(2, 0, 1)[None], np.float32)


def prepare(frame: U8, spec: Spec) -> tuple[F32, Letterbox]:
    """(H, W, 3) BGR frame of any size -> (1, 3, height, width) network input and the way back."""
    image, box = letterbox(frame, spec.width, spec.height, pad_colour(spec))
    return normalise(image, spec), box
