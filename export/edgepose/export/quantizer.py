"""The arithmetic of one Q or DQ node: its steps, its zero points, along its axis."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
from onnx import ModelProto, NodeProto

from edgepose.compression.graph import DEQUANTIZE, QUANTIZE, Array, Graph, along_axis, attribute, set_constant

LOW, HIGH = -128, 127


def zero_of(graph: Graph, node: NodeProto) -> Array | None:
    """The constant zero point of a Q or DQ, or None."""
    return graph.value(node.input[2]) if len(node.input) > 2 else None


def is_one_byte(values: Array | None) -> TypeGuard[Array]:
    """16 bits hold more than 8 can; 4 bits and 8-bit floats are other formats."""
    return values is not None and values.dtype in (np.int8, np.uint8)


def stretch(zero: Array) -> float:
    """How much longer signed steps about 0 are that cover what steps about `zero` did; 1 where they fit."""
    kind = np.iinfo(zero.dtype)
    return max(1.0, (kind.min - int(zero.item())) / LOW, (kind.max - int(zero.item())) / HIGH)


def factors(centred: Array, scale: Array, node: NodeProto) -> Array:
    """For each scale: how much longer its steps have to be for its weights, `centred` on 0, to fit 8 bits."""
    axis = attribute(node, "axis", 1) % max(1, centred.ndim)
    others = tuple(i for i in range(centred.ndim) if scale.size == 1 or i != axis)
    needed = np.maximum(centred.min(axis=others) / LOW, centred.max(axis=others) / HIGH)
    return np.asarray(np.maximum(1, needed)).reshape(scale.shape)


def lengthen(model: ModelProto, node: NodeProto, scale: Array, factor: float | Array) -> None:
    """Give a Q or DQ, in place, steps longer by `factor` than its `scale`, signed and about 0."""
    made = node.output[0]
    steps = (scale * factor).astype(scale.dtype)
    node.input[1:] = [
        set_constant(model, f"{made}/scale", steps),
        set_constant(model, f"{made}/zero", np.zeros(steps.shape, np.int8)),
    ]


def value_behind(graph: Graph, dequantize: NodeProto | None) -> Array | None:
    """The value of a DQ of integer constants, or of a DQ and Q of float constants; None of anything else."""
    if dequantize is None or dequantize.op_type != DEQUANTIZE:
        return None
    scale, zero = graph.value(dequantize.input[1]), zero_of(graph, dequantize)
    integers = graph.value(dequantize.input[0])
    if integers is None:
        integers = _rounded(graph, graph.producers.get(dequantize.input[0]))
    if integers is None or scale is None or zero is None:
        return None
    centred = integers - along_axis(zero.astype(np.float64), dequantize, integers.ndim)
    return centred * along_axis(scale.astype(np.float64), dequantize, integers.ndim)


def _rounded(graph: Graph, quantize: NodeProto | None) -> Array | None:
    """The integers that a Q makes of constants."""
    if quantize is None or quantize.op_type != QUANTIZE:
        return None
    values, scale, zero = (
        graph.value(quantize.input[0]),
        graph.value(quantize.input[1]),
        zero_of(graph, quantize),
    )
    if values is None or scale is None or zero is None:
        return None
    kind, rank = np.iinfo(zero.dtype), values.ndim
    steps = np.rint(values / along_axis(scale, quantize, rank)) + along_axis(
        zero.astype(np.float64), quantize, rank
    )
    return steps.clip(kind.min, kind.max)
