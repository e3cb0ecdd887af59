"""When two answers to one picture are the same: a measure for each kind of family, a limit for each view."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgepose.runtime.oks import F64
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.heatmaps import decode
from edgepose.runtime.topdown.twostage import ORDER, QUALITY

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

Rows = npt.NDArray[np.int64]

HEATMAPS = frozenset({"coarse_heatmaps", "heatmaps"})
SHOWN = 0.2  # of a heatmap whose hills are about 1 high: a joint that is there


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences between two results; a kind of results says in fields of which figures."""

    def within(self, limit: Difference) -> bool:
        """Whether every figure is at most that of `limit` (not-a-number is not)."""
        return all(mine <= allowed for mine, allowed in zip(astuple(self), astuple(limit), strict=True))


Kind = TypeVar("Kind", bound=Difference)


def largest(differences: Sequence[Kind]) -> Kind:
    """The largest of each figure."""
    figures = np.max([astuple(one) for one in differences], axis=0).tolist()
    return type(differences[0])(*figures)


@dataclass(frozen=True, slots=True)
class PoseDifference(Difference):
    """The largest differences between the poses of two results."""

    score: float
    keypoint_px: float  # pixels of the network input
    confidence: float


def pose_difference(expected: Outputs, actual: Outputs, threshold: float) -> PoseDifference:
    """Compare the people of one image (batch 1) with an expected score of `threshold` or more, or the best.

    Slots are matched by the nearest pose: rounding may exchange neighbours in the order of scores.
    """
    scores = expected["scores"][0]
    chosen, distances = _nearest(expected, actual, threshold)
    nearest = distances.argmin(1)
    confidence = expected["keypoint_scores"][0][chosen] - actual["keypoint_scores"][0][nearest]
    return PoseDifference(
        score=float(np.abs(scores[chosen] - actual["scores"][0][nearest]).max()),
        keypoint_px=float(distances.min(1).max()),
        confidence=float(np.abs(confidence).max()),
    )


def _nearest(expected: Outputs, actual: Outputs, threshold: float) -> tuple[Rows, F64]:
    """Who counts among the expected (P,), and how far each is from every actual pose at most (P, N)."""
    scores = expected["scores"][0]
    chosen = np.flatnonzero(scores >= min(threshold, float(scores.max())))
    apart = np.abs(expected["keypoints"][0][chosen][:, None] - actual["keypoints"][0][None])  # (P, N, K, 2)
    return chosen, apart.reshape(len(chosen), len(scores), -1).max(2)


def pose_drift(expected: Outputs, actual: Outputs, spec: Spec) -> F64:
    """(P * K,) pixels of the network input that the joints of one image's people are apart."""
    chosen, distances = _nearest(expected, actual, spec.score_threshold)
    moved = expected["keypoints"][0][chosen] - actual["keypoints"][0][distances.argmin(1)]  # (P, K, 2)
    return np.asarray(np.linalg.norm(moved.astype(np.float64), axis=-1).ravel())


@dataclass(frozen=True, slots=True)
class LookDifference(Difference):
    """The largest differences between what two results see of the same crops."""

    heatmaps: float  # whose hills are about 1 high; a share of the largest value where that is beyond 1
    quality: float
    regions: float  # share of the cells to be seen sharp that only one of the results names
    context: float  # what is handed to the second look, as a share of its largest value


def look_difference(expected: Outputs, actual: Outputs, cells: int) -> LookDifference:
    """Compare the outputs of one of the graphs, of which the second one was shown the same context.

    Of the order the first `cells` count, as a set: equal scores may be sorted either way.
    """
    found = dict.fromkeys(("heatmaps", "quality", "regions", "context"), 0.0)
    for name, wanted in expected.items():
        if name == ORDER:
            shared = shared_cells(wanted, actual[name], cells)
            kind, apart = "regions", 1 - float(shared.min(initial=1))
        elif name == QUALITY:
            kind, apart = "quality", _apart(wanted, actual[name])
        else:
            kind = "heatmaps" if name in HEATMAPS else "context"
            high = float(np.abs(wanted).max(initial=0))
            apart = _apart(wanted, actual[name]) / (max(high, 1) if name in HEATMAPS else high or 1)
        found[kind] = float(np.maximum(found[kind], apart))  # keeps not-a-number
    return LookDifference(**found)


def look_drift(expected: Outputs, actual: Outputs, spec: Spec) -> F64:
    """(J,) pixels of the network input between the peaks of heatmaps, for joints that the expected ones show.

    Nobody's joints when the graph gives no heatmaps.
    """
    found = [np.zeros(0)]
    for name in HEATMAPS & expected.keys():
        points, best = decode(expected[name])
        moved = np.asarray(points - decode(actual[name])[0], np.float64)  # (B, K, 2) heatmap pixels
        scale = (np.array([spec.width, spec.height]) - 1) / (np.array(expected[name].shape[:1:-1]) - 1)
        found.append(np.linalg.norm(moved * scale, axis=-1)[best >= SHOWN])
    return np.concatenate(found)


def shared_cells(one: Array, other: Array, cells: int) -> F64:
    """(B,) the share of the first `cells` of an order (B, n0) that are among the first of the other, too."""
    same = one[:, :cells, None] == other[:, None, :cells]  # (B, k, k)
    return np.asarray(same.any(2).mean(1), np.float64)


def _apart(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(np.float64) - other).max(initial=0))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a family's answers are compared."""

    difference: Callable[[Outputs, Outputs, Spec], Difference]  # of what one graph was expected to give
    views: Mapping[str, Difference]  # how far another machine may be from the golden vectors, by view
    drift: Callable[[Outputs, Outputs, Spec], F64]  # pixels that joints move


def _with_int8(fp32: Difference, fp16: Difference, int8: Difference) -> dict[str, Difference]:
    views = dict.fromkeys(("int8.ort", "int8.trt", "int8.trt-typed"), int8)
    return {"fp32": fp32, "fp16": fp16, **views}


# FP32 differs by the order of sums; INT8 by kernels that saturate earlier (AVX2 without VNNI), and then by
# what that does to the rounding behind.
_POSES = Agreement(
    lambda expected, actual, spec: pose_difference(expected, actual, spec.score_threshold),
    _with_int8(
        fp32=PoseDifference(score=1e-3, keypoint_px=0.05, confidence=1e-3),
        fp16=PoseDifference(score=2e-2, keypoint_px=1.0, confidence=2e-2),
        int8=PoseDifference(score=5e-2, keypoint_px=2.0, confidence=5e-2),
    ),
    pose_drift,
)
# Another machine may round the scores of two cells the other way; a fifth is one of the tiny model's five.
_LOOKS = Agreement(
    lambda expected, actual, spec: look_difference(expected, actual, spec.sharp_cells or 0),
    _with_int8(
        fp32=LookDifference(heatmaps=1e-3, quality=1e-3, regions=0.0, context=1e-3),
        fp16=LookDifference(heatmaps=2e-2, quality=1e-2, regions=0.2, context=2e-2),
        int8=LookDifference(heatmaps=5e-2, quality=2e-2, regions=0.2, context=5e-2),
    ),
    look_drift,
)
AGREEMENTS = {"qrpose": _POSES, "querypose": _POSES, "sharpose": _LOOKS}
