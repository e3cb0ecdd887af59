"""A network that looks twice: at everybody coarsely, then again at those whose coarse pose it doubts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgepose.runtime.backend import Array, Backend, CropBackend
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import F64, Crops, Regions, visible
from edgepose.runtime.topdown.score import each_once, poses

GRAPHS = ("coarse", "fine")
MOST = 16  # crops a run: what bounds memory when a frame is full of people
# What the second look takes over from the first, beside the crops.
ORDER = "region_order"
CONTEXT = (ORDER, "reuse_features", "coarse_embedding")
QUALITY = "quality"

Rows = npt.NDArray[np.integer]


class Glance(NamedTuple):
    """What the first look at B crops gave, and what a second one takes over from it."""

    heatmaps: F32  # (B, K, h, w)
    quality: F32  # (B,) expected OKS of the pose in the heatmaps
    context: Mapping[str, Array]  # CONTEXT by name, (B, ...) each


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
        self.spec, self.limit = spec, limit

    def __call__(self, frame: U8, boxes: F64, box_scores: F32 | F64) -> Poses:
        """Poses of the people in `boxes` (P, 4) x, y, width, height in pixels of the BGR `frame` (H, W, 3).

        Best first, each person once; boxes with nothing inside the frame are left out. A person's score is
        that of the box times the mean of the joints' seen.
        """
        found, kept = visible(boxes, (frame.shape[1], frame.shape[0]))
        regions = Regions.around(found, (self.spec.width, self.spec.height))
        parts = [Crops(frame, regions[part], self.spec) for part in _parts(len(regions))]
        heatmaps = self._all(parts).heatmaps
        scores = np.asarray(box_scores, np.float64)[kept]
        return each_once(poses(heatmaps, regions, scores), regions, self.spec.joints())

    def look(self, crops: F32) -> Seen:
        """Normalised crops (B, 3, height, width) -> what both looks see of them, MOST of them at a time."""
        return self._all([crops[part] for part in _parts(len(crops))])

    def _all(self, crops: Sequence[F32 | Crops]) -> Seen:
        parts = [self._look(part) for part in crops]
        shape = (0, len(self.spec.joints()), self.spec.height // 4, self.spec.width // 4)
        nobody = Seen(np.zeros(shape, np.float32), np.zeros(0, np.float32), np.zeros(0, np.bool_))
        return Seen(*(np.concatenate(column) for column in zip(nobody, *parts, strict=True)))

    def _look(self, crops: F32 | Crops) -> Seen:
        glance = self.glance(crops)
        refined = glance.quality < self.limit
        rows = np.flatnonzero(refined)
        if len(rows):
            glance.heatmaps[rows] = self.look_again(crops, glance, rows)
        return Seen(glance.heatmaps, glance.quality, refined)

    def glance(self, crops: F32 | Crops) -> Glance:
        """The first look at normalised crops (B, 3, height, width), or people of a frame, at most MOST."""
        first = _asked(self._coarse, crops, slice(None), {})
        context = {name: first[name] for name in CONTEXT}
        return Glance(_float(first["coarse_heatmaps"]), _float(first[QUALITY]), context)

    def look_again(self, crops: F32 | Crops, glance: Glance, rows: Rows) -> F32:
        """The second look, at the crops [rows] of a glance -> their heatmaps (len(rows), K, h, w)."""
        context = {name: values[rows] for name, values in glance.context.items()}
        return _float(_asked(self._fine, crops, rows, context)["heatmaps"])


def _asked(
    backend: Backend, crops: F32 | Crops, rows: Rows | slice, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """What the backend answers to the crops [rows], which it cuts itself if it can."""
    if not isinstance(crops, Crops):
        return backend.run({"images": crops[rows], **feeds})
    if isinstance(backend, CropBackend):
        return backend.see_regions(crops.frame, crops.regions[rows], feeds)
    return backend.run({"images": crops.images[rows], **feeds})


def _parts(count: int) -> list[slice]:
    return [slice(start, start + MOST) for start in range(0, count, MOST)]


def _float(array: Array) -> F32:
    return np.array(array, np.float32)  # a copy: a backend may own the array it returned
