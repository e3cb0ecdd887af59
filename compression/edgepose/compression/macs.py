"""Multiplications of each layer, counted on the shapes of one run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto

from edgepose.compression.execution import INPUT, Outputs, feeds_of, outputs_of, tapped
from edgepose.compression.graph import WEIGHTED, Array, Graph, attribute

Shape = tuple[int, ...]


def macs_of(models: Mapping[str, ModelProto], size: tuple[int, int]) -> dict[str, dict[str, int]]:
    """By graph and node, for one picture or crop of `size` (width, height); graphs in their order."""
    known: dict[str, Array] = {INPUT: np.zeros((1, 3, size[1], size[0]), np.float32)}
    counted = {}
    for name, model in models.items():
        graph = Graph(model)
        layers = [node for node in graph.nodes if node.op_type in WEIGHTED]
        seen = _seen(model, graph, layers, known)
        shapes = {tensor: value.shape for tensor, value in (known | seen).items()}
        shapes |= {tensor: tuple(proto.dims) for tensor, proto in graph.constants.items()}
        counted[name] = {node.name: _macs(node, shapes) for node in layers}
        known |= seen  # a later graph reads what this one gave
    return counted


def _seen(model: ModelProto, graph: Graph, layers: list[NodeProto], known: Mapping[str, Array]) -> Outputs:
    """What the layers read and make, and what the graph gives."""
    made = (name for node in layers for name in (*node.input[:2], *node.output) if name in graph.producers)
    inner = dict.fromkeys(name for name in made if name not in graph.constants and name not in graph.outputs)
    (outputs,) = outputs_of(tapped(model, list(inner)), [feeds_of(model, known)])
    return outputs


def _macs(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    first, second, result = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        each = int(np.prod(result)) * int(np.prod(second[1:]))  # weights (Cout, Cin / groups, ...)
    elif node.op_type == "ConvTranspose":
        each = int(np.prod(first)) * int(np.prod(second[1:]))  # weights (Cin, Cout / groups, ...)
    else:
        shared = first[0] if attribute(node, "transA", 0) else first[-1]
        each = int(np.prod(result)) * shared
    return each
