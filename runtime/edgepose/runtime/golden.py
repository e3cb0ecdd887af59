"""Golden vectors of a bundle: pictures, what each view answered, and how far an answer may be from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8

Outputs = dict[str, F32]


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences between the poses of two results."""

    score: float
    keypoint_px: float  # pixels of the network input
    confidence: float

    def within(self, limit: Difference) -> bool:
        """Whether every figure is at most that of `limit` (not-a-number is not)."""
        pairs = zip(_figures(self), _figures(limit), strict=True)
        return all(mine <= allowed for mine, allowed in pairs)


def _figures(difference: Difference) -> tuple[float, float, float]:
    return (difference.score, difference.keypoint_px, difference.confidence)


def difference(expected: Mapping[str, F32], actual: Mapping[str, F32], threshold: float) -> Difference:
    """Compare the people of one image (batch 1) with an expected score of `threshold` or more, or the best.

    Slots are matched by the nearest pose: rounding may exchange neighbours in the order of scores.
    """
    scores = expected["scores"][0]
    chosen = np.flatnonzero(scores >= min(threshold, float(scores.max())))
    apart = np.abs(expected["keypoints"][0][chosen][:, None] - actual["keypoints"][0][None])  # (P, N, K, 2)
    distances = apart.reshape(len(chosen), len(scores), -1).max(2)  # (P, N)
    nearest = distances.argmin(1)
    confidence = expected["keypoint_scores"][0][chosen] - actual["keypoint_scores"][0][nearest]
    return Difference(
        score=float(np.abs(scores[chosen] - actual["scores"][0][nearest]).max()),
        keypoint_px=float(distances.min(1).max()),
        confidence=float(np.abs(confidence).max()),
    )


def largest(differences: Sequence[Difference]) -> Difference:
    """The largest of each figure."""
    return Difference(*np.max([_figures(one) for one in differences], axis=0).tolist())


FILE = "golden.npz"

# How far another machine may be from the outputs recorded here. FP32 differs by the order of sums; INT8 by
# kernels that saturate earlier (AVX2 without VNNI), and then by what that does to the rounding behind.
TOLERANCES = {
    "fp32": Difference(score=1e-3, keypoint_px=0.05, confidence=1e-3),
    "fp16": Difference(score=2e-2, keypoint_px=1.0, confidence=2e-2),
    "int8.ort": Difference(score=5e-2, keypoint_px=2.0, confidence=5e-2),
    "int8.trt": Difference(score=5e-2, keypoint_px=2.0, confidence=5e-2),
    "int8.trt-typed": Difference(score=5e-2, keypoint_px=2.0, confidence=5e-2),
}


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Recorded inputs and outputs. `expected` maps a view's name (`pose.fp32`) to the outputs per picture."""

    frames: U8  # (F, height, width, 3) BGR of the network's size
    expected: dict[str, list[Outputs]]


def read(bundle: Bundle) -> Golden:
    """The golden vectors of an opened bundle. Raises EdgeposeError when it has none."""
    if FILE not in bundle.files:
        raise EdgeposeError(f"{bundle.path}: has no {FILE}; export it again")
    expected: dict[str, list[Outputs]] = {}
    with np.load(bundle.folder / FILE) as arrays:
        frames = np.asarray(arrays["frames"], np.uint8)
        for key in arrays.files:
            view, _, name = key.partition("/")
            if name:
                answers = expected.setdefault(view, [{} for _ in frames])
                for answer, array in zip(answers, arrays[key], strict=True):
                    answer[name] = array[None]
    return Golden(frames, expected)
