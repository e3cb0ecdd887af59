"""Families of one graph that finds everybody: QR-Pose and QueryPose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgepose.compression.execution import INPUT, Outputs
from edgepose.export.contract import Contract, Difference, Ports
from edgepose.runtime.spec import Spec
from edgepose.training.models.querypose.network import QueryPose

GRAPH = "pose"
OUTPUTS = ("scores", "boxes", "keypoints", "keypoint_scores")


@dataclass(frozen=True, slots=True)
class PoseDifference(Difference):
    """The largest differences between the poses of two results."""

    score: float
    keypoint_px: float  # pixels of the network input
    confidence: float


def difference(expected: Outputs, actual: Outputs, threshold: float) -> PoseDifference:
    """Compare the people of one image (batch 1) with an expected score of `threshold` or more, or the best.

    Slots are matched by the nearest pose: rounding may exchange neighbours in the order of scores.
    """
    scores = expected["scores"][0]
    chosen = np.flatnonzero(scores >= min(threshold, float(scores.max())))
    apart = np.abs(expected["keypoints"][0][chosen][:, None] - actual["keypoints"][0][None])  # (P, N, K, 2)
    distances = apart.reshape(len(chosen), len(scores), -1).max(2)  # (P, N)
    nearest = distances.argmin(1)
    confidence = expected["keypoint_scores"][0][chosen] - actual["keypoint_scores"][0][nearest]
    return PoseDifference(
        score=float(np.abs(scores[chosen] - actual["scores"][0][nearest]).max()),
        keypoint_px=float(distances.min(1).max()),
        confidence=float(np.abs(confidence).max()),
    )


# How far another machine may be from the recorded outputs. FP32 differs by the order of sums; INT8 by kernels
# that saturate earlier (AVX2 without VNNI), and then by what that does to the rounding behind.
_INT8 = PoseDifference(score=5e-2, keypoint_px=2.0, confidence=5e-2)
_VIEWS: Mapping[str, PoseDifference] = {
    "fp32": PoseDifference(score=1e-3, keypoint_px=0.05, confidence=1e-3),
    "fp16": PoseDifference(score=2e-2, keypoint_px=1.0, confidence=2e-2),
    "int8.ort": _INT8,
    "int8.trt": _INT8,
    "int8.trt-typed": _INT8,
}

SINGLE_STAGE = Contract(
    ports={GRAPH: Ports((INPUT,), OUTPUTS)},
    modules=lambda network: {GRAPH: network},
    prepared=lambda network: network,
    described=lambda spec, _: spec,
    difference=lambda expected, actual, spec: difference(expected, actual, spec.score_threshold),
    traced=PoseDifference(score=1e-4, keypoint_px=0.01, confidence=1e-4),
    views=_VIEWS,
)


def _with_skeleton(spec: Spec, network: QueryPose) -> Spec:
    return replace(spec, skeleton=network.config.skeleton)


# The same outputs, of the joints that the network was built for.
QUERIES = replace(SINGLE_STAGE, described=_with_skeleton)
