"""Poses drawn into a frame."""

from __future__ import annotations

import cv2
import numpy as np

from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.skeleton import Skeleton

LEFT, RIGHT, MIDDLE = (80, 200, 255), (255, 160, 60), (120, 230, 120)  # BGR: orange, blue, green
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
_FAR = 2.0**16  # pixels: beyond every picture, and within OpenCV's integers


def draw(frame: U8, poses: Poses, skeleton: Skeleton, joint_threshold: float = 0.3) -> None:
    """Draw limbs, joints and scores into `frame` (H, W, 3 or 4; BGR first), in place.

    Joints whose confidence is below `joint_threshold` are left out, and people who have no other.
    """
    for keypoints, confidences, score in zip(
        poses.keypoints.clip(-_FAR, _FAR), poses.keypoint_scores, poses.scores, strict=True
    ):
        shown = confidences >= joint_threshold
        if not shown.any():
            continue
        height = min(float(np.ptp(keypoints[shown, 1])), frame.shape[0])  # one joint may lie far off
        thickness = max(1, round(height / 60))
        points = np.round(keypoints * (1 << _SHIFT)).astype(int)
        for a, b in skeleton.edges:
            if shown[a] and shown[b]:
                cv2.line(
                    frame,
                    points[a].tolist(),
                    points[b].tolist(),
                    _colour(skeleton, a, b),
                    thickness,
                    cv2.LINE_AA,
                    _SHIFT,
                )
        for joint in np.flatnonzero(shown):
            cv2.circle(
                frame,
                points[joint].tolist(),
                (thickness + 1) << _SHIFT,
                (255, 255, 255),
                -1,
                cv2.LINE_AA,
                _SHIFT,
            )
        _label(frame, keypoints[shown], float(score))


def _colour(skeleton: Skeleton, a: int, b: int) -> tuple[int, int, int]:
    sides = {skeleton.joints[joint].partition("_")[0] for joint in (a, b)}
    return LEFT if sides == {"left"} else RIGHT if sides == {"right"} else MIDDLE


def _label(frame: U8, keypoints: F32, score: float) -> None:
    size = max(0.35, min(0.8, frame.shape[0] / 900))
    x, y = (int(v) for v in keypoints.min(axis=0))
    place = (max(0, x), max(12, y - 6))
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(
            frame, f"{score:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thickness, cv2.LINE_AA
        )
