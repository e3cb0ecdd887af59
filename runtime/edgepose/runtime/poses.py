"""The one result type: people x joints in pixels of the source frame."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """P people with K joints. Coordinates are pixels of the source frame, integer = pixel centre.

    Raises ValueError when the shapes do not belong together.
    """

    keypoints: F32  # (P, K, 2) x, y
    keypoint_scores: F32  # (P, K) confidence of each joint, 0..1
    scores: F32  # (P,) expected OKS of the pose, 0..1
    boxes: F32  # (P, 4) x0, y0, x1, y1 of the joints

    def __post_init__(self) -> None:
        people, joints = self.keypoints.shape[:2]
        expected = ((people, joints, 2), (people, joints), (people,), (people, 4))
        actual = tuple(getattr(self, field.name).shape for field in fields(self))
        if actual != expected:
            raise ValueError(f"Poses: expected shapes {expected}, got {actual}")

    @classmethod
    def empty(cls, joints: int = 17) -> Poses:
        """Nobody."""
        return cls(*(np.zeros(s, np.float32) for s in ((0, joints, 2), (0, joints), (0,), (0, 4))))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.integer] | slice) -> Poses:
        """The chosen people, by mask, indices or slice."""
        return Poses(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def above(self, threshold: float) -> Poses:
        """The people whose expected OKS is at least `threshold`."""
        return self[self.scores >= threshold]


def boxes_of(keypoints: F32) -> F32:
    """Tight boxes (P, 4) x0, y0, x1, y1 around keypoints (P, K, 2)."""
    if not len(keypoints):
        return np.zeros((0, 4), np.float32)
    return np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1)
