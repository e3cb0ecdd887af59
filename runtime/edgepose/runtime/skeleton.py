"""Which joints a pose has, how they are joined, mirrored and weighed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A set of K joints. `sigmas` are the COCO per-joint standard deviations (fraction of sqrt(area))."""

    name: str
    joints: tuple[str, ...]
    sigmas: tuple[float, ...]
    edges: tuple[tuple[int, int], ...]
    mirror: tuple[int, ...]  # index of each joint's left/right counterpart

    def __len__(self) -> int:
        return len(self.joints)

    def sigma_array(self) -> npt.NDArray[np.float64]:
        """(K,) float64."""
        return np.array(self.sigmas, np.float64)


# COCO 2017 keypoint categories and `cocoeval.Params.kpt_oks_sigmas`.
COCO17 = Skeleton(
    name="coco17",
    joints=(
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    sigmas=(
        *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
        *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
    edges=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6)),
        *((5, 7), (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    mirror=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
)

# CrowdPose's keypoint categories, and the sigmas of its evaluation code (crowdposetools).
CROWDPOSE14 = Skeleton(
    name="crowdpose14",
    joints=(
        *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
        *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck"),
    ),
    sigmas=(
        *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
        *(0.079, 0.079),
    ),
    edges=(
        *((10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 1)),
        *((0, 2), (1, 3), (2, 4), (3, 5), (12, 13), (13, 0), (13, 1)),
    ),
    mirror=(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13),
)

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO17, CROWDPOSE14)}
