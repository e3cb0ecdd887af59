"""QR-Pose outputs (fixed N slots, network pixels) -> poses in the source frame."""

from __future__ import annotations

from collections.abc import Mapping

from edgepose.runtime.oks import seen_likeness, silhouettes, suppress
from edgepose.runtime.poses import F32, Poses, boxes_of
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.skeleton import Skeleton


def decode(outputs: Mapping[str, F32], box: Letterbox, skeleton: Skeleton) -> Poses:
    """Poses of one image (batch 1), best first, without empty slots (score 0) and without duplicates.

    `outputs`: scores (1, N), keypoints (1, N, K, 2) in network pixels, keypoint_scores (1, N, K).
    """
    scores = outputs["scores"][0]
    taken = scores > 0
    keypoints = box.to_source(outputs["keypoints"][0][taken])
    poses = Poses(keypoints, outputs["keypoint_scores"][0][taken], scores[taken], boxes_of(keypoints))
    # The size of two people is that of the better one, by a guess at its silhouette.
    alike = seen_likeness(poses, skeleton.sigma_array(), silhouettes(poses)[None])
    return suppress(poses, alike)
