"""Operators on integers written as Q/DQ around the float operator that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgepose.compression.graph import QUANTIZE, Graph, floats_of, set_constant


def open_integer_operators(model: ModelProto) -> None:
    """Open, in place, every QLinearConv and QLinearMatMul whose weights and scales are constant.

    ONNX operator documentation, QLinearConv and QLinearMatMul. The others have no scales of their own.
    """
    graph = Graph(model)
    nodes = [made for node in graph.nodes for made in _opened(model, graph, node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _opened(model: ModelProto, graph: Graph, node: NodeProto) -> Iterator[NodeProto]:
    opener = OPENERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    steps = node.input[1:3], node.input[4:8]
    if opener is None or any(name not in graph.constants for part in steps for name in part):
        yield node
        return
    made = node.output[0]
    yield floats_of(node.input[0:3], f"{made}/first")
    # Weights have their scales on the output channels: the first axis of a convolution, the last of a matrix.
    yield floats_of(node.input[3:6], f"{made}/second", axis=0 if node.op_type == "QLinearConv" else -1)
    yield opener(model, graph, node)
    yield helper.make_node(QUANTIZE, [f"{made}/float", *node.input[6:8]], [made], f"Quantize_{made}")


def _conv(model: ModelProto, graph: Graph, node: NodeProto) -> NodeProto:
    made = node.output[0]
    inputs = [f"{made}/first", f"{made}/second"]
    bias = graph.value(node.input[8]) if len(node.input) > 8 else None
    if bias is not None:  # int32 in steps of the two scales' product
        scales = [np.asarray(graph.value(node.input[index]), np.float64) for index in (1, 4)]
        inputs.append(set_constant(model, f"{made}/bias", (bias * scales[0] * scales[1]).astype(np.float32)))
    conv = helper.make_node("Conv", inputs, [f"{made}/float"], node.name or f"Conv_{made}")
    conv.attribute.extend(node.attribute)
    return conv


def _matmul(model: ModelProto, graph: Graph, node: NodeProto) -> NodeProto:
    made = node.output[0]
    return helper.make_node(
        "MatMul", [f"{made}/first", f"{made}/second"], [f"{made}/float"], node.name or f"MatMul_{made}"
    )


OPENERS: dict[str, Callable[[ModelProto, Graph, NodeProto], NodeProto]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
}
