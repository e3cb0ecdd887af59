"""QueryPose outputs (fixed N queries, network pixels) -> poses in the source frame."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgepose.runtime.poses import F32, Poses, boxes_of
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.skeleton import Skeleton

CORNER = np.float32(0.5)  # the network counts from a pixel's corner, Poses from its centre


def decode(outputs: Mapping[str, F32], box: Letterbox, skeleton: Skeleton) -> Poses:
    """Poses of one image (batch 1), best first, without empty slots (score 0).

    `outputs`: scores (1, N), keypoints (1, N, K, 2) in network pixels, keypoint_scores (1, N, K). Nothing is
    suppressed: each query was trained to find another person (specs/querypose.md section 9).
    """
    scores = outputs["scores"][0]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    keypoints = box.to_source(outputs["keypoints"][0][order] - CORNER)
    return Poses(keypoints, outputs["keypoint_scores"][0][order], scores[order], boxes_of(keypoints))
