"""What products and normalisations take in, and give back: against torch, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from byte_graphs import IN, graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper
from torch.nn import functional

from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import Graph, copy, count_ops, drop_dead
from edgepose.export.cpu_kernels import as_calibrated
from edgepose.export.cpu_products import fold_products, take_biases, unfold_patches
from edgepose.export.legalise import legalise
from edgepose.export.lint import errors, lint

Constants = dict[str, npt.NDArray[np.generic]]


def normalised(
    factors: npt.NDArray[np.float32], *, axis: int = -1, second_reader: bool = False
) -> ModelProto:
    """x -> LayerNormalization of 4 channels -> times `factors` -> y; perhaps the norm alone is read, too."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("LayerNormalization", ["d", "own", "shift"], ["n"], "norm", axis=axis, epsilon=1e-5),
        helper.make_node("Mul", ["n", "factors"], ["m"], "smooth"),
        helper.make_node("Add", ["m", "n" if second_reader else "m"], ["y"], "add"),
    ]
    shape = [4, 4] if axis == -2 else [4]
    constants: dict[str, npt.NDArray[np.generic]] = {
        "own": rng.normal(size=shape).astype(np.float32),
        "shift": rng.normal(size=shape).astype(np.float32),
        "factors": factors,
    }
    return graph_of(nodes, constants, [2, 5, 4, 4])


FACTORS = np.array([0.5, 3, -2, 7], np.float32)


@pytest.mark.parametrize("shape", [(4,), (1, 1, 4)])
def test_a_normalisation_takes_the_product_behind_it_in(shape: tuple[int, ...]) -> None:
    model = normalised(FACTORS.reshape(shape))
    before = copy(model)
    images = 30 * np.random.default_rng(2).normal(size=(2, 5, 4, 4)).astype(np.float32)
    fold_products(model)
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    assert "smooth" not in graph.named
    assert graph.named["add"].input[0] == graph.named["norm"].output[0]
    steps = torch.from_numpy(np.clip(np.rint(images / IN), 0, 255) * IN)
    own, shift = (torch.from_numpy(graph.value(name).copy()) for name in ("own", "shift"))
    expected = 2 * functional.layer_norm(steps, (4,), own, shift, 1e-5) * torch.from_numpy(FACTORS)
    (found,) = outputs_of(model, [{"x": images}])
    np.testing.assert_allclose(found["y"], expected.numpy(), rtol=1e-5, atol=1e-5)

    undone = as_calibrated(model)
    named = Graph(undone).named
    assert [(n.op_type, n.name, list(n.output)) for n in undone.graph.node] == [
        (n.op_type, n.name, list(n.output)) for n in before.graph.node
    ]
    assert list(named["norm"].input) == ["d", "own", "shift"]
    np.testing.assert_array_equal(Graph(undone).value(named["smooth"].input[1]), FACTORS)
    for one, other in zip(
        outputs_of(undone, [{"x": images}]), outputs_of(before, [{"x": images}]), strict=True
    ):
        np.testing.assert_array_equal(one["y"], other["y"])


@pytest.mark.parametrize(
    "model",
    [
        normalised(FACTORS, second_reader=True),
        normalised(np.full(1, 2, np.float32)),
        normalised(FACTORS, axis=-2),
        normalised(np.arange(16, dtype=np.float32).reshape(4, 4)),
        normalised(FACTORS.reshape(4, 1)),
    ],
    ids=["read twice", "one factor", "a norm of two axes", "of two axes", "of another axis"],
)
def test_other_products_stay(model: ModelProto) -> None:
    before = list(model.graph.node)
    fold_products(model)
    assert list(model.graph.node) == before


def steps_of(values: npt.NDArray[np.float32]) -> torch.Tensor:
    """What the pair at the beginning makes of them, in float64."""
    return torch.from_numpy(np.clip(np.rint(values / IN), 0, 255).astype(np.float64) * IN)


def weights_of(*shape: int) -> Constants:
    """Integers, a scale that is a power of two for each of the last axis' columns, and zero points."""
    integers = np.random.default_rng(3).integers(-127, 128, shape).astype(np.int8)
    scales = np.exp2(np.arange(shape[-1]) % 4 - 6).astype(np.float32)
    return {"w": integers, "ws": scales, "wz": np.zeros(shape[-1], np.int8)}


BIAS = np.arange(6).astype(np.float32) / 4


def linear(
    *,
    bias: npt.NDArray[np.float32] = BIAS,
    first: bool = False,
    matrix: str = "int8",
    read: str = "once",
    steps: int = 1,
    axis: int = 1,
) -> ModelProto:
    """x (2, 3, 5, 4) -> times a matrix (4, 6) -> plus a bias, perhaps the first of both -> y.

    `steps`: how many scales the pair in front has; `axis`: of the matrix, on which its own stand.
    """
    constants: Constants = {**weights_of(4, 6), "b": bias, "floats": np.ones((4, 6), np.float32)}
    if axis == 0:
        constants |= {name: constants[name][:4] for name in ("ws", "wz")}
    if steps > 1:
        constants |= {"in": np.full(steps, IN), "z": np.zeros(steps, np.uint8)}
    makers = {
        "int8": [helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "WDQ", axis=axis)],
        "computed": [helper.make_node("Transpose", ["d"], ["t"], "turn", perm=[0, 1, 3, 2])],
    }
    nodes = [
        *makers.get(matrix, []),
        helper.make_node(
            "MatMul", ["d", {"int8": "wd", "floats": "floats", "computed": "t"}[matrix]], ["p"], "product"
        ),
        helper.make_node("Add", ["b", "p"] if first else ["p", "b"], ["s"], "bias"),
        helper.make_node("Relu", ["s"], ["y"], "relu"),
    ]
    if read == "twice":
        nodes[-1] = helper.make_node("Mul", ["s", "p"], ["y"], "twice")
    return graph_of(nodes, constants, [2, 3, 5, 4])


def images_of(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).normal(16, 32, shape).astype(np.float32)


@pytest.mark.parametrize("first", [False, True])
def test_a_product_takes_the_bias_behind_it_in(first: bool, tmp_path: Path) -> None:
    model = linear(first=first)
    images, constants = images_of(2, 3, 5, 4), weights_of(4, 6)
    matrix = torch.from_numpy(constants["w"]) * torch.from_numpy(constants["ws"]).double()
    expected = torch.relu(steps_of(images) @ matrix + torch.from_numpy(BIAS)).float().numpy()
    take_biases(model)
    onnx.checker.check_model(model, full_check=True)
    assert Graph(model).named["product"].op_type == "MatMulIntegerToFloat"
    assert count_ops(model)["Add"] == count_ops(model)["MatMul"] == 0
    undone = as_calibrated(model)
    for each in (model, undone):
        (found,) = outputs_of(each, [{"x": images}])
        np.testing.assert_array_equal(found["y"], expected)
    assert_same_layers(undone, linear(first=first))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kernels == ["QuantizeLinear", "MatMulIntegerToFloat", "Relu"]


def test_products_of_the_same_bytes_share_them_again() -> None:
    """Queries and keys read one normalisation: its floats are made once."""
    nodes = [helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "WDQ", axis=1)]
    for name in "ab":
        nodes.append(helper.make_node("MatMul", ["d", "wd"], [f"p{name}"], f"product {name}"))
        nodes.append(helper.make_node("Add", [f"p{name}", name], [f"s{name}"], f"bias {name}"))
    nodes.append(helper.make_node("Mul", ["sa", "sb"], ["y"], "times"))
    model = graph_of(nodes, {**weights_of(4, 6), "a": BIAS, "b": BIAS[::-1]}, [2, 3, 5, 4])
    before = copy(model)
    take_biases(model)
    assert count_ops(model)["MatMulIntegerToFloat"] == 2
    undone = as_calibrated(model)
    onnx.checker.check_model(undone, full_check=True)
    assert_same_layers(undone, before)
    assert count_ops(undone) == count_ops(before)
    feeds = [{"x": images_of(2, 3, 5, 4)}]
    for each in (model, undone):
        np.testing.assert_array_equal(outputs_of(each, feeds)[0]["y"], outputs_of(before, feeds)[0]["y"])


@pytest.mark.parametrize(
    "model",
    [
        linear(read="twice"),
        linear(matrix="floats"),
        linear(bias=np.ones(1, np.float32)),
        linear(bias=np.ones((5, 6), np.float32)),
        linear(bias=np.ones(5, np.float32), matrix="computed"),
        linear(steps=3),
        linear(axis=0),
    ],
    ids=[
        "read twice",
        "in floats",
        "one value",
        "of two axes",
        "of two activations",
        "of several steps",
        "scaled by inputs",
    ],
)
def test_other_sums_stay(model: ModelProto) -> None:
    before = list(model.graph.node)
    take_biases(model)
    assert list(model.graph.node) == before
    assert [entry.domain for entry in model.opset_import] == [""]


def patches(
    side: int = 4,
    *,
    stride: int = 4,
    groups: int = 1,
    perm: tuple[int, ...] = (0, 2, 1),
    pads: int = 0,
    apart: int = 1,
) -> ModelProto:
    """x (2, 3, 8, 12) -> convolution to 6 channels -> tokens (2, 6, h*w), turned as `perm` says -> y."""
    h, w = ((size + 2 * pads - (side - 1) * apart - 1) // stride + 1 for size in (8, 12))
    turned = {
        **weights_of(3 // groups, side, side, 6),
        "b": BIAS,
        "flat": np.array([-1, 6, h * w]),
        "front": np.array([0]),
    }
    constants: Constants = {**turned, "w": np.ascontiguousarray(np.moveaxis(turned["w"], -1, 0))}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "WDQ", axis=0),
        helper.make_node(
            *("Conv", ["d", "wd", "b"], ["c"], "patches"),
            **{"strides": [stride] * 2, "pads": [pads] * 4, "dilations": [apart] * 2, "group": groups},
        ),
        helper.make_node("Reshape", ["c", "flat"], ["f"], "flatten"),
        helper.make_node("Transpose", ["f"], ["t"], "turn", perm=perm),
        helper.make_node("Unsqueeze", ["t", "front"], ["y"], "unsqueeze"),
    ]
    return graph_of(nodes, constants, [2, 3, 8, 12])


def test_patches_become_one_product() -> None:
    model, images = patches(), images_of(2, 3, 8, 12)
    values = Graph(model)
    integers, steps = (torch.from_numpy(values.constant(name).copy()) for name in ("w", "ws"))
    weights = integers * steps.double()[:, None, None, None]
    said = functional.conv2d(steps_of(images), weights, torch.from_numpy(BIAS).double(), 4)
    expected = said.flatten(2).mT[None].float().numpy()
    unfold_patches(model)
    onnx.checker.check_model(model, full_check=True)
    assert count_ops(model)["Conv"] == 0
    assert Graph(model).named["patches"].op_type == "MatMulIntegerToFloat"
    undone = as_calibrated(model)
    onnx.checker.check_model(undone, full_check=True)
    for each in (model, undone):
        (found,) = outputs_of(each, [{"x": images}])
        np.testing.assert_array_equal(found["y"], expected)
    assert_same_layers(undone, patches())
    kernel = Graph(undone).producers[Graph(undone).named["patches"].input[1]].input[0]
    np.testing.assert_array_equal(Graph(undone).constant(kernel), values.constant("w"))


@pytest.mark.parametrize(
    "model",
    [
        patches(stride=2),
        patches(groups=3),
        patches(1, stride=1),
        patches(pads=2),
        patches(2, stride=2, apart=3),
        patches(perm=(1, 2, 0)),
        linear(),
    ],
    ids=[
        "overlapping",
        "in groups",
        "of one pixel",
        "padded",
        "spread out",
        "turned otherwise",
        "no convolution",
    ],
)
def test_other_convolutions_stay(model: ModelProto) -> None:
    before = list(model.graph.node)
    unfold_patches(model)
    assert list(model.graph.node) == before


@st.composite
def tokens(draw: st.DrawFn) -> ModelProto:
    """Layers of tokens (2, 3, 5, 8), each a product of what one before made, perhaps biased, in pairs."""
    bytes_, constants, nodes = ["d"], {}, []
    for index in range(draw(st.integers(1, 4))):
        name, source = f"layer{index}", draw(st.sampled_from(bytes_))
        weights = {f"{key}{index}": value for key, value in weights_of(8, 8).items()}
        constants |= {**weights, f"b{index}": np.arange(8, dtype=np.float32) / 4 - 1}
        pair = [f"w{index}", f"ws{index}", f"wz{index}"]
        nodes.append(helper.make_node("DequantizeLinear", pair, [f"wd{index}"], f"{name}/W", axis=1))
        nodes.append(helper.make_node("MatMul", [source, f"wd{index}"], [f"p{index}"], name))
        made = f"p{index}"
        if draw(st.booleans()):
            both = [made, f"b{index}"]
            nodes.append(
                helper.make_node(
                    "Add", both[:: draw(st.sampled_from([1, -1]))], [f"s{index}"], f"{name}/bias"
                )
            )
            made = f"s{index}"
        nodes.append(helper.make_node("QuantizeLinear", [made, "out", "z"], [f"q{index}"], f"{name}/Q"))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"q{index}", "out", "z"], [f"f{index}"], f"{name}/DQ")
        )
        bytes_.append(f"f{index}")
    nodes.append(helper.make_node("Identity", [bytes_[-1]], ["y"], "end"))
    model = graph_of(nodes, constants, [2, 3, 5, 8])
    drop_dead(model)
    return model


@settings(max_examples=40, deadline=None)
@given(tokens())
def test_layers_of_tokens_say_the_same_and_come_back(model: ModelProto) -> None:
    before = copy(model)
    take_biases(model)
    sums = count_ops(before)["Add"]
    assert (count_ops(model)["Add"], count_ops(model)["MatMulIntegerToFloat"]) == (0, sums)
    undone = as_calibrated(model)
    assert_same_layers(undone, before)
    assert count_ops(undone) == count_ops(before)
    feeds = [{"x": images_of(2, 3, 5, 8)}]
    for each in (model, undone):
        np.testing.assert_array_equal(outputs_of(each, feeds)[0]["y"], outputs_of(before, feeds)[0]["y"])


@pytest.mark.parametrize(("model", "kind"), [(linear(), "MatMul"), (patches(), "Conv")])
def test_tensorrt_gets_the_layers_back(model: ModelProto, kind: str) -> None:
    take_biases(model)
    unfold_patches(model)
    assert "Q10" in {finding.rule for finding in errors(lint(model, "10.3"))}  # no standard operator
    legal = legalise(model, "10.3").model
    assert errors(lint(legal, "10.3")) == []
    assert count_ops(legal)[kind] == 1


def assert_same_layers(found: ModelProto, expected: ModelProto) -> None:
    """All but the pairs: kinds, names and what they make."""
    one, other = (
        [(n.op_type, n.name, list(n.output)) for n in model.graph.node if "quantize" not in n.op_type.lower()]
        for model in (found, expected)
    )
    assert one == other
