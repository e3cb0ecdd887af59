"""QR-Pose outputs (fixed N slots, network pixels) -> poses in the source frame."""

from __future__ import annotations

from collections.abc import Mapping

from edgepose.runtime.poses import F32, Poses, boxes_of
from edgepose.runtime.preprocess import Letterbox


def decode(outputs: Mapping[str, F32], box: Letterbox) -> Poses:
    """Poses of one image (batch 1), best first; empty slots (score 0) are left out.

    `outputs`: scores (1, N), keypoints (1, N, K, 2) in network pixels, keypoint_scores (1, N, K).
    """
    scores = outputs["scores"][0]
    order = (-scores).argsort(kind="stable")
    order = order[scores[order] > 0]
    keypoints = box.to_source(outputs["keypoints"][0][order])
    return Poses(keypoints, outputs["keypoint_scores"][0][order], scores[order], boxes_of(keypoints))
