"""Small graphs behind one pair whose steps are powers of two, so that floats are exact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

IN, OUT = np.float32(0.5), np.float32(8.0)  # steps


def graph_of(
    nodes: list[NodeProto], constants: dict[str, npt.NDArray[np.generic]], shape: list[int]
) -> ModelProto:
    """x -> Q -> DQ -> d, then `nodes` up to y."""
    constants = {"in": np.array(IN), "out": np.array(OUT), "z": np.array(0, np.uint8), **constants}
    pair = [
        helper.make_node("QuantizeLinear", ["x", "in", "z"], ["q"], "Q"),
        helper.make_node("DequantizeLinear", ["q", "in", "z"], ["d"], "DQ"),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", [None] * 4))
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph([*pair, *nodes], "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
