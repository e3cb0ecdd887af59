"""INT8 results for the last INT8 layers: where only float layers read them, NNCF leaves the pair away.

Without it ONNX Runtime runs such a convolution in float, and moves floats where its result is looked up. What
float layers read is rounded here, never what they answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from onnx import ModelProto, helper

from edgepose.compression.execution import Feeds, each_output, tapped
from edgepose.compression.graph import DEQUANTIZE, QUANTIZE, Graph, copy, set_constant
from edgepose.compression.trt_target import least_error_ranges

_LAYOUT = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"})


def quantize_boundaries(model: ModelProto, floats: Collection[str], feeds: Sequence[Feeds]) -> ModelProto:
    """The quantized model with a pair behind each INT8 convolution that only `floats` (names) read.

    Scales are of least error over `feeds`, as NNCF's own.
    """
    tensors = boundaries(Graph(model), floats)
    result = copy(model)
    shown = each_output(tapped(model, tensors), feeds, tensors) if tensors else ()
    for tensor, largest in least_error_ranges(shown).items():
        _insert_pair(result, tensor, largest / 127)
    return result


def boundaries(graph: Graph, floats: Collection[str]) -> list[str]:
    """Results of INT8 convolutions, behind their ReLU if they have one, that float nodes alone read.

    Not before a deconvolution, which TensorRT would then take for an INT8 one (lint rule P03).
    """
    found = []
    for node in graph.nodes:
        maker = graph.producers.get(node.input[0]) if node.op_type == "Conv" else None
        if maker is not None and maker.op_type == DEQUANTIZE:
            tensor = node.output[0]
            readers = graph.consumers[tensor]
            if len(readers) == 1 and readers[0].op_type == "Relu":
                tensor = readers[0].output[0]
                readers = graph.consumers[tensor]
            if _float_alone_reads(graph, tensor, floats):
                found.append(tensor)
    return found


def _float_alone_reads(graph: Graph, tensor: str, floats: Collection[str]) -> bool:
    """Whether every reader is among `floats`, at once or behind nodes that only lay the values out anew."""
    readers = graph.consumers[tensor]
    return (
        bool(readers)
        and tensor not in graph.outputs
        and all(
            (reader.name in floats and reader.op_type != "ConvTranspose")
            or (reader.op_type in _LAYOUT and _float_alone_reads(graph, reader.output[0], floats))
            for reader in readers
        )
    )


def _insert_pair(model: ModelProto, tensor: str, scale: float) -> None:
    """Q and DQ behind `tensor`, in place, for all its readers. A tensor that is always zero is left alone."""
    if scale <= 0:
        return
    names = [
        set_constant(model, f"scale_{tensor}", np.array(scale, np.float32)),
        set_constant(model, f"zero_point_{tensor}", np.array(0, np.int8)),
    ]
    integers, floats = f"quantized_{tensor}", f"dequantized_{tensor}"
    place = next(index for index, node in enumerate(model.graph.node) if tensor in node.output)
    for node in model.graph.node:
        node.input[:] = [floats if name == tensor else name for name in node.input]
    pair = (
        helper.make_node(QUANTIZE, [tensor, *names], [integers], f"QuantizeLinear_{tensor}"),
        helper.make_node(DEQUANTIZE, [integers, *names], [floats], f"DequantizeLinear_{tensor}"),
    )
    for offset, node in enumerate(pair):
        model.graph.node.insert(place + 1 + offset, node)
