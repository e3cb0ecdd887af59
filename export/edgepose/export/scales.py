"""The scales of a quantized graph by the tensors of its FP32 graph, for runtimes that read no Q/DQ."""

from __future__ import annotations

from onnx import ModelProto

from edgepose.compression.graph import QUANTIZE, Graph


def activation_scales(quantized: ModelProto, fp32: ModelProto) -> dict[str, float]:
    """One scale for each activation that is quantized: that of the widest range, where there are several.

    Weights have none, their ranges are plain to see; nor have tensors that the FP32 graph does not know.
    """
    graph, known = Graph(quantized), set(Graph(fp32).producers) | {value.name for value in fp32.graph.input}
    scales: dict[str, float] = {}
    for node in graph.nodes:
        tensor = node.input[0]
        scale = graph.value(node.input[1]) if node.op_type == QUANTIZE and tensor in known else None
        if scale is not None and scale.size == 1:
            scales[tensor] = max(float(scale.item()), scales.get(tensor, 0.0))
    return scales
