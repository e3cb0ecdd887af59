"""What each release's ONNX parser refuses: operators.md and the importers of 8.5-GA, 8.6-GA and 10.1-GA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

NEWEST_OPSET = {
    "8.5": 17,
    "8.6": 17,
    "10.3": 20,
    "10.7": 20,
    "10.13": 22,
    "10.16": 24,
    "11.0": 24,
    "11.4": 24,
}
_SINCE = {"LayerNormalization": 8.6, "GroupNormalization": 8.6, "Gelu": 10, "DeformConv": 10}
_INTEGER = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
_PAIR = ("QuantizeLinear", "DequantizeLinear")


class Port(NamedTuple):
    """An input or output of a graph; -1 where the size is open."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Refused(NamedTuple):
    """One error of the parser."""

    node: int
    operator: str
    text: str


class Graph:
    """An ONNX model as the stand-in needs it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
        graph = model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._constants |= {n.output[0]: n.attribute[0].t for n in self.nodes if n.op_type == "Constant"}
        self.inputs = [_port(value) for value in graph.input if value.name not in self._constants]
        self.outputs = [_port(value) for value in graph.output]
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.has_pairs = any(node.op_type in _PAIR for node in self.nodes)
        self.has_half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer)

    def constant(self, name: str) -> Any:
        """Its value, or None for what is computed."""
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def bytes_of_weights(self) -> int:
        return sum(numpy_helper.to_array(tensor).nbytes for tensor in self._constants.values())


def _port(value: Any) -> Port:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Port(value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type), shape)


def refusals(graph: Graph, release: str, plugins: bool) -> Iterator[Refused]:
    """Everything that release's parser refuses in the graph."""
    if graph.opset > NEWEST_OPSET[release]:
        yield Refused(
            -1, "", f"opset {graph.opset} is newer than {NEWEST_OPSET[release]}, the newest supported"
        )
    for index, node in enumerate(graph.nodes):
        for text in _refused(graph, node, release, plugins):
            yield Refused(index, node.op_type, text)


def _refused(graph: Graph, node: NodeProto, release: str, plugins: bool) -> Iterator[str]:
    kind, old = node.op_type, release.startswith("8.")
    if node.domain not in ("", "ai.onnx") or float(release) < _SINCE.get(kind, 0) or kind in _INTEGER:
        yield f"No importer registered for op: {kind}. Attempting to import as plugin."
    if kind == "RoiAlign" and not plugins:
        yield "Plugin not found, are the plugin name, version, and namespace correct? (ROIAlign_TRT)"
    if kind == "TopK" and (k := graph.constant(node.input[1])) is not None and int(np.ravel(k)[0]) > 3840:
        yield "TopK: K must not exceed 3840"
    if kind == "Einsum" and old and b"..." in node.attribute[0].s:
        yield "Einsum with ellipsis is not supported"
    if kind in _PAIR:
        yield from _refused_pair(graph, node, old)


def _refused_pair(graph: Graph, node: NodeProto, old: bool) -> Iterator[str]:
    scale, source = graph.constant(node.input[1]), graph.constant(node.input[0])
    if scale is None:
        yield f"{node.op_type}: the scale must be a build-time constant"
        return
    if not (scale > 0).all():
        yield "Scale coefficients must all be positive"
    yield from _refused_zero(graph, node, scale.size, old)
    if node.op_type == "DequantizeLinear" and source is not None and source.dtype == np.int32:
        yield "DequantizeLinear of INT32 (a quantized bias) is not supported"
    if node.op_type == "DequantizeLinear" and source is not None and source.dtype == np.int8 and old:
        yield "invalid weights type of Int8"  # 8.x wants float weights, then Q, then DQ
    if scale.size > 1:
        yield from _refused_axis(graph, node, scale.size)


def _refused_zero(graph: Graph, node: NodeProto, scales: int, old: bool) -> Iterator[str]:
    if len(node.input) < 3 or not node.input[2]:
        if old:
            yield f"This version of TensorRT requires 3 inputs for {node.op_type}"
        return
    zero = graph.constant(node.input[2])
    if zero is None or zero.any():
        yield "TensorRT only supports symmetric quantization: the zero point must be all zeros"
    elif zero.dtype != np.int8:
        yield f"zero point of type {zero.dtype}: only signed INT8 is accepted"
    elif zero.size != scales:
        yield "The scale and zero point must have the same volume"


def _refused_axis(graph: Graph, node: NodeProto, scales: int) -> Iterator[str]:
    weight, maker = graph.constant(node.input[0]), graph.makers.get(node.input[0])
    if weight is None and maker is not None and maker.op_type == "QuantizeLinear":
        weight = graph.constant(maker.input[0])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if weight is None:
        yield "per-axis scales on an activation: activations are quantized per tensor"
    elif weight.shape[axis] != scales:
        yield "The number of scales is not equal to the number of output channels"
