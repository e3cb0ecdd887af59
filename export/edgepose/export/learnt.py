"""From a network whose quantizers have learnt to the folder that `edgepose compress` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto
from torch import nn

from edgepose.compression.artefact import CROPS, TORCH, Compressed, Source, write
from edgepose.compression.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    Graph,
    along_axis,
    copy,
    drop_dead,
    set_constant,
)
from edgepose.compression.qat import example_of
from edgepose.compression.quantize import Quantized
from edgepose.compression.torch_quantize import rebuild_quantized_torch, save_quantized_torch
from edgepose.compression.trainable import HIGHEST, into_nncf, quantizers, settled
from edgepose.export.trace import trace
from edgepose.runtime.errors import EdgeposeError

PAIR = frozenset({QUANTIZE, DEQUANTIZE})


def write_learnt(
    draft: Path, found: Compressed, model: nn.Module, best: nn.Module, told: Mapping[str, int]
) -> None:
    """Fill the folder `draft` as `edgepose compress` does, with what `best` of the float `model` has learnt.

    `told` joins the settings. Raises EdgeposeError as `learnt_graph` does.
    """
    (name,) = found.spec.graphs
    graph = learnt_graph(found, model, best)
    theirs = rebuild_quantized_torch(found.torch(), model, example_of(found))
    save_quantized_torch(draft / TORCH, into_nncf(best, theirs).eval())
    source = Source(
        spec=found.spec,
        provenance=found.provenance,
        graphs={name: found.folder / f"{name}.fp32.onnx"},
        manifest=found.manifest(),
        manifest_sha256=found.calibration["sha256"],
        frames=list(found.frames()),
        crops={key: found.calibration[key] for key in CROPS if key in found.calibration},
    )
    quantized = Quantized(graph, found.plan[name], {**found.settings, **told})
    write(draft, source, {name: quantized}, found.versions)


def learnt_graph(found: Compressed, model: nn.Module, best: nn.Module) -> ModelProto:
    """The quantized graph of `found` with the weights, biases and scales that `best` has learnt.

    Its nodes, names and last INT8 results stay, so that all that is known of it stays true. Raises
    EdgeposeError unless every quantizer is traced once, and found again in the graph.
    """
    (name,) = found.spec.graphs
    traced, plain = trace(settled(best), found.spec)[name], trace(model, found.spec)[name]
    pairs, wanted = sum(node.op_type == DEQUANTIZE for node in traced.graph.node), len(quantizers(best))
    if pairs != wanted:
        raise EdgeposeError(
            f"{found.spec.model}: its graph has {pairs} quantizers, the network {wanted}; "
            "they cannot be told apart, use what `edgepose compress` wrote"
        )
    return transplanted(traced, plain, found.quantized(name))


def transplanted(traced: ModelProto, plain: ModelProto, quantized: ModelProto) -> ModelProto:
    """`quantized` with the numbers of `traced`, a trace with quantizers of what `plain` is one without.

    `plain` has the names of `quantized`. Raises EdgeposeError where their quantizers stand at other places.
    """
    learnt, result = Graph(traced), copy(quantized)
    old, twins = Graph(result), list(_twins(learnt, Graph(plain)))
    names = {
        mine: other for node, twin in twins for mine, other in zip(node.output, twin.output, strict=True)
    }
    _scale_activations(result, old, _activation_scales(learnt, names))
    named = {node.name: node for node in old.nodes}
    for node, twin in twins:
        if twin.name in named:  # else it computes a constant, and was folded
            _give(result, old, named[twin.name], _parameters(learnt, node))
    drop_dead(result)
    return result


def _activation_scales(learnt: Graph, names: Mapping[str, str]) -> dict[str, Array]:
    """By the tensor that is quantized, as `names` has it, if it does."""
    scales: dict[str, Array] = {}
    for node in learnt.nodes:
        tensor = node.input[0] if node.op_type == QUANTIZE else ""
        if not tensor or tensor in learnt.constants:
            continue
        scale = learnt.value(node.input[1])
        assert scale is not None, f"{tensor}: its scale is computed"
        if names.get(tensor, tensor) in scales:
            raise EdgeposeError(f"{tensor} is quantized twice, in two ways; export the network in floats")
        scales[names.get(tensor, tensor)] = scale
    return scales


def _scale_activations(result: ModelProto, old: Graph, scales: Mapping[str, Array]) -> None:
    """Give the pairs of `result`, indexed as `old`, their scales, in place."""
    placed = set()
    for node in old.nodes:
        pair = node.op_type in PAIR
        tensor = old.before_pair(node.output[0]) or node.input[0] if pair else ""
        if tensor in scales:
            node.input[1] = set_constant(result, f"{tensor}/scale", scales[tensor])
            placed.add(tensor)
    if lost := sorted(scales.keys() - placed):
        raise EdgeposeError(f"the trained network quantizes {lost[0]}, the compressed graph does not")


def _twins(learnt: Graph, plain: Graph) -> Iterator[tuple[NodeProto, NodeProto]]:
    """The nodes of a trace with quantizers, each beside its twin of the trace without."""
    own = [node for node in learnt.nodes if node.op_type not in PAIR]
    if [node.op_type for node in own] != [node.op_type for node in plain.nodes]:
        raise EdgeposeError(
            "with quantizers the network is traced otherwise than without; export it in floats"
        )
    return zip(own, plain.nodes, strict=True)


class Parameter(NamedTuple):
    """Floats that a node reads."""

    place: int  # among the node's inputs
    value: Array
    scale: Array | None  # of their steps, where they are rounded
    step: Array | None  # the same, shaped to multiply the value


def _parameters(learnt: Graph, node: NodeProto) -> Iterator[Parameter]:
    for place, tensor in enumerate(node.input):
        source = learnt.before_pair(tensor)
        value = learnt.value(source or tensor)
        if value is None or value.dtype != np.float32:
            continue
        scale = learnt.value(learnt.producers[tensor].input[1]) if source else None
        step = None if scale is None else along_axis(scale, learnt.producers[tensor], value.ndim)
        yield Parameter(place, value, scale, step)


def _give(result: ModelProto, old: Graph, node: NodeProto, parameters: Iterator[Parameter]) -> None:
    """Let a node of `result`, indexed as `old`, read new values, in place."""
    for place, value, scale, step in parameters:
        own, name = old.producers.get(node.input[place]), f"{node.name}/{place}"
        if scale is None or step is None:
            node.input[place] = set_constant(result, name, value)
            continue
        if own is None or own.op_type != DEQUANTIZE:
            raise EdgeposeError(f"the trained network has {node.name} in INT8, the compressed graph has not")
        integers = np.clip(np.rint(value / step), -HIGHEST, HIGHEST).astype(np.int8)
        own.input[0] = set_constant(result, f"{name}/int8", integers)
        own.input[1] = set_constant(result, f"{name}/scale", scale)
