"""Object keypoint similarity: how close two poses are, in units of how precisely people label each joint."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgepose.runtime.poses import Poses

F64 = npt.NDArray[np.float64]

# COCO adds the smallest step above 1 to the area, so that an empty area divides.
EPSILON = np.spacing(1.0)
BODY_SHARE = 0.53  # of the box around the joints: what a silhouette covers, where nobody measured it
# Two poses more alike than this, in what both see, are one person. On 1,000 synthetic pictures of qrpose_tiny
# no duplicate is left, in FP32 or INT8, at 0.4, 0.5 and 0.6, and AP loses 0.05 points. Over all joints,
# seen or guessed alike, 0.6 left 18 and 21; 0.8 (specs/qrpose.md section 7) leaves more.
SAME_PERSON = 0.5
LEAST_SURE = 0.01  # of a joint: two poses that are sure of nothing are held together over all joints


def similarity(offsets: F64, area: float | F64, sigmas: F64) -> F64:
    """exp(-d² / (2 s² k²)) with k = 2 sigma, s² = area: offsets (..., K, 2) in pixels -> (..., K) in 0..1.

    COCO keypoint evaluation, "Object Keypoint Similarity".
    """
    squared = (offsets.astype(np.float64) ** 2).sum(axis=-1)
    return np.asarray(np.exp(-squared / (2 * sigmas) ** 2 / (np.asarray(area) + EPSILON) / 2))


def suppress(poses: Poses, alike: F64, limit: float = SAME_PERSON) -> Poses:
    """The poses, best first, without those that a better one has said already: OKS-NMS.

    `alike` (P, P) is how like each pose [i] is to each [j], of 1.
    """
    order = np.argsort(-poses.scores, kind="stable")
    kept: list[int] = []
    for index in order:
        if not (alike[index, kept] > limit).any():
            kept.append(index)
    return poses[np.array(kept, np.int64)]


def likeness(poses: Poses, sigmas: F64, areas: F64) -> F64:
    """(P, P) OKS of each pose [i] with each [j] over all joints, by `areas` (P or 1, P) in square pixels."""
    return np.asarray(_joint_likeness(poses, sigmas, areas).mean(axis=-1))


def seen_likeness(poses: Poses, sigmas: F64, areas: F64) -> F64:
    """`likeness`, where each joint counts by how sure both poses are of it.

    Two poses of one person guess hidden joints apart from each other: those say little of whose they are.
    """
    sure = np.maximum(poses.keypoint_scores.astype(np.float64), LEAST_SURE)
    weights = sure[:, None] * sure[None]
    return np.asarray((_joint_likeness(poses, sigmas, areas) * weights).sum(-1) / weights.sum(-1))


def _joint_likeness(poses: Poses, sigmas: F64, areas: F64) -> F64:
    """(P, P, K)."""
    offsets = (poses.keypoints[:, None] - poses.keypoints[None]).astype(np.float64)
    return similarity(offsets, areas[..., None], sigmas)


def mean_of_two(areas: F64) -> F64:
    """(P,) -> (P, P)."""
    return np.asarray((areas[:, None] + areas[None]) / 2)


def silhouettes(poses: Poses) -> F64:
    """(P,) square pixels that people cover by guess, from their boxes."""
    sides = poses.boxes[:, 2:] - poses.boxes[:, :2]
    return np.asarray(BODY_SHARE * sides.prod(axis=1), np.float64)
