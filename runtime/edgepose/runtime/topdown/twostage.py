"""A network that looks twice: at everybody coarsely, then again at those whose coarse pose it doubts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgepose.runtime.backend import Array, Backend
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import F64, Regions, prepare, visible
from edgepose.runtime.topdown.score import each_once, poses

GRAPHS = ("coarse", "fine")
MOST = 16  # crops a run: what bounds memory when a frame is full of people
# What the second look takes over from the first, beside the crops.
ORDER = "region_order"
CONTEXT = (ORDER, "reuse_features", "coarse_embedding")
QUALITY = "quality"

Rows = npt.NDArray[np.integer]


class Seen(NamedTuple):
    """What a look at B crops gave."""

    heatmaps: F32  # (B, K, h, w)
    quality: F32  # (B,) expected OKS of the coarse pose
    refined: npt.NDArray[np.bool_]  # (B,) whether the heatmaps are the second look's


class TwoStage:
    """The graphs `coarse` and `fine` (specs/sharpose.md section 9). The backends stay with their owner."""

    def __init__(self, coarse: Backend, fine: Backend, spec: Spec, limit: float) -> None:
        """`limit`: people of a lower quality are looked at again (`Spec.limit`)."""
        self._coarse, self._fine = coarse, fine
        self._spec, self._limit = spec, limit

    def __call__(self, frame: U8, boxes: F64, box_scores: F32 | F64) -> Poses:
        """Poses of the people in `boxes` (P, 4) x, y, width, height in pixels of the BGR `frame` (H, W, 3).

        Best first, each person once; boxes with nothing inside the frame are left out. A person's score is
        that of the box times the mean of the joints' seen.
        """
        found, kept = visible(boxes, (frame.shape[1], frame.shape[0]))
        regions = Regions.around(found, (self._spec.width, self._spec.height))
        heatmaps = self.look(prepare(frame, regions, self._spec)).heatmaps
        scores = np.asarray(box_scores, np.float64)[kept]
        return each_once(poses(heatmaps, regions, scores), regions, self._spec.joints())

    def look(self, crops: F32) -> Seen:
        """Normalised crops (B, 3, height, width) -> what both looks see of them, MOST of them at a time."""
        parts = [self._look(part) for part in _parts(crops)]
        shape = (0, len(self._spec.joints()), self._spec.height // 4, self._spec.width // 4)
        nobody = Seen(np.zeros(shape, np.float32), np.zeros(0, np.float32), np.zeros(0, np.bool_))
        return Seen(*(np.concatenate(column) for column in zip(nobody, *parts, strict=True)))

    def _look(self, crops: F32) -> Seen:
        first = self._coarse.run({"images": crops})
        heatmaps, quality = _float(first["coarse_heatmaps"]), _float(first[QUALITY])
        refined = quality < self._limit
        rows = np.flatnonzero(refined)
        if len(rows):
            heatmaps[rows] = self._look_again(crops, first, rows)
        return Seen(heatmaps, quality, refined)

    def _look_again(self, crops: F32, first: Mapping[str, Array], rows: Rows) -> F32:
        context = {name: first[name][rows] for name in CONTEXT}
        return _float(self._fine.run({"images": crops[rows], **context})["heatmaps"])


def _parts(crops: F32) -> Iterator[F32]:
    for start in range(0, len(crops), MOST):
        yield crops[start : start + MOST]


def _float(array: Array) -> F32:
    return np.array(array, np.float32)  # a copy: a backend may own the array it returned
