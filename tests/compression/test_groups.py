"""Switching groups of quantizers off: exactly the INT8 file, exactly the FP32 one, and what lies between."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepose.compression.execution import Feeds, outputs_of
from edgepose.compression.graph import count_ops
from edgepose.compression.groups import Switches, switches_of
from edgepose.compression.macs import macs_of
from edgepose.compression.quantize import Quantized, quantize
from edgepose.runtime.errors import EdgeposeError

SIZE = (64, 64)


@pytest.fixture(scope="module")
def switches(traced: ModelProto, quantized: Quantized) -> Switches:
    return switches_of({"pose": traced}, {"pose": quantized.model}, SIZE)["pose"]


def names(switches: Switches) -> set[str]:
    return {group.name for group in switches.groups}


def test_all_off_is_the_fp32_file_and_none_off_the_int8_one(
    switches: Switches, traced: ModelProto, quantized: Quantized, feeds: list[Feeds]
) -> None:
    none, every = switches.model(()), switches.model(names(switches))
    assert none == quantized.model
    assert not {"QuantizeLinear", "DequantizeLinear"} & count_ops(every).keys()
    assert [node.name for node in every.graph.node] == [node.name for node in traced.graph.node]
    for mine, theirs in ((none, quantized.model), (every, traced)):
        for found, expected in zip(outputs_of(mine, feeds), outputs_of(theirs, feeds), strict=True):
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_every_int8_layer_has_a_group_and_fused_adds_are_with_their_convolution(
    switches: Switches, quantized: Quantized
) -> None:
    made_by = {output: node for node in quantized.model.graph.node for output in node.output}
    int8 = {
        node.name
        for node in quantized.model.graph.node
        if node.op_type == "Conv" and made_by.get(node.input[1], node).op_type == "DequantizeLinear"
    }
    assert names(switches) == int8
    by_name = {group.name: group for group in switches.groups}
    operators = {node.name: node.op_type for node in quantized.model.graph.node}
    fused = {name: [operators[n] for n in group.nodes[1:]] for name, group in by_name.items()}
    assert fused["layer1.second.0"] == fused["layer2.second.0"] == ["Add"]  # not with the shortcut
    assert fused["layer2.short"] == fused["layer1.first.0"] == []
    assert "score0" in by_name["inst.0"].nodes  # a float layer that reads INT8 results
    assert sorted(node for group in switches.groups for node in group.nodes) == sorted(
        {node for group in switches.groups for node in group.nodes}
    )


def test_one_group_off_frees_its_layer_and_no_other(switches: Switches) -> None:
    before = count_ops(switches.model(()))
    freed = switches.model({"layer1.first.0"})
    made_by = {output: node for node in freed.graph.node for output in node.output}
    kinds = {
        node.name: [made_by[name].op_type if name in made_by else "constant" for name in node.input[:2]]
        for node in freed.graph.node
        if node.op_type == "Conv"
    }
    assert kinds["layer1.first.0"] == ["Relu", "constant"]
    assert kinds["layer1.second.0"] == ["DequantizeLinear", "DequantizeLinear"]
    # Its weights' DQ is gone; the pair before it has another reader, the shortcut's Add.
    after = count_ops(freed)
    assert after["DequantizeLinear"] == before["DequantizeLinear"] - 1
    assert after["QuantizeLinear"] == before["QuantizeLinear"]


def test_a_transformers_smoothing_is_undone(traced: ModelProto, feeds: list[Feeds]) -> None:
    """SmoothQuant moves scales into the weights: only the FP32 file knows the weights from before."""
    rng = np.random.default_rng(0)
    wide = (np.exp(rng.normal(0, 2, 32)) * rng.normal(size=(32, 32))).astype(np.float32)
    linear = two_linears(wide)
    given = [{"x": rng.normal(size=(1, 16, 32)).astype(np.float32)} for _ in range(4)]
    smoothed = quantize(linear, given, "sharpose").model
    assert count_ops(smoothed)["Mul"] == 1  # behind the norm alone: not what enters the first layer
    switches = Switches("", linear, smoothed, {"first": 1, "second": 1})
    assert names(switches) == {"first", "second"}
    assert outputs_of(switches.model(names(switches)), given[:1])[0]["y"] == pytest.approx(
        outputs_of(linear, given[:1])[0]["y"]
    )


def two_linears(weights: np.ndarray) -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Add", ["a", "b"], ["c"], "bias"),
        helper.make_node("LayerNormalization", ["c", "own"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "v"], ["y"], "second"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16, 32]) for name in "xy")
    constants = {"w": weights, "v": weights[::-1], "b": np.linspace(-1, 1, 32, dtype=np.float32)}
    constants["own"] = np.exp(np.linspace(-3, 3, 32, dtype=np.float32))  # outliers, from channel to channel
    tensors = [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def small_net() -> ModelProto:
    """Every kind of layer once, on pictures of 8 columns and 6 rows."""
    rng = np.random.default_rng(0)
    shapes = {
        "plain": (4, 3, 3, 3),
        "grouped": (4, 2, 3, 5),
        "transposed": (4, 5, 2, 2),
        "linear": (8, 7),
        "gemm": (9, 12),
        "turned": (8, 5),
    }
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    weights += [numpy_helper.from_array(np.array([-1, 12]), "rows")]
    node = helper.make_node
    nodes = [
        node("Conv", ["images", "plain"], ["a"], "plain", strides=[2, 1], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "grouped"], ["b"], "grouped", group=2, pads=[1, 2, 1, 2]),
        node("ConvTranspose", ["b", "transposed"], ["c"], "transposed", strides=[2, 2]),
        node("MatMul", ["b", "linear"], ["d"], "linear"),
        node("Reshape", ["b", "rows"], ["e"], "reshape"),
        node("Gemm", ["e", "gemm"], ["f"], "gemm", transB=1),
        node("Gemm", ["e", "turned"], ["g"], "turned", transA=1),
        node("Transpose", ["d"], ["t"], "transpose", perm=[0, 1, 3, 2]),
        node("MatMul", ["t", "d"], ["y"], "attention"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 6, 8])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "cfgy"]
    graph = helper.make_graph(nodes, "g", [images], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_multiplications_are_the_closed_form() -> None:
    rows, columns = 3, 8  # of the first convolution's result: stride 2 downwards
    assert macs_of({"pose": small_net()}, (8, 6))["pose"] == {
        "plain": rows * columns * 4 * (3 * 3 * 3),
        "grouped": rows * columns * 4 * (2 * 3 * 5),  # each of 4 results reads 2 of the 4 channels
        "transposed": rows * columns * 4 * (5 * 2 * 2),  # each of 4 values is spread into 5 channels
        "linear": 4 * rows * 8 * 7,
        "gemm": 8 * 12 * 9,
        "turned": 12 * 8 * 5,  # of (8, 12) turned
        "attention": 4 * 7 * 7 * rows,
    }


def test_the_share_of_a_group_is_its_layers(switches: Switches) -> None:
    counted = {group.name: group.macs for group in switches.groups}
    assert counted["stem.1.0"] == 16 * 16 * 16 * 16 * 9
    assert counted["kpt.1.0"] == 16 * 16 * 40 * 8 * 9  # five groups of eight channels
    assert switches.macs > sum(counted.values())  # the float layers'


def test_other_files_are_refused(traced: ModelProto, quantized: Quantized) -> None:
    with pytest.raises(EdgeposeError, match="no quantized form of the FP32 one"):
        Switches("", small_net(), quantized.model, {})
    with pytest.raises(EdgeposeError, match="nothing in the INT8 graph is quantized"):
        Switches("", traced, traced, {})
