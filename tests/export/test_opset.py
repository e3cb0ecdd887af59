"""Opset 18 to 17: what PyTorch's exporter writes, in the older form, with the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import copy, opset
from edgepose.export.opset import step_down
from edgepose.runtime.errors import EdgeposeError


def model_of(*nodes: NodeProto, constants: dict[str, Any] | None = None, rank: int = 4) -> ModelProto:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", [given], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


SCALES = np.array([1, 1, 2, 2], np.float32)
RESIZE = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
CASES = {
    op: model_of(
        helper.make_node(op, ["x", "axes"], ["y"], "n", keepdims=1, noop_with_empty_axes=0),
        constants={"axes": np.array([2, -1], np.int64)},
    )
    for op in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceL2", "ReduceSum", "ReduceLogSumExp")
} | {
    "all axes": model_of(helper.make_node("ReduceMean", ["x"], ["y"], "n", keepdims=0), rank=0),
    "Split": model_of(
        helper.make_node("Split", ["x"], ["y", "z"], "n", axis=1, num_outputs=2),
    ),
    "Resize": model_of(
        helper.make_node(
            "Resize", ["x", "", "s"], ["y"], "n", antialias=0, keep_aspect_ratio_policy="stretch", **RESIZE
        ),
        constants={"s": SCALES},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_answers_in_the_older_form(name: str) -> None:
    model = copy(CASES[name])
    image = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    before = outputs_of(model, [{"x": image}], optimised=False)[0]["y"]
    step_down(model)
    assert opset(model) == 17
    np.testing.assert_array_equal(outputs_of(model, [{"x": image}], optimised=False)[0]["y"], before)


@pytest.mark.parametrize(
    "model",
    [
        model_of(helper.make_node("Mish", ["x"], ["y"], "n")),  # new in 18
        model_of(
            helper.make_node("Resize", ["x", "", "s"], ["y"], "n", antialias=1, **RESIZE),
            constants={"s": SCALES},
        ),
        model_of(
            helper.make_node("Split", ["x"], ["y", "z", "w"], "n", axis=1, num_outputs=3)
        ),  # 4 in 3 parts
        model_of(
            helper.make_node("Shape", ["x"], ["axes"], "s"),
            helper.make_node("ReduceMax", ["x", "axes"], ["y"], "n"),
        ),
    ],
    ids=["Mish", "antialias", "uneven Split", "computed axes"],
)
def test_what_17_cannot_say_is_refused(model: ModelProto) -> None:
    with pytest.raises(EdgeposeError) as caught:
        step_down(copy(model))
    assert "\n" not in str(caught.value)
