"""What one layer quantizes, and how to take that back: the groups that blame is laid on."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from edgepose.compression.graph import (
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    Graph,
    copy,
    drop_dead,
    set_constant,
)
from edgepose.compression.macs import macs_of
from edgepose.runtime.errors import EdgeposeError

_FORM = frozenset({"Shape", "Size"})  # they read how large a value is, not what it is


@dataclass(frozen=True, slots=True)
class Group:
    """One INT8 layer, and all that reads otherwise than in the FP32 file because of it.

    Those are nodes that its results reach before another layer's do: the Add that a convolution is fused
    with, whatever reads the pair behind a last INT8 layer, a bias that was corrected. A pair between two
    layers belongs to the one that reads it; it is gone when all its readers are float.
    """

    name: str  # of its layer's node; behind that of its graph, where a network has several
    nodes: tuple[str, ...]  # names of all its nodes
    macs: int  # multiplications of one picture or crop


class Switches:
    """A quantized graph whose groups can be made float, for which they read what they do in the FP32 file.

    That undoes a corrected bias and SmoothQuant too. With all of them float it is the FP32 graph.
    """

    def __init__(self, prefix: str, fp32: ModelProto, int8: ModelProto, macs: Mapping[str, int]) -> None:
        """`macs`: multiplications by node. Raises EdgeposeError when `int8` is of another network."""
        self._fp32, self._int8 = fp32, int8
        self._float, self._graph = Graph(fp32), Graph(int8)
        self._named = {node.name: node for node in self._float.nodes}
        self.macs = sum(macs.values())
        _require_same_network(self._float, self._graph)
        changed = list(self._changed())
        self._form = {node.name for node in changed if node.op_type in _FORM}
        members: dict[str, list[str]] = {}
        for node in changed:
            if node.name not in self._form:
                members.setdefault(self._layer_of(node), []).append(node.name)
        self.groups = tuple(
            Group(prefix + layer, tuple(nodes), macs[layer] if self._is_layer(layer) else 0)
            for layer, nodes in members.items()
        )

    def _changed(self) -> Iterator[NodeProto]:
        """Nodes of the FP32 file that read something else here."""
        for node in self._graph.nodes:
            before = self._named.get(node.name)
            if before is not None and not _reads_the_same(self._float, before, self._graph, node):
                yield node

    def _is_layer(self, name: str) -> bool:
        return is_int8_layer(self._graph, name)

    def _layer_of(self, node: NodeProto) -> str:
        """The node itself if it is an INT8 layer, else the nearest one above it, else itself after all."""
        pending, seen = deque([node]), {node.name}
        while pending:
            here = pending.popleft()
            if self._is_layer(here.name):
                return here.name
            makers = (self._graph.producers.get(name) for name in here.input)
            for maker in makers:
                if maker is not None and maker.name not in seen:
                    seen.add(maker.name)
                    pending.append(maker)
        return node.name

    def model(self, floats: Collection[str]) -> ModelProto:
        """The quantized graph with the groups of these names float; with none it is the file itself."""
        result = copy(self._int8)
        freed = {name for group in self.groups if group.name in floats for name in group.nodes}
        if not freed:
            return result
        for node in result.graph.node:
            if node.name in freed | self._form:
                node.input[:] = [self._before(result, name) for name in self._named[node.name].input]
        drop_dead(result)
        del result.graph.value_info[:]  # some of it is about what is gone
        return result

    def sha256(self) -> str:
        """Of both files."""
        digest = hashlib.sha256()
        for model in (self._fp32, self._int8):
            digest.update(model.SerializeToString(deterministic=True))
        return digest.hexdigest()

    def _before(self, model: ModelProto, tensor: str) -> str:
        """The name, in `model`, of what the FP32 file calls `tensor`; its constants are added."""
        value = self._float.value(tensor)
        return tensor if value is None else set_constant(model, f"fp32/{tensor}", value)


def is_int8_layer(graph: Graph, name: str) -> bool:
    """Whether the node of that name multiplies two dequantized values: a layer with its weights, mostly."""
    node = graph.named.get(name)
    return (
        node is not None
        and node.op_type in WEIGHTED
        and all(
            (maker := graph.producers.get(tensor)) is not None and maker.op_type == DEQUANTIZE
            for tensor in node.input[:2]
        )
    )


def _require_same_network(fp32: Graph, int8: Graph) -> None:
    """Every node of the FP32 graph is in the INT8 one, of the same operator and with the same results."""
    for node in fp32.nodes:
        found = int8.named.get(node.name)
        if found is None or found.op_type != node.op_type or list(found.output) != list(node.output):
            raise EdgeposeError(
                f"the INT8 graph is no quantized form of the FP32 one ({node.op_type} {node.name!r} "
                "is not in it); compress and export the bundle again"
            )
    if not any(node.op_type == QUANTIZE for node in int8.nodes):
        raise EdgeposeError("nothing in the INT8 graph is quantized, so there is no layer to blame")


def _reads_the_same(before: Graph, old: NodeProto, after: Graph, new: NodeProto) -> bool:
    return len(old.input) == len(new.input) and all(
        _same(before, mine, after, other) for mine, other in zip(old.input, new.input, strict=True)
    )


def _same(before: Graph, mine: str, after: Graph, other: str) -> bool:
    value, found = before.value(mine), after.value(other)
    if value is None or found is None:
        return value is found and mine == other
    return value.dtype == found.dtype and np.array_equal(value, found)


def switches_of(
    fp32: Mapping[str, ModelProto], int8: Mapping[str, ModelProto], size: tuple[int, int]
) -> dict[str, Switches]:
    """The switches of each graph of a network for pictures of `size` (width, height)."""
    counted = macs_of(fp32, size)
    several = len(fp32) > 1
    return {
        name: Switches(f"{name}/" if several else "", fp32[name], int8[name], counted[name]) for name in fp32
    }
