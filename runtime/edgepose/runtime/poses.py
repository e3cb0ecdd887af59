"""The one result type: people x joints in pixels of the source frame."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
STAGES = ("first", "coarse", "fine")  # of a cascade: the single-stage model, a two-stage one's two looks


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """P people with K joints. Coordinates are pixels of the source frame, integer = pixel centre.

    Raises ValueError when the shapes do not belong together.
    """

    keypoints: F32  # (P, K, 2) x, y
    keypoint_scores: F32  # (P, K) confidence of each joint, 0..1
    scores: F32  # (P,) expected OKS of the pose, 0..1
    boxes: F32  # (P, 4) x0, y0, x1, y1 of the joints
    stages: npt.NDArray[np.uint8] | None = None  # (P,) of STAGES, whose pose it is; None: of the only one

    def __post_init__(self) -> None:
        people, joints = self.keypoints.shape[:2]
        expected = ((people, joints, 2), (people, joints), (people,), (people, 4), (people,))
        actual = tuple(values.shape for values in self.arrays())
        if actual != expected[: len(actual)]:
            raise ValueError(f"Poses: expected shapes {expected[: len(actual)]}, got {actual}")

    def arrays(self) -> list[Any]:
        """The fields in their order, without `stages` where there are none."""
        values = [getattr(self, field.name) for field in fields(self)]
        return values if self.stages is not None else values[:-1]

    @classmethod
    def empty(cls, joints: int = 17) -> Poses:
        """Nobody."""
        shapes = ((0, joints, 2), (0, joints), (0,), (0, 4))
        keypoints, sure, scores, boxes = (np.zeros(shape, np.float32) for shape in shapes)
        return cls(keypoints, sure, scores, boxes)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.integer] | slice) -> Poses:
        """The chosen people, by mask, indices or slice."""
        return Poses(*(values[chosen] for values in self.arrays()))

    def finite(self) -> npt.NDArray[np.bool_]:
        """(P,) whether all numbers of a person are finite ones."""
        joints = np.concatenate([self.keypoints, self.keypoint_scores[..., None]], 2)  # (P, K, 3)
        return np.asarray(np.isfinite(joints).all((1, 2)) & np.isfinite(self.scores), np.bool_)

    def above(self, threshold: float) -> Poses:
        """The people whose expected OKS is at least `threshold`."""
        return self[self.scores >= threshold]


def boxes_of(keypoints: F32) -> F32:
    """Tight boxes (P, 4) x0, y0, x1, y1 around keypoints (P, K, 2)."""
    if not len(keypoints):
        return np.zeros((0, 4), np.float32)
    return np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1)
