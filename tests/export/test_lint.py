"""Each rule of the linter: tripped by a fault made for it, silent on the good file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgepose.compression.graph import copy
from edgepose.compression.quantize import Quantized
from edgepose.export.lint import NEWEST_OPSET, RULES, errors, lint
from edgepose.export.views import cpu_view, drop_conv_side, fp16_view, trt_view, typed_view
from edgepose.runtime.errors import EdgeposeError

Fault = Callable[[ModelProto], None]


def tensor(model: ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found


def pair(model: ModelProto, weight: bool = False, op: str = "QuantizeLinear") -> NodeProto:
    constants = {t.name for t in model.graph.initializer}
    found: NodeProto = next(
        n for n in model.graph.node if n.op_type == op and (n.input[0] in constants) is weight
    )
    return found


def replace(model: ModelProto, node: NodeProto, index: int, value: object) -> None:
    """Another constant on one input of a Q and of the DQ behind it."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "seeded"))
    for other in model.graph.node:
        if other is node or node.output[0] in other.input[:1]:
            other.input[index] = "seeded"


def unsigned(model: ModelProto) -> None:
    replace(model, pair(model), 2, np.uint8(0))


def no_zero_point(model: ModelProto) -> None:
    del pair(model).input[2]


def asymmetric(model: ModelProto) -> None:
    replace(model, pair(model), 2, np.int8(3))


def dead_channel(model: ModelProto) -> None:
    scale = tensor(model, pair(model, weight=True).input[1])
    values = numpy_helper.to_array(scale).copy()
    values[2] = 0
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))


def not_a_number(model: ModelProto) -> None:
    replace(model, pair(model), 1, np.float32(np.nan))


def one_zero_point(model: ModelProto) -> None:
    replace(model, pair(model, weight=True), 2, np.int8(0))


def per_channel_activation(model: ModelProto) -> None:
    node = pair(model)
    replace(model, node, 1, np.full(3, 0.1, np.float32))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int8), "seeded_zero"))
    for other in model.graph.node:
        if other is node or node.output[0] in other.input[:1]:
            other.input[2] = "seeded_zero"


def wrong_axis(model: ModelProto) -> None:
    node = pair(model, weight=True)
    for other in model.graph.node:
        if other is node or node.output[0] in other.input[:1]:
            other.attribute[0].i = 1


def quantized_bias(model: ModelProto) -> None:
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    names = ("bias32", "bias_scale", "bias_zero")
    for name, value in zip(names, (np.zeros(16, np.int32), np.float32(1), np.int32(0)), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", list(names), ["bias_float"], "bias_dq"))
    conv.input[2] = "bias_float"


def integer_operator(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["images"], ["q", "s", "z"], "dynamic"))


def foreign_operator(model: ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("FakeQuantize", ["images"], ["f"], "fake", domain="org.openvinotoolkit")
    )


def bare_integers(model: ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("Cast", [pair(model).output[0]], ["c"], "cast", to=TensorProto.FLOAT)
    )


def integer_weights(model: ModelProto) -> None:
    node = pair(model, weight=True)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.int8), node.output[0]))
    model.graph.node.remove(node)


def half_scale(model: ModelProto) -> None:
    replace(model, pair(model), 1, np.float16(0.1))


def newer_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 21


def data_dependent(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("NonZero", ["images"], ["n"], "nonzero"))


def computed_k(model: ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "TopK").input[1] = "somewhere"


def large_k(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([4000], np.int64), "large"))
    next(n for n in model.graph.node if n.op_type == "TopK").input[1] = "large"


def two_scales_into_concat(model: ModelProto) -> None:
    for index, scale in enumerate((0.1, 0.2)):
        for name, value in ((f"s{index}", np.float32(scale)), (f"z{index}", np.int8(0))):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        inputs = [pair(model).output[0], f"s{index}", f"z{index}"]
        model.graph.node.append(helper.make_node("DequantizeLinear", inputs, [f"d{index}"], f"dq{index}"))
    model.graph.node.append(helper.make_node("Concat", ["d0", "d1"], ["dd"], "concat", axis=1))


def int8_deconvolution(model: ModelProto) -> None:
    made = pair(model, op="DequantizeLinear").output[0]
    model.graph.node.append(helper.make_node("ConvTranspose", [made, made], ["up"], "deconvolution"))


# (rule, release, fault); the faults are made in the TensorRT view.
FAULTS: list[tuple[str, str, Fault]] = [
    ("Q01", "10.3", unsigned),
    ("Q02", "8.6", no_zero_point),
    ("Q03", "10.3", asymmetric),
    ("Q04", "10.3", dead_channel),
    ("Q04", "10.3", not_a_number),
    ("Q05", "10.3", one_zero_point),
    ("Q06", "10.3", per_channel_activation),
    ("Q07", "10.3", wrong_axis),
    ("Q08", "10.3", quantized_bias),
    ("Q09", "10.3", integer_operator),
    ("Q10", "10.3", foreign_operator),
    ("Q11", "10.3", bare_integers),
    ("Q12", "8.6", integer_weights),
    ("Q13", "8.6", half_scale),
    ("G01", "10.3", newer_opset),
    ("G02", "10.3", data_dependent),
    ("G03", "8.6", computed_k),
    ("G03", "10.3", large_k),
    ("P02", "10.3", two_scales_into_concat),
    ("P03", "10.3", int8_deconvolution),
]


@pytest.fixture(scope="module")
def good(quantized: Quantized) -> ModelProto:
    return trt_view(quantized.model)


@pytest.mark.parametrize(("rule", "release", "fault"), FAULTS, ids=lambda v: getattr(v, "__name__", v))
def test_each_rule_is_tripped_by_its_fault(good: ModelProto, rule: str, release: str, fault: Fault) -> None:
    model = copy(good)
    fault(model)
    found = {finding.rule for finding in lint(model, release)}
    assert rule in found
    # A fault may break its neighbour's rule as well, but must not set off the whole table.
    assert len(found) <= 3, found


def test_every_rule_has_a_fault() -> None:
    tripped = {rule for rule, _, _ in FAULTS} | {"P01", "P04"}  # those two have tests of their own below
    assert tripped == {rule.number for rule in RULES}
    assert len({rule.number for rule in RULES}) == len(RULES)
    assert all(rule.source and rule.text for rule in RULES)


def test_silent_on_the_good_files(good: ModelProto, quantized: Quantized, traced: ModelProto) -> None:
    for release in ("8.6", "10.3"):
        assert lint(good, release) == []
    for release in ("10.3", "11.1"):
        assert lint(typed_view(quantized.model, ()), release) == []
    for release in NEWEST_OPSET:
        assert lint(traced, release) == []
        assert lint(fp16_view(traced, ()), release) == []


def test_pair_between_conv_and_add_is_slow_not_wrong(quantized: Quantized) -> None:
    found = lint(quantized.model, "10.3")
    assert {finding.rule for finding in found} == {"P01"}
    assert len(found) == 3
    assert not errors(found)
    assert not lint(drop_conv_side(quantized.model), "10.3")


def test_float32_pairs_are_slow_on_11(good: ModelProto) -> None:
    assert [finding.rule for finding in lint(good, "11.1")] == ["P04"]


def test_the_cpu_view_is_refused(quantized: Quantized) -> None:
    found = errors(lint(cpu_view(quantized.model), "10.3"))
    assert {"Q01", "Q03"} <= {finding.rule for finding in found}


def test_default_nncf_output_is_refused(traced: ModelProto, images: list[object]) -> None:
    import nncf

    default = nncf.quantize(copy(traced), nncf.Dataset([{"images": image} for image in images[:2]]))
    assert "Q01" in {finding.rule for finding in errors(lint(default, "10.3"))}


def test_an_unknown_release_is_refused(good: ModelProto) -> None:
    with pytest.raises(EdgeposeError, match="known for"):
        lint(good, "7.0")
