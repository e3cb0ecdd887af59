"""Foreign and seeded-faulty Q/DQ files become legal or are refused by name and rule; answers stay."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import copy, count_ops, opset
from edgepose.compression.quantize import Quantized
from edgepose.export.legalise import legalise
from edgepose.export.lint import errors, lint
from edgepose.export.views import cpu_view, drop_conv_side, trt_view
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32

RELEASES = ("8.6", "10.3", "11.1")


def model_of(nodes: list[Any], constants: dict[str, Any], opset_version: int = 17) -> ModelProto:
    """From `x` to `y`, both float."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset_version)], ir_version=8)


def run(model: ModelProto, x: F32) -> F32:
    """Node by node: ONNX Runtime's optimizer has its own ideas about uint8."""
    return outputs_of(model, [{"x": x}], optimised=False)[0]["y"]


def pair(source: str, out: str, constants: str) -> list[Any]:
    names = [f"{constants}_scale", f"{constants}_zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *names], [f"{out}_q"]),
        helper.make_node("DequantizeLinear", [f"{out}_q", *names], [out]),
    ]


# A single quantizer, whatever its type and zero point.

kinds = st.sampled_from([np.uint8, np.int8])


@settings(max_examples=60, deadline=None)
@given(
    kinds.flatmap(lambda k: st.tuples(st.just(k), st.integers(np.iinfo(k).min, np.iinfo(k).max))),
    st.floats(1e-3, 10.0),
    st.integers(0, 2**32 - 1),
    st.sampled_from(RELEASES),
)
def test_a_quantizer_moves_by_at_most_one_step(
    typed_zero: tuple[type[np.integer[Any]], int], scale: float, seed: int, trt: str
) -> None:
    kind, zero = typed_zero
    model = model_of(pair("x", "y", "p"), {"p_scale": np.float32(scale), "p_zero": kind(zero)})
    # Far beyond both ends too: the old range saturates, and so must the new one.
    x = (np.random.default_rng(seed).uniform(-400, 400, (1, 3, 8, 8)) * scale).astype(np.float32)
    legal = legalise(model, trt).model
    assert errors(lint(legal, trt)) == []
    step = max(float(numpy_helper.to_array(t)) for t in legal.graph.initializer if t.name.endswith("scale"))
    ends = np.array([np.iinfo(kind).min, np.iinfo(kind).max]) - zero
    # 128 steps to the lower side, 127 to the upper one: what covers the old range, and nothing longer.
    assert step == pytest.approx(scale * max(1, -ends[0] / 128, ends[1] / 127), rel=1e-6)
    assert np.abs(run(legal, x) - run(model, x)).max() <= step * (1 + 1e-4)
    if ends[0] >= -128 and ends[1] <= 127:
        np.testing.assert_array_equal(run(legal, x), run(model, x))


@settings(max_examples=40, deadline=None)
@given(kinds, st.booleans(), st.integers(0, 2**32 - 1))
def test_weights_move_by_at_most_half_a_step(
    kind: type[np.integer[Any]], per_channel: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    limits = np.iinfo(kind)
    count = 6 if per_channel else 1
    scale = rng.uniform(0.01, 0.2, count).astype(np.float32)
    zero = rng.integers(limits.min, limits.max, count).astype(kind)
    reach = rng.choice([20, 60, 127])  # some weights fit signed steps about 0, some do not
    integers = (zero.reshape(-1, 1) + rng.integers(-reach, reach, (6, 4))).clip(limits.min, limits.max)
    integers = integers.astype(kind)
    if not per_channel:
        scale, zero = scale[0], zero[0]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=0),
        helper.make_node("Gemm", ["x", "wf"], ["y"], transB=1),
    ]
    model = model_of(nodes, {"w": integers, "w_scale": scale, "w_zero": zero})
    legal = legalise(model, "10.3").model
    identity = np.eye(4, dtype=np.float32)  # the product is the weight itself
    weight = (integers - zero.reshape(-1, 1).astype(np.float64)) * scale.reshape(-1, 1)
    np.testing.assert_allclose(run(model, identity).T, weight, rtol=1e-5)
    steps = np.maximum(scale, np.abs(weight).reshape(count, -1).max(1) / 127).reshape(-1, 1)
    moved = np.abs(run(legal, identity).T - weight)
    assert (moved <= steps / 2 + 1e-5).all()
    centred = (integers - zero.reshape(-1, 1).astype(np.int64)).reshape(count, -1)
    fits = (centred.min(1) >= -128) & (centred.max(1) <= 127)
    assert (moved.reshape(count, -1)[fits] < 1e-5).all()  # shifted, not rounded again
    assert errors(lint(legal, "10.3")) == []


# Whole files of other tools.


@cache
def network() -> ModelProto:
    """A residual network with random weights: convolutions, ReLUs, a pool, an addition, a matrix."""
    rng = np.random.default_rng(8)

    def conv(source: str, out: str, channels: tuple[int, int]) -> Any:
        constants[f"{out}_w"] = rng.normal(0, 0.2, (channels[1], channels[0], 3, 3)).astype(np.float32)
        constants[f"{out}_b"] = rng.normal(0, 0.2, channels[1]).astype(np.float32)
        return helper.make_node("Conv", [source, f"{out}_w", f"{out}_b"], [out], out, pads=[1, 1, 1, 1])

    constants: dict[str, Any] = {"m": rng.normal(0, 0.2, (16, 24)).astype(np.float32)}
    nodes = [
        conv("x", "c1", (3, 16)),
        helper.make_node("Relu", ["c1"], ["r1"], "r1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "p1", kernel_shape=[2, 2], strides=[2, 2]),
        conv("p1", "c2", (16, 16)),
        helper.make_node("Relu", ["c2"], ["r2"], "r2"),
        conv("r2", "c3", (16, 16)),
        helper.make_node("Add", ["c3", "p1"], ["a"], "a"),
        helper.make_node("Transpose", ["a"], ["t"], "t", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "m"], ["y"], "y"),
    ]
    model = model_of(nodes, constants)
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16]))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 24]))
    return model


def pictures(seed: int) -> list[F32]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, 3, 16, 16)).astype(np.float32) for _ in range(8)]


class Reader:
    """Of the calibration pictures, as ONNX Runtime's tool wants it."""

    def __init__(self) -> None:
        self.left = iter(pictures(1))

    def get_next(self) -> dict[str, F32] | None:
        image = next(self.left, None)
        return None if image is None else {"x": image}


@cache
def foreign(tool: str) -> ModelProto:
    """What a tool makes of the network by default."""
    if tool == "NNCF":
        import nncf

        return nncf.quantize(copy(network()), nncf.Dataset([{"x": image} for image in pictures(1)]))
    from onnxruntime.quantization import QuantFormat, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        onnx.save(network(), source)
        form = QuantFormat[tool.removeprefix("ORT ")]
        operators = ["Conv", "MatMul", "MaxPool"]  # its Add has an operator of the vendor's own
        quantize_static(
            source, target, Reader(), quant_format=form, per_channel=True, op_types_to_quantize=operators
        )
        return onnx.load(target)


# The rules that a tool's default output breaks.
TOOLS = {"ORT QDQ": {"Q01", "Q03", "Q08"}, "ORT QOperator": {"Q09"}, "NNCF": {"Q01"}}


@pytest.mark.parametrize("trt", RELEASES)
@pytest.mark.parametrize("tool", TOOLS)
def test_files_of_other_tools_become_legal(tool: str, trt: str) -> None:
    model = foreign(tool)
    broken = {finding.rule for finding in errors(lint(model, trt))}
    assert broken >= TOOLS[tool]
    legal = legalise(model, trt)
    assert errors(lint(legal.model, trt)) == []
    assert broken <= {finding.rule for finding in legal.mended}
    again = legalise(legal.model, trt)
    assert again.model.SerializeToString() == legal.model.SerializeToString()
    assert again.mended == []
    for image in pictures(2):
        exact, before, after = (run(m, image) for m in (network(), model, legal.model))
        # Hardly further from the float network than the tool's own file, whose steps are up to half as long.
        assert np.abs(after - exact).mean() < 2.2 * np.abs(before - exact).mean()
        assert np.abs(after - before).mean() < 0.03 * exact.std()


# What is legal stays; what was mended stays mended.


def test_a_legal_file_comes_back(quantized: Quantized) -> None:
    good = trt_view(quantized.model)
    assert legalise(good, "8.6").model.SerializeToString() == good.SerializeToString()


def test_of_a_legal_file_the_pairs_go_that_keep_a_convolution_from_its_add(quantized: Quantized) -> None:
    found = lint(quantized.model, "10.3")
    assert {finding.rule for finding in found} == {"P01"}
    legal = legalise(quantized.model, "10.3")
    assert legal.model.SerializeToString() == drop_conv_side(quantized.model).SerializeToString()
    assert legal.mended == found


def test_the_cpu_view_becomes_legal(quantized: Quantized) -> None:
    legal = legalise(cpu_view(quantized.model), "10.3").model
    assert errors(lint(legal, "10.3")) == []
    assert count_ops(legal) == count_ops(drop_conv_side(quantized.model))


# Rule by rule.


def test_integers_that_are_only_moved() -> None:
    nodes = pair("x", "a", "p")
    nodes.insert(1, helper.make_node("Transpose", ["a_q"], ["moved"], perm=[0, 2, 1]))
    nodes[2].input[0] = "moved"
    nodes.append(helper.make_node("Relu", ["a"], ["y"]))
    model = model_of(nodes, {"p_scale": np.float32(0.5), "p_zero": np.int8(0)})
    assert {f.rule for f in errors(lint(model))} == {"Q11"}
    legal = legalise(model).model
    x = np.arange(-12, 12, dtype=np.float32).reshape(1, 4, 6)
    assert errors(lint(legal)) == []
    np.testing.assert_array_equal(run(legal, x), run(model, x))
    assert [n.op_type for n in legal.graph.node] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "Transpose",
        "Relu",
    ]


def test_moved_integers_keep_the_scale_they_are_read_by() -> None:
    nodes = pair("x", "a", "p")
    nodes.insert(1, helper.make_node("Transpose", ["a_q"], ["moved"], perm=[0, 2, 1]))
    nodes[2].input[:] = ["moved", "twice", "p_zero"]
    nodes.append(helper.make_node("Relu", ["a"], ["y"]))
    constants = {"p_scale": np.float32(0.5), "twice": np.float32(1), "p_zero": np.int8(0)}
    model = model_of(nodes, constants)
    legal = legalise(model).model
    x = np.arange(-12, 12, dtype=np.float32).reshape(1, 4, 6)
    assert errors(lint(legal)) == []
    np.testing.assert_array_equal(run(legal, x), run(model, x))
    assert run(legal, x).max() == 22  # 11 by steps of 1/2, read as if they were of 1


def test_readers_that_disagree_on_moved_integers_are_refused() -> None:
    nodes = pair("x", "a", "p")
    nodes.insert(1, helper.make_node("Transpose", ["a_q"], ["moved"], perm=[0, 2, 1]))
    nodes[2].input[0] = "moved"
    nodes.append(helper.make_node("DequantizeLinear", ["moved", "twice", "p_zero"], ["b"]))
    nodes.append(helper.make_node("Add", ["a", "b"], ["y"]))
    constants = {"p_scale": np.float32(0.5), "twice": np.float32(1), "p_zero": np.int8(0)}
    with pytest.raises(EdgeposeError, match=r"\(rule Q11\)"):
        legalise(model_of(nodes, constants))


@pytest.mark.parametrize("second", ["p", "r"], ids=["same steps", "other steps"])
def test_integers_that_are_joined(second: str) -> None:
    """Each of them gets a DQ of its own, with the scale that the joined ones are read by."""
    constants = {"p_scale": np.float32(0.5), "r_scale": np.float32(0.25)}
    constants |= {"p_zero": np.int8(0), "r_zero": np.int8(0)}
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        pair("x", "a", "p")[0],
        pair("n", "b", second)[0],
        helper.make_node("Concat", ["a_q", "b_q"], ["joined"], axis=1),
        helper.make_node("DequantizeLinear", ["joined", "p_scale", "p_zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    model = model_of(nodes, constants)
    legal = legalise(model).model
    x = np.arange(-12, 12, dtype=np.float32).reshape(1, 4, 6)
    assert errors(lint(legal)) == []
    assert count_ops(legal)["DequantizeLinear"] == 2
    np.testing.assert_array_equal(run(legal, x), run(model, x))


def test_a_left_out_relu_comes_back_only_where_it_is_needed() -> None:
    constants = {"p_scale": np.float32(0.5), "p_zero": np.uint8(0)}
    bare = legalise(model_of(pair("x", "y", "p"), constants)).model
    assert count_ops(bare)["Relu"] == 1
    nodes = [helper.make_node("Relu", ["x"], ["r"]), *pair("r", "y", "p")]
    assert count_ops(legalise(model_of(nodes, constants)).model)["Relu"] == 1


@pytest.mark.parametrize("form", ["integers", "floats"])
def test_weights_on_the_wrong_axis(form: str) -> None:
    rng = np.random.default_rng(0)
    integers, scale = rng.integers(-127, 128, (6, 4)), rng.uniform(0.01, 0.1, 4).astype(np.float32)
    integers[2] = 0  # an output channel that is always 0
    integers[0, 0] = 127
    constants = {"w": integers.astype(np.int8), "w_scale": scale, "w_zero": np.zeros(4, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=1),
        helper.make_node("Gemm", ["x", "wf"], ["y"], transB=1),
    ]
    if form == "floats":
        constants["w"] = (integers * scale).astype(np.float32)
        constants["w"][0, 0] *= 3  # its Q saturates there
        nodes[0].input[0] = "w_q"
        nodes.insert(0, helper.make_node("QuantizeLinear", ["w", "w_scale", "w_zero"], ["w_q"], axis=1))
    model = model_of(nodes, constants)
    assert {f.rule for f in errors(lint(model))} == {"Q07"}
    legal = legalise(model).model
    assert errors(lint(legal)) == []
    identity, weight = np.eye(4, dtype=np.float32), integers * scale
    steps = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(run(legal, identity).T - weight) <= steps / 2 + 1e-6).all()


def test_a_dead_channel() -> None:
    weight, scale = np.zeros((3, 4), np.int8), np.array([0.1, 0, 0.2], np.float32)
    weight[0], weight[2] = 5, -7
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=0),
        helper.make_node("Gemm", ["x", "wf"], ["y"], transB=1),
    ]
    model = model_of(nodes, {"w": weight, "w_scale": scale, "w_zero": np.zeros(3, np.int8)})
    legal = legalise(model).model
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(run(legal, x), run(model, x))


Fault = Callable[[dict[str, Any], list[Any]], None]


def sixteen_bits(constants: dict[str, Any], nodes: list[Any]) -> None:
    constants["p_zero"] = np.uint16(0)


def several_scales(constants: dict[str, Any], nodes: list[Any]) -> None:
    constants["p_scale"], constants["p_zero"] = np.full(3, 0.1, np.float32), np.zeros(3, np.int8)


def computed_scale(constants: dict[str, Any], nodes: list[Any]) -> None:
    del constants["p_scale"]
    nodes.insert(0, helper.make_node("ReduceMax", ["x"], ["p_scale"], keepdims=0))


def negative_scale(constants: dict[str, Any], nodes: list[Any]) -> None:
    constants["p_scale"] = np.float32(-1)


def integer_operator(constants: dict[str, Any], nodes: list[Any]) -> None:
    nodes[0] = helper.make_node("DynamicQuantizeLinear", ["x"], ["y_q", "p_s", "p_z"], "dynamic")


def foreign_operator(constants: dict[str, Any], nodes: list[Any]) -> None:
    nodes.insert(0, helper.make_node("FakeQuantize", ["x"], ["f"], "fake", domain="org.example"))
    nodes[1].input[0] = "f"


def data_dependent(constants: dict[str, Any], nodes: list[Any]) -> None:
    nodes.insert(0, helper.make_node("NonZero", ["x"], ["n"], "nonzero"))
    nodes.insert(1, helper.make_node("Cast", ["n"], ["f"], "cast", to=TensorProto.FLOAT))
    nodes[2].input[0] = "f"


def half_read(constants: dict[str, Any], nodes: list[Any]) -> None:
    nodes[1].output[0] = "d"
    nodes.append(helper.make_node("Cast", ["y_q"], ["c"], "cast", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Add", ["c", "d"], ["y"], "add"))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (sixteen_bits, "Q01"),
        (several_scales, "Q06"),
        (computed_scale, "Q04"),
        (negative_scale, "Q04"),
        (integer_operator, "Q09"),
        (foreign_operator, "Q10"),
        (data_dependent, "G02"),
        (half_read, "Q11"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_refused_by_name_and_rule(fault: Fault, rule: str) -> None:
    nodes, constants = pair("x", "y", "p"), {"p_scale": np.float32(0.1), "p_zero": np.int8(0)}
    fault(constants, nodes)
    model = model_of(nodes, constants)
    names = "QuantizeLinear_y_q|DequantizeLinear_[yd]|dynamic|fake|nonzero"
    helps = {"Q10": "ONNX's own operators", "G02": "fixed shapes"}.get(rule, "edgepose compress")
    with pytest.raises(EdgeposeError, match=rf"^({names}): .*\(rule {rule}\).*: .*{helps}"):
        legalise(model)


@pytest.mark.parametrize(("version", "said"), [(10, "opset 10.*convert"), (99, "rule G01.*: .*older opset$")])
def test_an_opset_out_of_reach_is_refused(version: int, said: str) -> None:
    model = model_of(pair("x", "y", "p"), {"p_scale": np.float32(0.1), "p_zero": np.int8(0)}, version)
    with pytest.raises(EdgeposeError, match=said):
        legalise(model)


def test_a_newer_opset_goes_down() -> None:
    constants = {"p_scale": np.float32(0.1), "p_zero": np.int8(0)}
    model = model_of([*pair("x", "a", "p"), helper.make_node("Relu", ["a"], ["y"])], constants, 21)
    assert [opset(legalise(model, trt).model) for trt in RELEASES] == [17, 20, 20]
