"""Comparing poses: matched by place, not by rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from edgepose.compression.execution import Outputs, outputs_of
from edgepose.compression.graph import copy
from edgepose.runtime.agreement import PoseDifference as Difference
from edgepose.runtime.agreement import largest
from edgepose.runtime.agreement import pose_difference as difference
from edgepose.runtime.errors import EdgeposeError


def people(seed: int, count: int = 6) -> Outputs:
    rng = np.random.default_rng(seed)
    return {
        "scores": np.sort(rng.uniform(0.01, 0.99, (1, count)))[:, ::-1].astype(np.float32),
        "keypoints": rng.uniform(0, 256, (1, count, 5, 2)).astype(np.float32),
        "keypoint_scores": rng.uniform(0, 1, (1, count, 5)).astype(np.float32),
    }


@given(st.integers(0, 2**32 - 1), st.permutations(range(6)))
def test_order_does_not_matter(seed: int, order: list[int]) -> None:
    a = people(seed)
    b = {name: array[:, order] for name, array in a.items()}
    assert difference(a, b, 0.3) == Difference(0, 0, 0)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9))
def test_the_largest_shift_of_anyone_above_the_threshold_is_found(seed: int, threshold: float) -> None:
    a = people(seed)
    b = {name: array.copy() for name, array in a.items()}
    counted = max(1, int((a["scores"][0] >= threshold).sum()))
    b["keypoints"][0, counted - 1, 2, 1] += 0.75
    b["scores"][0, 0] -= 0.125
    b["keypoint_scores"][0, 0, 4] += 0.25
    found = difference(a, b, threshold)
    assert found.keypoint_px == pytest.approx(0.75, abs=1e-4)
    assert found.score == pytest.approx(0.125, abs=1e-6)
    assert found.confidence == pytest.approx(0.25, abs=1e-6)


def test_below_the_threshold_nobody_counts_but_the_best() -> None:
    a = people(1)
    b = {name: array.copy() for name, array in a.items()}
    b["keypoints"][0, 1:] += 50
    assert difference(a, b, 1.0).keypoint_px == 0
    assert difference(a, b, 0.0).keypoint_px > 1


def test_limits_and_not_a_number() -> None:
    limit = Difference(0.1, 1.0, 0.1)
    assert Difference(0.1, 1.0, 0.1).within(limit)
    assert not Difference(0.1, 1.01, 0.1).within(limit)
    assert not Difference(float("nan"), 0, 0).within(limit)
    assert largest([Difference(1, 2, 3), Difference(3, 1, 2)]) == Difference(3, 2, 3)


def test_a_graph_that_cannot_run_is_one_sentence(traced: ModelProto) -> None:
    model = copy(traced)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(EdgeposeError, match="cannot run") as caught:
        outputs_of(model, [{"images": np.zeros((1, 3, 64, 64), np.float32)}])
    assert "\n" not in str(caught.value)
