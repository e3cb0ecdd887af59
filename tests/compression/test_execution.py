"""Graphs in memory: what goes wrong is said by whom it went wrong for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgepose.compression.execution import Feeds, each_output
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
