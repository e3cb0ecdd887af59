"""Pairs behind the last INT8 layers: where exactly, with which scale, and that kernels profit from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepose.compression.boundary import boundaries, quantize_boundaries
from edgepose.compression.graph import Array, Graph, count_ops

EYE = np.eye(4, dtype=np.int8)


def network(
    *tail: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), groups: int = 1, weights: Array = EYE
) -> ModelProto:
    """x -> Q -> DQ -> Conv (int8 weights, identity) -> Relu -> r, then `tail`."""
    kernel = weights if groups == 1 else np.ones((4, 4 // groups), np.int8)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "s": np.array(0.5, np.float32),
        "z": np.array(0, np.int8),
        "w": kernel[..., None, None],
        "ws": np.ones(4, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "DQ"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "WDQ", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["c"], "conv", group=groups),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        *tail,
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 3, 3])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SIGMOID = helper.make_node("Sigmoid", ["r"], ["y"], "sigmoid")
ABS = helper.make_node("Abs", ["r"], ["a"], "abs")


def test_only_where_all_readers_are_float() -> None:
    assert boundaries(Graph(network(SIGMOID)), {"sigmoid"}) == ["r"]
    assert boundaries(Graph(network(SIGMOID)), set()) == []
    assert boundaries(Graph(network(SIGMOID, groups=2)), {"sigmoid"}) == ["r"]
    assert boundaries(Graph(network(SIGMOID, ABS)), {"sigmoid"}) == []
    assert boundaries(Graph(network(SIGMOID, ABS)), {"sigmoid", "abs"}) == ["r"]
    assert (
        boundaries(Graph(network(SIGMOID, outputs=("y", "r"))), {"sigmoid"}) == []
    )  # an output stays as it is
    laid_out = helper.make_node("Flatten", ["r"], ["f"], "flatten")
    behind = helper.make_node("Sigmoid", ["f"], ["y"], "sigmoid")
    assert boundaries(Graph(network(laid_out, behind)), {"sigmoid"}) == ["r"]
    assert boundaries(Graph(network(laid_out, behind)), set()) == []
    second = helper.make_node("Sigmoid", ["c"], ["y2"], "second")
    both = Graph(network(SIGMOID, second))
    assert (
        boundaries(both, {"sigmoid", "second"}) == []
    )  # the Relu reads the convolution too, and is not float


def test_a_deconvolution_reads_no_integers() -> None:
    raised = helper.make_node("ConvTranspose", ["r", "k"], ["y"], "up")
    assert boundaries(Graph(network(raised)), {"up"}) == []


def scale_behind(model: ModelProto, values: Array) -> float:
    """Of the pair behind the ReLU, for pictures (N, 1, 4, 3, 3)."""
    result = quantize_boundaries(model, {"sigmoid"}, [{"x": value} for value in values])
    onnx.checker.check_model(result, full_check=True)
    graph = Graph(result)
    pair = next(node for node in graph.nodes if node.name == "QuantizeLinear_r")
    scale, zero = graph.value(pair.input[1]), graph.value(pair.input[2])
    assert scale is not None
    assert zero is not None
    assert zero.dtype == np.int8
    assert graph.before_pair(next(n for n in graph.nodes if n.name == "sigmoid").input[0]) == "r"
    return float(scale)


def squared_error(values: Array, scale: float) -> float:
    """What INT8 of this scale makes of them, by ONNX's definition."""
    rounded = np.clip(np.rint(values / scale), -128, 127) * scale
    return float(np.square(rounded - values).mean())


def test_the_scale_weighs_what_is_cut_off_against_what_is_rounded() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-9, 10, (4, 4)).astype(np.int8)
    values = rng.normal(scale=8, size=(400, 1, 4, 3, 3)).astype(np.float32)
    first = np.clip(np.rint(values / 0.5), -128, 127) * 0.5
    seen = np.maximum(np.einsum("oi,nbixy->nboxy", weights, first), 0)
    found = squared_error(seen, scale_behind(network(SIGMOID, weights=weights), values))
    assert found < squared_error(seen, seen.max() / 127)  # nothing cut off
    assert found < squared_error(seen, seen.max((1, 2, 3, 4)).mean() / 127)  # half of the pictures cut off


def test_a_dead_layer_gets_no_scale_of_zero() -> None:
    model = network(SIGMOID)
    result = quantize_boundaries(model, {"sigmoid"}, [{"x": np.zeros((1, 4, 3, 3), np.float32)}])
    assert result == model


def test_the_kernel_becomes_int8(tmp_path: Path) -> None:
    """The reason for it all: without the pair ONNX Runtime leaves the convolution in float."""
    from edgepose.export.views import cpu_view

    feeds = [{"x": np.random.default_rng(0).normal(size=(1, 4, 3, 3)).astype(np.float32)}]
    kernels = []
    for index, model in enumerate(
        (network(SIGMOID), quantize_boundaries(network(SIGMOID), {"sigmoid"}, feeds))
    ):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{index}.onnx")
        options.log_severity_level = 4
        content = cpu_view(model).SerializeToString()
        ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        kernels.append(count_ops(onnx.load(tmp_path / f"{index}.onnx"))["QLinearConv"])
    assert kernels == [0, 1]
