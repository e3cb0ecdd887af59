"""From heatmaps and their regions to poses in the frame, each person once."""

from __future__ import annotations

import numpy as np

from edgepose.runtime.oks import likeness, mean_of_two, suppress
from edgepose.runtime.poses import F32, Poses, boxes_of
from edgepose.runtime.skeleton import COCO17, Skeleton
from edgepose.runtime.topdown.crop import Regions
from edgepose.runtime.topdown.heatmaps import F64, decode

SEEN = 0.2  # a joint counts in its person's score above this
SAME_PERSON = 0.9  # boxes have been made unique by the detector, so only near copies go


def person_scores(box_scores: F32 | F64, joint_scores: F32 | F64) -> F64:
    """Box scores (B,) times the mean of the joint scores (B, K) above SEEN; 0 where there is none."""
    seen = joint_scores > SEEN
    total = np.where(seen, joint_scores, 0).sum(1, dtype=np.float64)
    return np.asarray(box_scores * total / np.maximum(seen.sum(1), 1), np.float64)


def poses(heatmaps: F32, regions: Regions, box_scores: F32 | F64) -> Poses:
    """One pose for each of the heatmaps (B, K, h, w) of the regions' crops, in frame pixels, in that order.

    Raises ValueError when the numbers of heatmaps, regions and box scores (B,) differ.
    """
    if not len(heatmaps) == len(regions) == len(box_scores):
        counts = len(heatmaps), len(regions), len(box_scores)
        raise ValueError(f"heatmaps, regions and box scores of {counts} people do not belong together")
    points, best = decode(heatmaps)
    height, width = heatmaps.shape[2:]
    keypoints = regions.to_frame(points, (width, height)).astype(np.float32)
    scores = person_scores(box_scores, best).astype(np.float32)
    return Poses(keypoints, best, scores, boxes_of(keypoints))


def each_once(found: Poses, regions: Regions, skeleton: Skeleton = COCO17) -> Poses:
    """The poses of `regions`, best first, without those that a better one has said already.

    The size of two people is the mean of their regions.
    """
    sizes = mean_of_two(regions.sides.prod(axis=1))
    return suppress(found, likeness(found, skeleton.sigma_array(), sizes), SAME_PERSON)
