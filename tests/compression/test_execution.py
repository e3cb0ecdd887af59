"""Graphs in memory: what goes wrong is said by whom it went wrong for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepose.compression.execution import Feeds, each_output, outputs_of
from edgepose.runtime.errors import EdgeposeError

DOUBLE = helper.make_model(
    helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    ),
    opset_imports=[helper.make_opsetid("", 17)],
    ir_version=8,
)


def feed(*values: float) -> Feeds:
    return {"x": np.array(values, np.float32)}


def test_a_picture_that_cannot_be_read_is_not_the_graphs_fault() -> None:
    def pictures() -> Iterator[Feeds]:
        yield feed(1, 2)
        raise EdgeposeError("000002.png: truncated; copy it again")

    found = each_output(DOUBLE, pictures())
    assert next(found)["y"].tolist() == [2, 4]
    with pytest.raises(EdgeposeError, match=r"^000002\.png: truncated; copy it again$"):
        next(found)


def test_a_feed_that_does_not_fit_is_told_in_one_line() -> None:
    with pytest.raises(EdgeposeError, match="ONNX Runtime cannot run the graph: ") as caught:
        list(each_output(DOUBLE, [feed(1, 2, 3)]))
    assert "\n" not in str(caught.value)


def test_half_tensors_are_quantized_by_rounding() -> None:
    """As ONNX says and NumPy computes: ONNX Runtime before 1.30 cuts off."""
    values = np.random.default_rng(0).normal(size=4096).astype(np.float16)
    scale = np.float16(0.1)
    constants = {"scale": np.asarray(scale), "zero": np.asarray(np.int8(0))}
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("QuantizeLinear", ["half", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [4096])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (found,) = outputs_of(model, [{"x": values.astype(np.float32)}], optimised=False)
    steps = np.rint(values.astype(np.float32) / np.float32(scale))
    np.testing.assert_array_equal(found["y"], steps.clip(-128, 127))
