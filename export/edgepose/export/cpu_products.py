"""What stands around a quantized graph's products, taken in by the nodes beside it, in place, and given back.

A layer of tokens is LayerNormalization, perhaps SmoothQuant's factors, a pair, a product and a bias. Each of
them that stays a node of its own is one more pass over all tokens on ONNX Runtime's CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper, shape_inference

from edgepose.compression.graph import (
    DEQUANTIZE,
    Array,
    Graph,
    attribute,
    drop_dead,
    floats_of,
    place_of,
    set_constant,
)

VENDOR, BIASED = "com.microsoft", "MatMulIntegerToFloat"  # ONNX Runtime's contrib operators
_PARTS = ("/scale", "/bias")  # of a LayerNormalization that has taken a product in: of tensors and nodes


def fold_products(model: ModelProto) -> None:
    """A LayerNormalization takes the product per channel behind it into its own: an operation less.

    SmoothQuant (ICML 2023) leaves such products between a normalisation and an INT8 layer. Equal but for the
    rounding of one product instead of two. The factors stay in the graph, where ONNX Runtime folds them.
    """
    graph = Graph(model)
    for node in graph.nodes:
        factors = _factors(graph, node)
        if factors is None:
            continue
        norm = graph.producers[node.input[0]]
        tensor, flat = norm.output[0], set_constant(model, f"{node.input[1]}/flat", factors)
        for place, (own, kind) in enumerate(zip(norm.input[1:], _PARTS, strict=False), 1):
            product = helper.make_node("Mul", [own, flat], [f"{tensor}{kind}"], f"{node.name}{kind}")
            norm.input[place] = product.output[0]
            model.graph.node.insert(place_of(model, norm), product)
        norm.output[0] = node.output[0]
        model.graph.node.remove(node)
    drop_dead(model)


def _factors(graph: Graph, node: NodeProto) -> Array | None:
    """The factors (C,) of a product that stands behind a LayerNormalization alone; None of any other node."""
    norm = graph.producers.get(node.input[0]) if node.op_type == "Mul" else None
    if norm is None or norm.op_type != "LayerNormalization":
        return None
    own, factors = graph.value(norm.input[1]), graph.value(node.input[1])
    if own is None or factors is None or not graph.read_only_by(norm.output[0], node):
        return None
    return factors.reshape(-1) if factors.shape[-1:] == (factors.size,) == own.shape else None


def part_products(model: ModelProto) -> None:
    """Undo `fold_products`, in place."""
    graph = Graph(model)
    for norm in graph.nodes:
        if norm.op_type != "LayerNormalization" or not norm.input[1].endswith(_PARTS[0]):
            continue
        products = [graph.producers[name] for name in norm.input[1:]]
        tensor, after = (name.removesuffix(_PARTS[0]) for name in (norm.input[1], products[0].name))
        node = helper.make_node("Mul", [tensor, products[0].input[1]], [norm.output[0]], after)
        model.graph.node.insert(place_of(model, norm) + 1, node)
        norm.input[1:] = [product.input[0] for product in products]
        norm.output[0] = tensor
    drop_dead(model)


def take_biases(model: ModelProto) -> None:
    """INT8 products take in the bias behind them.

    ONNX Runtime makes a MatMulIntegerToFloat of a MatMul between pairs, and leaves the bias, for which that
    operator has a place, to an Add; so it is written here. The sums are bit for bit the same.
    """
    graph = Graph(model)
    for add in graph.nodes:
        product = _biased(graph, add)
        if product is not None:
            values, weight = (graph.producers[name].input for name in product.input)
            (bias,) = (name for name in add.input if name != product.output[0])
            made = _product(product.name, (values, weight), bias, add.output)
            # Who undoes this must know the names.
            made.doc_string = "\n".join([*product.input, product.output[0], add.name])
            model.graph.node.insert(place_of(model, add), made)
            model.graph.node.remove(add)
    _finish(model)


def _biased(graph: Graph, add: NodeProto) -> NodeProto | None:
    """The INT8 product to which `add`, and nothing else, adds a value for each column; None without one."""
    for bias, tensor in (add.input, add.input[::-1]) if add.op_type == "Add" else ():
        values, product = graph.value(bias), graph.producers.get(tensor)
        if values is None or product is None or product.op_type != "MatMul":
            continue
        weight = _integers(graph, product, outputs=1)
        if weight is not None and weight.ndim == 2 and values.shape == weight.shape[1:]:
            return product if graph.read_only_by(tensor, add) else None
    return None


def _integers(graph: Graph, node: NodeProto, outputs: int) -> Array | None:
    """The weight of a layer whose input is bytes of one scale; None of any other layer.

    `outputs`: the axis on which the weight's own scales stand, if it has several.
    """
    values, weight = (graph.producers.get(name) for name in node.input[:2])
    if values is None or weight is None or {values.op_type, weight.op_type} != {DEQUANTIZE}:
        return None
    if {len(values.input), len(weight.input)} != {3} or values.input[0] in graph.constants:
        return None
    step, integers, scales = (graph.value(name) for name in (values.input[1], *weight.input[:2]))
    if step is None or step.size != 1 or integers is None or scales is None:
        return None
    fits = scales.size == 1 or attribute(weight, "axis", 1) % integers.ndim == outputs
    return integers if fits else None


def _product(
    name: str, pairs: tuple[Sequence[str], Sequence[str]], bias: str, made: Sequence[str]
) -> NodeProto:
    """`pairs`: the values, scale and zero point of the rows, and of the matrix."""
    inputs = [tensor for both in zip(*pairs, strict=True) for tensor in both]
    return helper.make_node(BIASED, [*inputs, bias], list(made), name, domain=VENDOR)


def _finish(model: ModelProto) -> None:
    drop_dead(model)
    asks = any(node.domain == VENDOR for node in model.graph.node)
    if asks and not any(entry.domain == VENDOR for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(VENDOR, 1))


class Patches(NamedTuple):
    """A convolution that reads every pixel once, and what makes tokens (B, h*w, C) of its map."""

    conv: NodeProto
    flatten: NodeProto
    turn: NodeProto
    grid: tuple[int, int]  # h, w of the map
    weight: Array  # integers (C, c, k, k)


def unfold_patches(model: ModelProto) -> None:
    """INT8 convolutions that cut a picture into patches become one product of all patches' bytes.

    ONNX Runtime's INT8 convolution of 16x16 patches takes longer than its float one; the product takes two
    thirds of that, the moving of bytes included (batches of 1 to 16 of 3x128x96, with VNNI).
    """
    graph = Graph(model)
    sizes = _sizes(model)
    for node in graph.nodes:
        found = _patches(graph, node, sizes)
        if found is None:
            continue
        place = place_of(model, found.turn)
        for offset, made in enumerate(_unfolded(model, graph, found)):
            model.graph.node.insert(place + offset, made)
        model.graph.node.remove(found.turn)
    _finish(model)


def _sizes(model: ModelProto) -> dict[str, list[int]]:
    """The shapes of computed tensors, as far as they are known; 0 for what is not."""
    inferred = shape_inference.infer_shapes(model)
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }


def _patches(graph: Graph, conv: NodeProto, sizes: dict[str, list[int]]) -> Patches | None:
    layer = conv.op_type == "Conv" and len(conv.input) == 3
    weight = _integers(graph, conv, outputs=0) if layer else None
    if weight is None or weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        return None
    side, size = weight.shape[2], sizes.get(conv.output[0], [])
    plain = attribute(conv, "strides") == [side, side] and attribute(conv, "group", 1) == 1
    plain &= not any(attribute(conv, "pads", [])) and set(attribute(conv, "dilations", [1])) == {1}
    if not plain or side == 1 or len(size) != 4 or not all(size[1:]):
        return None
    flatten = _only_reader(graph, conv, "Reshape")
    turn = _only_reader(graph, flatten, "Transpose") if flatten is not None else None
    shape = graph.value(flatten.input[1]) if flatten is not None else None
    if flatten is None or turn is None or shape is None or attribute(turn, "perm") != [0, 2, 1]:
        return None
    h, w = size[2:]
    return Patches(conv, flatten, turn, (h, w), weight) if [*shape[1:]] == [len(weight), h * w] else None


def _only_reader(graph: Graph, node: NodeProto, kind: str) -> NodeProto | None:
    readers = graph.consumers[node.output[0]]
    alone = len(readers) == 1 and readers[0].op_type == kind and node.output[0] not in graph.outputs
    return readers[0] if alone else None


def _unfolded(model: ModelProto, graph: Graph, found: Patches) -> Iterator[NodeProto]:
    conv, (h, w), (C, c, k, _) = found.conv, found.grid, found.weight.shape
    values, weight = (graph.producers[name].input for name in conv.input[:2])
    cut, cells, rows = (f"{conv.name}/{what}" for what in ("cut", "cells", "rows"))
    shapes = [
        set_constant(model, f"{name}/shape", np.array(shape, np.int64))
        for name, shape in ((cut, [-1, c, h, k, w, k]), (rows, [-1, h * w, c * k * k]))
    ]
    yield helper.make_node("Reshape", [values[0], shapes[0]], [cut], cut)
    yield helper.make_node("Transpose", [cut], [cells], cells, perm=[0, 2, 4, 1, 3, 5])
    yield helper.make_node("Reshape", [cells, shapes[1]], [rows], rows)
    matrix = set_constant(model, f"{conv.name}/matrix", found.weight.reshape(C, -1).T)
    pairs = [rows, *values[1:]], [matrix, *weight[1:]]
    made = _product(conv.name, pairs, conv.input[2], found.turn.output)
    flatten = found.flatten
    names = [*conv.input[:2], conv.output[0], flatten.name, flatten.output[0], found.turn.name]
    made.doc_string = "\n".join(names)
    yield made


def part_products_of_bytes(model: ModelProto) -> None:
    """Undo `take_biases` and `unfold_patches`, in place."""
    graph = Graph(model)
    for node in graph.nodes:
        names = node.doc_string.splitlines() if (node.domain, node.op_type) == (VENDOR, BIASED) else []
        if len(names) not in (4, 6):
            continue
        parts = _summed(node, names) if len(names) == 4 else _folded(model, graph, node, names)
        place = place_of(model, node)
        for part in parts:
            if graph.producers.setdefault(part.output[0], node) is node:
                model.graph.node.insert(place, part)
                place += 1
        model.graph.node.remove(node)
    drop_dead(model)


def _summed(node: NodeProto, names: Sequence[str]) -> Iterator[NodeProto]:
    values, weight, tensor, add = names
    yield floats_of(node.input[0:6:2], values)
    yield floats_of(node.input[1:6:2], weight)
    yield helper.make_node("MatMul", [values, weight], [tensor], node.name)
    yield helper.make_node("Add", [tensor, node.input[6]], node.output, add)


def _folded(model: ModelProto, graph: Graph, node: NodeProto, names: Sequence[str]) -> Iterator[NodeProto]:
    values, weight, tensor, flatten, flat, turn = names
    cells = graph.producers[graph.producers[node.input[0]].input[0]]
    cut = graph.producers[cells.input[0]]
    shape, matrix = (graph.constant(name) for name in (cut.input[1], node.input[1]))
    _, c, h, k, w, _ = (int(size) for size in shape)
    kernel = set_constant(model, f"{node.name}/kernel", matrix.T.reshape(-1, c, k, k))
    sizes = set_constant(model, f"{node.name}/flat", np.array([-1, matrix.shape[1], h * w], np.int64))
    yield floats_of([cut.input[0], *node.input[2:6:2]], values)
    yield floats_of([kernel, *node.input[3:6:2]], weight, axis=0)
    inputs = [values, weight, node.input[6]]
    yield helper.make_node("Conv", inputs, [tensor], node.name, kernel_shape=[k, k], strides=[k, k])
    yield helper.make_node("Reshape", [tensor, sizes], [flat], flatten)
    yield helper.make_node("Transpose", [flat], node.output, turn, perm=[0, 2, 1])
