"""Exact rewrites of a quantized graph, in place, into what ONNX Runtime's CPU kernels are fast at.

INT8 convolutions want one group, and what moves values wants bytes; timed on `qrpose_tiny` with VNNI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgepose.compression.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Array,
    Graph,
    attribute,
    copy,
    drop_dead,
    floats_of,
    place_of,
    set_constant,
)
from edgepose.export.cpu_products import part_products, part_products_of_bytes

WIDTH = 32  # input channels of a whole convolution that stands for a few groups: 24 to 48 are as fast
SPLIT, BYTES = "/Split", "/bytes"  # what names end in: of a node, of a tensor
_MOVES = frozenset({"Reshape", "Transpose", "Gather", "Flatten", "Squeeze", "Unsqueeze"})


class Grouped(NamedTuple):
    """An INT8 convolution of several groups, and what stands around it."""

    conv: NodeProto
    before: NodeProto  # the DequantizeLinear of its activation
    weight: NodeProto  # and of its weight
    relu: NodeProto | None
    after: NodeProto  # the QuantizeLinear of its result
    values: tuple[Array, ...]  # integers, scale and zero point of the weight, and the bias if there is one


def split_groups(model: ModelProto) -> None:
    """Grouped INT8 convolutions become whole ones of a few groups each, with zeros between the groups.

    ONNX Runtime's INT8 kernel for groups takes 17 of 8 channels one by one, 4.4 ms; five whole ones, which
    multiply three and a half times as much, take 1.1 and its float kernel 2.5. Depthwise ones have their own.
    """
    graph = Graph(model)
    for node in graph.nodes:
        found = _grouped(graph, node)
        if found is not None:
            place = place_of(model, found.after)
            for offset, part in enumerate(_whole(model, found)):
                model.graph.node.insert(place + offset, part)
            model.graph.node.remove(found.after)
    drop_dead(model)


def _grouped(graph: Graph, conv: NodeProto) -> Grouped | None:
    if conv.op_type != "Conv" or attribute(conv, "group", 1) == 1:
        return None
    before, weight = (graph.producers.get(name) for name in conv.input[:2])
    if before is None or weight is None or {before.op_type, weight.op_type} != {DEQUANTIZE}:
        return None
    step, values = graph.value(before.input[1]), [graph.value(n) for n in (*weight.input, *conv.input[2:])]
    known = tuple(value for value in values if value is not None)
    if step is None or step.size > 1 or len(known) < len(values) or known[0].shape[1] == 1:
        return None
    relu, readers = None, graph.consumers[conv.output[0]]
    if len(readers) == 1 and readers[0].op_type == "Relu":
        relu, readers = readers[0], graph.consumers[readers[0].output[0]]
    read = (conv if relu is None else relu).output[0]
    if len(readers) != 1 or readers[0].op_type != QUANTIZE or read in graph.outputs:
        return None
    return Grouped(conv, before, weight, relu, readers[0], known)


def _whole(model: ModelProto, found: Grouped) -> Iterator[NodeProto]:
    """The nodes that stand for `found`, in their order; names and results of each end in a number."""
    name, groups, integers = found.conv.name, attribute(found.conv, "group"), found.values[0]
    outputs, inputs = integers.shape[0] // groups, integers.shape[1]
    parts = np.array_split(np.arange(groups), min(groups, -(-groups * inputs // WIDTH)))
    sizes = set_constant(model, f"{name}/sizes", np.array([len(part) * inputs for part in parts], np.int64))
    read, made = (
        [f"{end}/{index}" for index in range(len(parts))] for end in (f"{name}/read", found.after.output[0])
    )
    split = helper.make_node("Split", [found.before.input[0], sizes], read, f"{name}{SPLIT}", axis=1)
    split.doc_string = f"{groups} groups"  # who undoes this must know
    yield split
    for index, own in enumerate(parts):
        rows = slice(own[0] * outputs, (own[-1] + 1) * outputs)
        values = [value[rows] if value.size > 1 else value for value in found.values]
        values[0] = _spread(values[0], len(own))
        constants = [set_constant(model, f"{name}/{index}/{i}", value) for i, value in enumerate(values)]
        yield from _part(found, index, constants)
    yield helper.make_node("Concat", made, [found.after.output[0]], f"{name}/Concat", axis=1)


def _spread(integers: Array, groups: int) -> Array:
    """(groups*o, i, ...) -> (groups*o, groups*i, ...), zero where an output does not read an input."""
    outputs, inputs = integers.shape[0] // groups, integers.shape[1]
    whole = np.zeros((len(integers), groups * inputs, *integers.shape[2:]), integers.dtype)
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        whole[own, group * inputs : (group + 1) * inputs] = integers[own]
    return whole


def _part(found: Grouped, index: int, constants: Sequence[str]) -> Iterator[NodeProto]:
    """One whole convolution with the pairs around it."""
    name, pair = found.conv.name, len(found.weight.input)
    values, weight = f"{name}/float/{index}", f"{name}/weight/{index}"
    yield floats_of([f"{name}/read/{index}", *found.before.input[1:]], values)
    yield floats_of(constants[:pair], weight, axis=attribute(found.weight, "axis", 1))
    conv = _renamed(found.conv, index, [values, weight, *constants[pair:]])
    del conv.attribute[:]
    conv.attribute.extend(entry for entry in found.conv.attribute if entry.name != "group")
    yield conv
    last = conv
    if found.relu is not None:
        last = _renamed(found.relu, index, conv.output)
        yield last
    yield _renamed(found.after, index, [*last.output, *found.after.input[1:]])


def _renamed(node: NodeProto, index: int, inputs: Sequence[str]) -> NodeProto:
    """The node once more, with a number behind its name and its result."""
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.name, twin.output[0] = f"{node.name}/{index}", f"{node.output[0]}/{index}"
    twin.input[:] = inputs
    return twin


def move_as_bytes(model: ModelProto) -> None:
    """What only moves values moves them before they are floats again, a quarter of the memory.

    ONNX Runtime does so itself up to a Gather. A Shape needs no values and reads what was quantized.
    """
    moved = True
    while moved:
        graph, moved = Graph(model), False
        for node in graph.nodes:
            tensor = graph.before_pair(node.input[0]) if node.op_type == "Shape" else None
            if tensor is not None:
                node.input[0] = tensor
        for node in graph.nodes:
            maker = graph.producers.get(node.input[0]) if node.op_type in _MOVES else None
            if maker is not None and _is_activation(graph, maker) and node.output[0] not in graph.outputs:
                _swap(model, maker, node)
                moved = True
    drop_dead(model)


def _is_activation(graph: Graph, node: NodeProto) -> bool:
    """Whether it makes floats of computed bytes, all with one scale."""
    scale = graph.value(node.input[1]) if node.op_type == DEQUANTIZE else None
    return scale is not None and scale.size == 1 and node.input[0] not in graph.constants


def _swap(model: ModelProto, dequantize: NodeProto, node: NodeProto) -> None:
    """Let `node`, which reads what `dequantize` makes, read its bytes, and one like it stand behind."""
    floats, moved = node.output[0], f"{node.output[0]}{BYTES}"
    node.input[0], node.output[0] = dequantize.input[0], moved
    model.graph.node.insert(place_of(model, node) + 1, floats_of([moved, *dequantize.input[1:]], floats))


def as_calibrated(model: ModelProto) -> ModelProto:
    """A copy in which all rewrites are undone: the layers, and the names of all they make, as in floats."""
    result = copy(model)
    part_products_of_bytes(result)
    part_products(result)
    _move_as_floats(result)
    graph = Graph(result)
    for node in graph.nodes:
        groups = re.fullmatch(r"(\d+) groups", node.doc_string)
        if node.op_type == "Split" and groups and node.name.endswith(SPLIT):
            _join(result, graph, node, int(groups[1]))
    drop_dead(result)
    return result


def _move_as_floats(model: ModelProto) -> None:
    graph = Graph(model)
    moves = [node for node in graph.nodes if node.op_type in _MOVES and node.output[0].endswith(BYTES)]
    for node in moves:
        before, after = node.input[0], _reader(graph, node.output[0])
        if after is None:
            continue
        if before.endswith(BYTES):
            node.input[0] = before.removesuffix(BYTES)
        else:
            node.input[0] = _in_floats(model, graph, before, after, node)
        for reader in graph.consumers[node.output[0]]:
            if reader.op_type == DEQUANTIZE:
                model.graph.node.remove(reader)
        node.output[0] = node.output[0].removesuffix(BYTES)


def _in_floats(model: ModelProto, graph: Graph, tensor: str, like: NodeProto, before: NodeProto) -> str:
    """The floats of a quantized tensor; who makes them has the scale of `like`, and is placed if needed."""
    for reader in graph.consumers[tensor]:
        if reader.op_type == DEQUANTIZE:
            return str(reader.output[0])
    made = floats_of([tensor, *like.input[1:]], f"{tensor}/floats")
    graph.consumers[tensor].append(made)
    model.graph.node.insert(place_of(model, before), made)
    return str(made.output[0])


def _reader(graph: Graph, tensor: str) -> NodeProto | None:
    """The DequantizeLinear that moved bytes come to."""
    for reader in graph.consumers[tensor]:
        found = _reader(graph, reader.output[0]) if reader.op_type in _MOVES else reader
        if found is not None and found.op_type == DEQUANTIZE:
            return found
    return None


def _join(model: ModelProto, graph: Graph, split: NodeProto, groups: int) -> None:
    name = split.name.removesuffix(SPLIT)
    convs = [graph.named[f"{name}/{index}"] for index in range(len(split.output))]
    before, weight = (graph.producers[tensor] for tensor in convs[0].input[:2])
    pair = len(weight.input)
    known = [[*graph.producers[conv.input[1]].input, *conv.input[2:]] for conv in convs]
    values = [[graph.constant(tensor) for tensor in tensors] for tensors in zip(*known, strict=True)]
    inputs = int(graph.constant(split.input[1]).sum()) // groups
    joined = [np.concatenate([_gathered(whole, inputs) for whole in values[0]])]
    joined += [np.concatenate(parts) if parts[0].ndim else parts[0] for parts in values[1:]]
    constants = [set_constant(model, f"{name}/{place}", value) for place, value in enumerate(joined)]
    concat = graph.named[f"{name}/Concat"]
    conv, *after = _chain(graph, convs[0])
    read = _in_floats(model, graph, split.input[0], before, concat)
    conv.input[:] = [read, f"{name}/weight", *constants[pair:]]
    conv.attribute.append(helper.make_attribute("group", groups))
    axis = attribute(weight, "axis", 1)
    for node in (floats_of(constants[:pair], f"{name}/weight", axis=axis), conv, *after):
        model.graph.node.insert(place_of(model, concat), node)
    model.graph.node.remove(concat)


def _chain(graph: Graph, conv: NodeProto) -> Iterator[NodeProto]:
    """Copies of a part's nodes from its convolution to its QuantizeLinear, without the numbers."""
    node = conv
    while True:
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = node.name.removesuffix("/0"), node.output[0].removesuffix("/0")
        twin.input[0] = node.input[0].removesuffix("/0")
        yield twin
        if node.op_type == QUANTIZE:
            return
        (node,) = graph.consumers[node.output[0]]


def _gathered(whole: Array, inputs: int) -> Array:
    """What `_spread` spread: (groups*o, groups*i, ...) -> (groups*o, i, ...)."""
    groups = whole.shape[1] // inputs
    outputs = len(whole) // groups
    return np.concatenate(
        [
            whole[group * outputs : (group + 1) * outputs, group * inputs : (group + 1) * inputs]
            for group in range(groups)
        ]
    )
