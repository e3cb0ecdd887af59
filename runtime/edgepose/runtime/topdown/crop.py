"""From boxes in a frame to crops of one size, and between the pixels of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.spec import Spec

F64 = npt.NDArray[np.float64]
PADDING = 1.25  # of a box's sides, so that the crop shows what surrounds the person


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """B rectangles of a frame, each to be seen as one crop.

    Raises ValueError when the shapes do not belong together or a side is not a positive number.
    """

    centres: F64  # (B, 2) x, y in frame pixels
    sides: F64  # (B, 2) width and height in frame pixels
    degrees: F64  # (B,) how far the person turns in the crop, from x to y

    def __post_init__(self) -> None:
        count = len(self.degrees)
        if (
            self.centres.shape != (count, 2)
            or self.sides.shape != (count, 2)
            or self.degrees.shape != (count,)
        ):
            shapes = self.centres.shape, self.sides.shape, self.degrees.shape
            raise ValueError(f"Regions: expected shapes (B, 2), (B, 2), (B,), got {shapes}")
        if not (np.isfinite(self.centres).all() and np.isfinite(self.sides).all() and (self.sides > 0).all()):
            raise ValueError("Regions: a centre or side is not finite or a side not positive; see `visible`")

    @classmethod
    def around(cls, boxes: F64, size: tuple[int, int], padding: float = PADDING) -> Regions:
        """Of the aspect of a crop of `size` (width, height), about boxes (B, 4) x, y, width, height.

        The shorter side grows to the aspect, then both by `padding`. Raises ValueError for an empty box.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        if not (boxes[:, 2:] > 0).all():
            raise ValueError("Regions: a box is empty or not a number; leave it out with `visible`")
        width, height = size
        aspect = width / height
        wide = np.maximum(boxes[:, 2], boxes[:, 3] * aspect)
        sides = padding * np.stack([wide, wide / aspect], -1)
        return cls(boxes[:, :2] + boxes[:, 2:] / 2, sides, np.zeros(len(boxes)))

    def __len__(self) -> int:
        return len(self.degrees)

    def __getitem__(self, rows: npt.NDArray[np.integer] | slice) -> Regions:
        """Those of these places."""
        return Regions(self.centres[rows], self.sides[rows], self.degrees[rows])

    def matrices(self, size: tuple[int, int]) -> F64:
        """(B, 2, 3) maps of frame pixels to the pixels of a crop of `size` (width, height)."""
        turn = np.radians(self.degrees)
        cosine, sine = np.cos(turn), np.sin(turn)
        rotation = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
        scale = (np.array(size) - 1) / self.sides  # (B, 2) crop pixels per frame pixel
        linear = scale[..., None] * rotation
        shift = scale * self.sides / 2 - np.einsum("bij,bj->bi", linear, self.centres)
        return np.concatenate([linear, shift[..., None]], -1)

    def to_crop(self, points: npt.NDArray[np.floating], size: tuple[int, int]) -> F64:
        """(B, K, 2) frame pixels -> pixels of crops of `size` (width, height)."""
        matrices = self.matrices(size)
        moved = np.einsum("bij,bkj->bki", matrices[..., :2], points) + matrices[:, None, :, 2]
        return np.asarray(moved, np.float64)

    def to_frame(self, points: npt.NDArray[np.floating], size: tuple[int, int]) -> F64:
        """(B, K, 2) pixels of crops, or of heatmaps, of `size` (width, height) -> frame pixels."""
        matrices = self.matrices(size)
        inverses = np.linalg.inv(matrices[..., :2])
        moved = np.einsum("bij,bkj->bki", inverses, points - matrices[:, None, :, 2])
        return np.asarray(moved, np.float64)

    def cut(self, frame: U8, size: tuple[int, int]) -> U8:
        """Frame (H, W, 3) -> crops (B, height, width, 3) in its colours; beyond the frame is black."""
        width, height = size
        crops = np.zeros((len(self), height, width, 3), np.uint8)
        for crop, matrix in zip(crops, self.matrices(size), strict=True):
            crop[:] = cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR)
        return crops


def visible(boxes: F64, size: tuple[int, int]) -> tuple[F64, npt.NDArray[np.int64]]:
    """Boxes (N, 4) x, y, width, height cut off at the edges of a frame of `size` (width, height).

    -> (M, 4) of those with something left, and (M,) which ones they are. Empty boxes, boxes outside
    the frame and boxes that are not finite are dropped: nobody can be seen there.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    boxes = np.where(np.isfinite(boxes).all(1, keepdims=True), boxes, 0)
    low = boxes[:, :2].clip(0, size)
    high = (boxes[:, :2] + boxes[:, 2:]).clip(0, size)
    left = np.concatenate([low, high - low], 1)
    kept = np.flatnonzero((left[:, 2:] > 0).all(1))
    return left[kept], kept


@dataclass(frozen=True, eq=False)
class Crops:
    """People of one BGR frame (H, W, 3), as a network sees them: cut when somebody asks, and only then."""

    frame: U8
    regions: Regions
    spec: Spec

    @cached_property
    def images(self) -> F32:
        """(B, 3, height, width) network input."""
        return prepare(self.frame, self.regions, self.spec)


def prepare(frame: U8, regions: Regions, spec: Spec) -> F32:
    """(H, W, 3) BGR frame of any size -> (B, 3, height, width) network input."""
    crops = regions.cut(frame, (spec.width, spec.height))
    empty = np.zeros((0, 3, spec.height, spec.width), np.float32)
    return np.concatenate([empty, *(normalise(crop, spec) for crop in crops)])
