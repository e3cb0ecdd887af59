"""Running a model that is still in memory, and saying how far two results are apart in pose terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from edgepose.runtime.backend_onnxruntime import session_options
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.runtime.poses import F32

Outputs = dict[str, F32]


def outputs_of(model: ModelProto, images: Sequence[F32], *, optimised: bool = True) -> list[Outputs]:
    """Outputs of each (1, 3, H, W) input on ONNX Runtime's CPU, one thread.

    `optimised` False runs node by node, as the file is written. Raises EdgeposeError when it cannot be run.
    """
    ort = require("onnxruntime")
    options = session_options(threads=1)
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(None, {feed: image}), strict=True)) for image in images]
    except Exception as error:  # onnxruntime's own exceptions have no common base but this
        raise EdgeposeError(f"ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}") from error


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
