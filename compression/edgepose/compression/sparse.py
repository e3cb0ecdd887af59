"""Which layers of an ONNX graph follow the 2:4 pattern, as TensorRT reads their weights."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from edgepose.compression.graph import DEQUANTIZE, QUANTIZE, Array, Graph, attribute
from edgepose.training.models.sparsity import GROUP, KEPT

PASSED = frozenset({DEQUANTIZE, QUANTIZE, "Transpose", "Cast", "Identity"})  # between a weight and its layer


def sparse_nodes(model: ModelProto) -> dict[str, bool]:
    """Whether each convolution and product with a constant weight follows the pattern along its inputs.

    Floats and integers behind Q/DQ alike: a symmetric scale leaves zeros zero.
    """
    graph, found = Graph(model), {}
    for node in graph.nodes:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weight = _weight(graph, node.input[1])
            if weight is not None and weight.ndim > 1:
                found[node.name] = _follows(np.moveaxis(weight, _inputs(node, weight), -1))
    return found


def keeps_pattern(fp32: ModelProto, quantized: ModelProto) -> bool:
    """Whether the layers that follow the pattern in a graph follow it in its quantized form, too."""
    found = sparse_nodes(quantized)
    return all(found[name] for name, follows in sparse_nodes(fp32).items() if follows)


def _weight(graph: Graph, name: str) -> Array | None:
    """The constant behind `name`, as the layer sees it but for its scale."""
    value, node = graph.value(name), graph.producers.get(name)
    if value is not None or node is None or node.op_type not in PASSED:
        return value
    value = _weight(graph, node.input[0])
    if value is not None and node.op_type == "Transpose":
        return value.transpose(attribute(node, "perm", tuple(reversed(range(value.ndim)))))
    return value


def _inputs(node: NodeProto, weight: Array) -> int:
    """The axis of the weight that runs over the layer's inputs."""
    if node.op_type == "MatMul":
        return weight.ndim - 2
    return 1 if node.op_type == "Conv" or attribute(node, "transB", 0) else 0


def _follows(weight: Array) -> bool:
    if weight.shape[-1] % GROUP:
        return False
    return bool(((weight.reshape(-1, GROUP) != 0).sum(1) <= KEPT).all())
