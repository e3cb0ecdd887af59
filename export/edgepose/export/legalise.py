"""Anybody's quantized ONNX file made legal for TensorRT, rule by rule of the linter, or refused by rule.

What a quantizer answers stays the same where signed integers about 0 can say it, and else moves by at most
one of the longer steps that cover its range. Nothing is calibrated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from edgepose.compression.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    Graph,
    along_axis,
    opset,
    set_constant,
)
from edgepose.export.cpu_kernels import as_calibrated
from edgepose.export.half import MOVES
from edgepose.export.integer_operators import open_integer_operators
from edgepose.export.lint import NEWEST_OPSET, Finding, errors, lint, output_axis
from edgepose.export.opset import EXPORTED, WANTED, step_down
from edgepose.export.quantizer import factors, is_one_byte, lengthen, stretch, value_behind, zero_of
from edgepose.export.views import drop_conv_side, float_weights, never_negative
from edgepose.runtime.errors import EdgeposeError

_VENDOR = "com.microsoft"  # ONNX Runtime's own Q and DQ, equal to the standard ones where the type is 8 bits
_OLDEST_OPSET = 13
_HIGH = 127
_BIASED = ("Conv", "ConvTranspose", "Gemm")

# What helps, by rule, where no mend of the file does: for the rules about quantizers other scales.
_OTHER_SCALES = "quantize the model again with `edgepose compress`"
_OTHER_GRAPH = {
    "Q10": "export the model again with ONNX's own operators alone",
    "G01": "export the model again for an older opset",
    "G02": "export the model again with fixed shapes and no control flow",
    "G03": "export the model again with a smaller, constant K",
}


@dataclass(frozen=True, slots=True)
class Legal:
    """A model that the linter has no error for, and the findings that are gone."""

    model: ModelProto
    mended: list[Finding]


def legalise(model: ModelProto, trt: str = "10.3") -> Legal:
    """The model for TensorRT `trt` (8.6, 10.3 or 11.1); one that is legal already comes back as it is.

    Except for P01, which is slow and not wrong: the pair between a convolution and the Add behind it goes
    from any file. NNCF puts it there by default, and without it TensorRT makes both one kernel.

    Raises EdgeposeError with the node's name and the rule's number for what cannot be mended without
    calibrating again: computed scales, several on an activation, 16 bits, foreign operators, shapes that
    depend on data.
    """
    if opset(model) < _OLDEST_OPSET:
        raise EdgeposeError(
            f"opset {opset(model)}: Q/DQ has its present form from {_OLDEST_OPSET} on; "
            "convert the file with onnx.version_converter first"
        )
    before = lint(model, trt)
    made = as_calibrated(model)  # of our own files for CPUs; a copy of all others
    for mend in MENDS:
        mend(made)
    if made != model:
        del made.graph.value_info[:]  # some of it says uint8
    if trt.startswith("8."):
        float_weights(made)
    _lower_opset(made, NEWEST_OPSET[trt])
    made = drop_conv_side(made)
    left = lint(made, trt)
    _require_no_errors(left)
    still = {(finding.rule, finding.where) for finding in left}
    return Legal(made, [finding for finding in before if (finding.rule, finding.where) not in still])


def _require_no_errors(left: list[Finding]) -> None:
    if refused := errors(left):
        first, more = refused[0], len(refused) - 1
        helps = dict.fromkeys(_OTHER_GRAPH.get(finding.rule, _OTHER_SCALES) for finding in refused)
        raise EdgeposeError(
            f"{first.where}: {first.what} (rule {first.rule}); this cannot be mended in the file"
            f"{f', nor can {more} more' if more else ''}: {', and '.join(helps)}"
        )


# Each mend changes the model in place and leaves alone what is legal, and what it cannot mend.


def _names(model: ModelProto) -> None:
    """What is refused must have a name."""
    for node in model.graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"


def _standard_pairs(model: ModelProto) -> None:
    """Q10, for the vendor's Q and DQ."""
    for node in model.graph.node:
        if node.domain == _VENDOR and node.op_type in (QUANTIZE, DEQUANTIZE):
            node.domain = ""


def _zero_points(model: ModelProto) -> None:
    """Q02: ONNX means uint8 by a missing one, or the type of the constant that is dequantized."""
    graph = Graph(model)
    for node in _pairs(graph):
        source, scale = graph.value(node.input[0]), graph.value(node.input[1])
        if scale is not None and (len(node.input) < 3 or not node.input[2]):
            kind = source.dtype if node.op_type == DEQUANTIZE and source is not None else np.uint8
            del node.input[2:]
            node.input.append(set_constant(model, f"{node.output[0]}/zero", np.zeros(scale.shape, kind)))


def _float_biases(model: ModelProto) -> None:
    """Q08: the value that the bias has."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type in _BIASED and len(node.input) > 2:
            bias = value_behind(graph, graph.producers.get(node.input[2]))
            if bias is not None:
                node.input[2] = set_constant(model, f"{node.input[2]}/float", bias.astype(np.float32))


def _whole_pairs(model: ModelProto) -> None:
    """Q11: what only moves integers moves the dequantized values instead, and the DQ behind it is gone."""
    while (found := _moved_integers(Graph(model))) is not None:
        move, dequantizes = found
        for index in _moved(move):
            made = f"{move.output[0]}/{index}/dequantized"
            names = [move.input[index], *dequantizes[0].input[1:]]  # its own scale, not that of the Q
            before = helper.make_node(DEQUANTIZE, names, [made], f"{move.name}/{index}/Dequantize")
            model.graph.node.insert(list(model.graph.node).index(move), before)
            move.input[index] = made
        gone = {node.output[0]: node.input[0] for node in dequantizes}
        for node in dequantizes:
            model.graph.node.remove(node)
        for node in model.graph.node:
            node.input[:] = [gone.get(name, name) for name in node.input]


def _moved(move: NodeProto) -> range:
    """Which inputs of a node of MOVES are moved; the others say how."""
    return range(len(move.input) if move.op_type == "Concat" else 1)


def _moved_integers(graph: Graph) -> tuple[NodeProto, list[NodeProto]] | None:
    """A node that moves what per-tensor Qs give, and the DQs behind, which alone read it and agree."""
    for move in graph.nodes:
        readers = graph.consumers[move.output[0]] if move.op_type in MOVES else []
        outside = {move.output[0], *(name for reader in readers for name in reader.output)}
        private = len(move.output) == 1 and outside.isdisjoint(graph.outputs)
        makers = [graph.producers.get(move.input[index]) for index in _moved(move)] if readers else []
        if private and makers and all(_is_per_tensor(graph, maker, QUANTIZE) for maker in makers):
            alike = {_steps(graph, reader) for reader in readers}
            if len(alike) == 1 and all(_is_per_tensor(graph, reader, DEQUANTIZE) for reader in readers):
                return move, readers
    return None


def _is_per_tensor(graph: Graph, node: NodeProto | None, kind: str) -> bool:
    scale = graph.value(node.input[1]) if node is not None and node.op_type == kind else None
    return scale is not None and scale.size == 1


def _steps(graph: Graph, node: NodeProto) -> tuple[bytes | None, ...]:
    """Scale and zero point of a Q or DQ, to be compared."""
    values = (graph.value(name) for name in node.input[1:])
    return tuple(None if value is None else value.tobytes() for value in values)


def _dead_channels(model: ModelProto) -> None:
    """Q04, for weights that are 0 wherever their scale is: there any scale is right, and 1 is taken."""
    graph = Graph(model)
    for node in _pairs(graph):
        scale, value = graph.value(node.input[1]), _weights(graph, node)
        if (
            scale is None
            or value is None
            or scale.all()
            or (value * along_axis(scale == 0, node, value.ndim)).any()
        ):
            continue
        filled = np.where(scale == 0, 1, scale).astype(scale.dtype)
        node.input[1] = set_constant(model, f"{node.output[0]}/filled", filled)


def _weights(graph: Graph, node: NodeProto) -> Array | None:
    """The constant in floats or in steps from its zero point that a Q, a DQ or a pair of both works on."""
    quantize = node if node.op_type == QUANTIZE else graph.producers.get(node.input[0])
    if quantize is not None and quantize.op_type == QUANTIZE:
        return graph.value(quantize.input[0])
    integers, zero = graph.value(node.input[0]), zero_of(graph, node)
    if integers is None or zero is None:
        return None
    return integers.astype(np.int64) - along_axis(zero.astype(np.int64), node, integers.ndim)


def _symmetric_weights(model: ModelProto) -> None:
    """Q01, Q03, Q05 for integer constants: shifted where that fits, else rounded to longer steps."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type != DEQUANTIZE or _is_legal(graph, node):
            continue
        integers, scale = graph.value(node.input[0]), graph.value(node.input[1])
        centred = _weights(graph, node) if is_one_byte(integers) else None
        if centred is None or scale is None or integers is None:
            continue
        factor = factors(centred, scale, node)
        signed = np.rint(centred / along_axis(factor, node, centred.ndim)).astype(np.int8)
        node.input[0] = set_constant(model, f"{node.output[0]}/int8", signed)
        lengthen(model, node, scale, factor)


def _symmetric_activations(model: ModelProto) -> None:
    """Q01, Q03, Q05 for what is computed: a signed scale that covers the old range, which still saturates."""
    graph = Graph(model)
    for quantize in graph.nodes:
        if quantize.op_type != QUANTIZE or _is_legal(graph, quantize):
            continue
        pair = [quantize, *(r for r in graph.consumers[quantize.output[0]] if r.op_type == DEQUANTIZE)]
        scales = [scale for node in pair if (scale := graph.value(node.input[1])) is not None]
        zeros = [zero for node in pair if is_one_byte(zero := zero_of(graph, node))]
        if not len(scales) == len(zeros) == len(pair):
            continue
        if zeros[0].size == 1 and all(z.dtype == zeros[0].dtype and (z == zeros[0]).all() for z in zeros):
            longer = stretch(zeros[0])
            for node, scale in zip(pair, scales, strict=True):
                lengthen(model, node, scale, longer)
            if longer > 1:
                _saturate(model, graph, quantize, zeros[0], scales[0])


def _saturate(model: ModelProto, graph: Graph, quantize: NodeProto, zero: Array, scale: Array) -> None:
    """Let nothing below the old range into a Q: tools that write uint8 leave the ReLU before it away."""
    kind, source, made = np.iinfo(zero.dtype), quantize.input[0], f"{quantize.output[0]}/saturated"
    low, high = (float((end - float(zero.item())) * scale.item()) for end in (kind.min, kind.max))
    if low < 0:
        limits = [set_constant(model, f"{made}/{i}", np.float32(end)) for i, end in enumerate((low, high))]
        node = helper.make_node("Clip", [source, *limits], [made], f"{quantize.name}/Clip")
    elif never_negative(graph, source):
        return  # above, old and new steps end together
    else:
        node = helper.make_node("Relu", [source], [made], f"{quantize.name}/Relu")
    quantize.input[0] = made
    model.graph.node.insert(list(model.graph.node).index(quantize), node)


def _weight_axes(model: ModelProto) -> None:
    """Q07: weights with scales elsewhere than on their output channels are rounded again, there."""
    graph = Graph(model)
    broken = {finding.where for finding in lint(model) if finding.rule == "Q07"}
    for node in graph.nodes:
        weight = value_behind(graph, graph.producers.get(node.input[1])) if node.name in broken else None
        if weight is not None:
            axis = output_axis(node, weight.ndim)
            made = _rounded(model, weight, axis, f"{node.name}/weight")
            model.graph.node.insert(list(model.graph.node).index(node), made)
            node.input[1] = made.output[0]


def _rounded(model: ModelProto, weight: Array, axis: int, name: str) -> NodeProto:
    """A DQ of int8 constants with a scale for each index of `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / _HIGH, 1).astype(np.float32)
    values: tuple[Array, ...] = (
        *(np.rint(weight / scale).astype(np.int8), scale.ravel(), np.zeros(scale.size, np.int8)),
    )
    names = [set_constant(model, f"{name}/{index}", value) for index, value in enumerate(values)]
    return helper.make_node(DEQUANTIZE, names, [name], f"{name}/Dequantize", axis=axis)


MENDS: tuple[Callable[[ModelProto], None], ...] = (
    *(_names, _standard_pairs, open_integer_operators, _zero_points, _float_biases, _whole_pairs),
    *(_dead_channels, _symmetric_weights, _symmetric_activations, _weight_axes),
)


def _lower_opset(model: ModelProto, newest: int) -> None:
    """G01, as far as ONNX's converter and ours know the operators; else the linter says what was wanted."""
    target = EXPORTED if newest == WANTED else newest
    try:
        if opset(model) > target:
            model.CopyFrom(onnx.version_converter.convert_version(model, target))
        if opset(model) > newest:
            step_down(model)
    except (RuntimeError, EdgeposeError, onnx.checker.ValidationError):
        return


def _pairs(graph: Graph) -> Iterator[NodeProto]:
    return (node for node in graph.nodes if node.op_type in (QUANTIZE, DEQUANTIZE))


def _is_legal(graph: Graph, node: NodeProto) -> bool:
    """Whether one Q or DQ is signed, symmetric and has a zero point for each scale."""
    scale, zero = graph.value(node.input[1]), zero_of(graph, node)
    if scale is None or zero is None:
        return False
    return zero.dtype == np.int8 and not zero.any() and zero.size == scale.size
