"""One labelled picture: what training, calibration, evaluation and the stream's truth all exchange."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8

FAR = 1e9  # pixels: no place, size or area of a picture is so large; nor is infinity, or not-a-number


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """One labelled person in pixels of the picture, integer = pixel centre.

    `visibility` follows COCO: 0 not labelled, 1 labelled but hidden, 2 labelled and visible.
    """

    keypoints: F32  # (K, 2) x, y
    visibility: npt.NDArray[np.uint8]  # (K,)
    box: tuple[float, float, float, float]  # x, y, width, height
    area: float  # of the visible silhouette, square pixels
    crowd: bool = False  # COCO iscrowd: a region to ignore


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A picture (H, W, 3) BGR uint8 with its people."""

    image_id: int
    image: U8
    people: tuple[Person, ...]
    file_name: str = ""  # as its source names it, where it has files
