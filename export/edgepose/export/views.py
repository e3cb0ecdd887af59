"""Mechanical rewrites of one quantized model, same scales, into the forms that each runtime fuses.

`quantize` gives the common origin: int8 Q/DQ, zero point 0, both inputs of every residual Add quantized.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgepose.compression.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    Graph,
    along_axis,
    attribute,
    copy,
    drop_dead,
    set_constant,
)
from edgepose.export.cpu_kernels import move_as_bytes, split_groups
from edgepose.export.cpu_products import fold_products, take_biases, unfold_patches
from edgepose.export.half import half_typed

_POSITIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Abs", "Exp"})  # outputs are never below 0
# These hand values on or average them, so their output is not negative when their data inputs are not.
_MOVES = frozenset(
    {
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Concat",
        "Transpose",
        "Flatten",
        "Identity",
        "Resize",
        "Reshape",
    }
    | {"Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand", "Tile", QUANTIZE, DEQUANTIZE}
)
_ALL_INPUTS_ARE_DATA = frozenset({"Concat", "Add", "Mul", "Max"})


def cpu_view(model: ModelProto) -> ModelProto:
    """What ONNX Runtime's CPU kernels fuse: unsigned activations with the same scales.

    Values that cannot be negative become uint8 with zero point 0, equal up to saturation: they clip at 255
    steps instead of 127. The others become uint8 with zero point 128, bit for bit the same. Weights stay, but
    for the zeros that `split_groups` puts between groups; LayerNorms take in the products behind them,
    products the biases, and patches are products.
    """
    model = copy(model)
    graph = Graph(model)
    signs: dict[str, bool] = {}
    zero_points: dict[str, str] = {}  # quantized tensor -> its new zero point
    for node in graph.nodes:
        if node.op_type == QUANTIZE and node.input[0] not in graph.constants and _is_signed_zero(graph, node):
            zero = 0 if never_negative(graph, node.input[0], signs) else 128
            zero_points[node.output[0]] = set_constant(model, f"zero_point_{zero}", np.array(zero, np.uint8))
    for node in graph.nodes:
        quantized = {QUANTIZE: node.output, DEQUANTIZE: node.input}.get(node.op_type)
        if quantized is not None and quantized[0] in zero_points:
            node.input[2] = zero_points[quantized[0]]
    split_groups(model)
    move_as_bytes(model)
    fold_products(model)
    take_biases(model)
    unfold_patches(model)
    del model.graph.value_info[:]  # some of it says int8
    return model


def _is_signed_zero(graph: Graph, node: NodeProto) -> bool:
    zero = graph.value(node.input[2]) if len(node.input) > 2 else None
    return zero is not None and zero.dtype == np.int8 and zero.size == 1 and not zero.any()


def never_negative(graph: Graph, tensor: str, known: dict[str, bool] | None = None) -> bool:
    """Whether a tensor's operators make no value below 0; `known` collects what was found on the way."""
    known = {} if known is None else known
    if tensor not in known:
        constant, node = graph.value(tensor), graph.producers.get(tensor)
        if constant is not None:
            known[tensor] = bool((constant >= 0).all())
        elif node is None:
            known[tensor] = False
        else:
            known[tensor] = _makes_no_negative(graph, node, known)
    return known[tensor]


def _makes_no_negative(graph: Graph, node: NodeProto, known: dict[str, bool]) -> bool:
    if node.op_type in _POSITIVE:
        return True
    if node.op_type == "Clip" and len(node.input) > 1:
        lowest = graph.value(node.input[1])
        return lowest is not None and bool(lowest >= 0)
    if node.op_type == "Resize" and attribute(node, "mode", b"nearest") == b"cubic":
        return False  # cubic interpolation overshoots
    if node.op_type in _ALL_INPUTS_ARE_DATA:
        return all(never_negative(graph, name, known) for name in node.input)
    return node.op_type in _MOVES and never_negative(graph, node.input[0], known)


def trt_view(model: ModelProto) -> ModelProto:
    """TensorRT 8.x and weakly typed 10.x: float32 Q/DQ in NVIDIA's placement, weights as float + Q + DQ.

    TensorRT 8.x refuses int8 initializers; the floats are the dequantized ones, so no integer changes.
    """
    model = drop_conv_side(model)
    float_weights(model)
    return model


def float_weights(model: ModelProto) -> None:
    """Replace, in place, int8 initializers by the floats that they stand for, with Q and DQ behind."""
    graph = Graph(model)
    for node in graph.nodes:
        integers = graph.value(node.input[0]) if node.op_type == DEQUANTIZE else None
        if integers is not None and integers.dtype == np.int8:
            _quantize_in_graph(model, graph, node, integers)
    drop_dead(model)


def _quantize_in_graph(model: ModelProto, graph: Graph, node: NodeProto, integers: Array) -> None:
    scale = graph.value(node.input[1])
    assert scale is not None, f"{node.name}: its scale is computed"
    floats = integers.astype(np.float32) * along_axis(scale, node, integers.ndim)
    weight = set_constant(model, f"{node.output[0]}/float", floats)
    quantized = f"{node.output[0]}/quantized"
    quantize = helper.make_node(
        QUANTIZE,
        [weight, *node.input[1:]],
        [quantized],
        f"{node.name}/Quantize",
        axis=attribute(node, "axis", 1),
    )
    node.input[0] = quantized
    place = next(
        i for i, other in enumerate(model.graph.node) if other is node or other.output[0] == node.output[0]
    )
    model.graph.node.insert(place, quantize)


def typed_view(model: ModelProto, keep_float: Collection[str]) -> ModelProto:
    """Strongly typed TensorRT 10.x and 11.x: half outside Q/DQ and `keep_float`; opset 19, float32 ends."""
    return half_typed(drop_conv_side(model), keep_float)


def fp16_view(model: ModelProto, keep_float: Collection[str]) -> ModelProto:
    """The FP32 model in half precision, but for the nodes named in `keep_float`; float32 ends."""
    return half_typed(model, keep_float)


def drop_conv_side(model: ModelProto) -> ModelProto:
    """Without the pair between a convolution and the Add it feeds; the shortcut keeps its own.

    TensorRT then fuses convolution, Add and ReLU into one INT8 kernel (its add_custom_qdq_cases guide).
    Where both inputs come from convolutions, the first is freed.
    """
    model = copy(model)
    graph = Graph(model)
    for node in graph.nodes:
        freed = conv_side(graph, node)
        if freed is not None:
            node.input[freed] = graph.before_pair(node.input[freed]) or ""
    drop_dead(model)
    return model


def conv_side(graph: Graph, node: NodeProto) -> int | None:
    """Which input of an Add reads a convolution through a pair, when both have pairs: it hinders fusion."""
    if node.op_type != "Add":
        return None
    before = [graph.before_pair(name) for name in node.input]
    if None in before:
        return None
    for index, tensor in enumerate(before):
        conv = graph.producers.get(tensor or "")
        if (
            conv is not None
            and conv.op_type == "Conv"
            and _pair_is_private(graph, conv, node.input[index], node)
        ):
            return index
    return None


def _pair_is_private(graph: Graph, conv: NodeProto, dequantized: str, reader: NodeProto) -> bool:
    dequantize = graph.producers[dequantized]
    quantize = graph.producers[dequantize.input[0]]
    return graph.read_only_by(conv.output[0], quantize) and graph.read_only_by(dequantized, reader)
