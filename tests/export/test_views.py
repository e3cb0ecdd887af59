"""The views are one calibrated model: rewrites that keep every scale, compared with their origin."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgepose.compression.execution import Feeds, outputs_of
from edgepose.compression.graph import Graph, copy, count_ops, opset
from edgepose.compression.plan import float_tail
from edgepose.compression.quantize import Quantized
from edgepose.export.cpu_kernels import as_calibrated
from edgepose.export.half import half_typed
from edgepose.export.views import cpu_view, drop_conv_side, fp16_view, trt_view, typed_view
from edgepose.runtime.agreement import largest
from edgepose.runtime.agreement import pose_difference as difference
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32

C, SIDE = 4, 6  # of the random networks


class Builder:
    """Makes random quantized networks: each step works on the last tensors, all pairs int8, zero point 0."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.count = 0
        self.tensors = ["x"]

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def constant(self, value: Any) -> str:
        name = self.name("k")
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        out = self.name("t")
        self.nodes.append(helper.make_node(op, inputs, [out], f"{op}_{out}", **attributes))
        return out

    def pair(self, tensor: str, scale: float) -> str:
        zero, step = self.constant(np.int8(0)), self.constant(np.float32(scale))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [tensor, step, zero]), step, zero])

    def conv(self, tensor: str, group: int = 1) -> str:
        integers = self.rng.integers(-127, 128, (C, C // group, 3, 3)).astype(np.int8)
        scale = self.constant(self.rng.uniform(1e-3, 4e-3, C).astype(np.float32))
        zero = self.constant(np.zeros(C, np.int8))
        weight = self.node("DequantizeLinear", [self.constant(integers), scale, zero], axis=0)
        bias = self.constant(self.rng.normal(size=C).astype(np.float32))
        return self.node("Conv", [tensor, weight, bias], pads=[1, 1, 1, 1], group=group)

    def model(self) -> ModelProto:
        given_, out = (
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", None, None, None])
            for n in ("x", "y")
        )
        self.nodes.append(helper.make_node("Identity", [self.tensors[-1]], ["y"], "end"))
        graph = helper.make_graph(self.nodes, "g", [given_], [out], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


STEPS = ("conv", "conv_relu", "grouped", "add", "concat_slice", "max_pool", "resize", "average", "moved")


def random_network(seed: int, steps: list[str], scale: float) -> ModelProto:
    """A random network over STEPS; `scale` is every activation's quantization step."""
    b = Builder(seed)
    b.tensors = [b.pair("x", scale)]
    for step in steps:
        last = b.tensors[-1]
        other = b.tensors[int(b.rng.integers(len(b.tensors)))]
        if step == "conv":
            b.tensors.append(b.pair(b.conv(last), scale))
        elif step == "conv_relu":
            b.tensors.append(b.pair(b.node("Relu", [b.conv(last)]), scale))
        elif step == "grouped":
            grouped = b.conv(last, group=int(b.rng.choice([2, C])))
            b.tensors.append(b.pair(b.node("Relu", [grouped]) if b.rng.integers(2) else grouped, scale))
        elif step == "moved":
            turned = b.node("Transpose", [last], perm=[0, 1, 3, 2])
            columns = b.constant(b.rng.permutation(SIDE).astype(np.int64))
            b.tensors.append(
                b.pair(b.node("Gather", [turned, columns], axis=int(b.rng.choice([2, 3]))), scale)
            )
        elif step == "add":
            if b.rng.integers(2):  # a shortcut that nobody else reads
                other = b.pair(b.node("Relu", [b.conv(other)]), scale)
            sides = [b.pair(b.conv(last), scale), other]
            added = b.node("Add", sides[:: 1 if b.rng.integers(2) else -1])
            b.tensors.append(b.pair(b.node("Relu", [added]), scale))
        elif step == "concat_slice":
            joined = b.node("Concat", [last, other], axis=1)
            starts, ends, axes = (b.constant(np.array([v], np.int64)) for v in (2, 2 + C, 1))
            b.tensors.append(b.pair(b.node("Slice", [joined, starts, ends, axes]), scale))
        elif step == "max_pool":
            pooled = b.node("MaxPool", [last], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            b.tensors.append(b.pair(pooled, scale))
        elif step == "resize":
            sizes = b.constant(np.array([1, 1, 2, 2], np.float32))
            up = b.node(
                "Resize",
                [last, "", sizes],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            b.tensors.append(b.pair(b.node("MaxPool", [up], kernel_shape=[2, 2], strides=[2, 2]), scale))
        else:
            b.tensors.append(
                b.pair(b.node("AveragePool", [last], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), scale)
            )
    return b.model()


networks = st.builds(
    random_network,
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(STEPS), min_size=1, max_size=6),
    st.sampled_from([0.02, 0.1, 0.7]),
)


def picture(seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=(1, C, SIDE, SIDE)).astype(np.float32)


def plain(model: ModelProto, image: F32, taps: list[str]) -> dict[str, F32]:
    """Node by node, without fusion, with inner tensors too."""
    tapped = copy(model)
    known = {value.name for value in tapped.graph.output}
    for tap in taps:
        if tap not in known:
            tapped.graph.output.append(helper.make_empty_tensor_value_info(tap))
    return outputs_of(tapped, [{tapped.graph.input[0].name: image}], optimised=False)[0]


@settings(max_examples=40, deadline=None)
@given(networks)
def test_cpu_view_equals_the_origin_up_to_saturation(model: ModelProto) -> None:
    """Exactly equal as long as no pair cuts at 127 steps; where one cuts, the CPU view keeps more."""
    view = as_calibrated(cpu_view(model))  # which answers as the view does, see below
    pairs = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    steps = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    before = [n.input[0] for n in pairs]
    after, again = (
        [next(d.output[0] for d in m.graph.node if n.output[0] in d.input) for n in pairs]
        for m in (model, view)
    )
    a, b = (plain(m, picture(), [*before, *taps, "y"]) for m, taps in ((model, after), (view, again)))
    cut = False
    for node, raw, made, other in zip(pairs, before, after, again, strict=True):
        step = steps[node.input[1]]
        if not cut:
            np.testing.assert_array_equal(a[raw], b[raw])  # nothing upstream was cut: what enters is the same
            high = np.rint(a[raw] / step) > 127
            np.testing.assert_array_equal(a[made][~high], b[other][~high])
            assert (b[other][high] >= a[made][high]).all()
            assert (b[other] <= np.float32(255) * step).all()
        cut = cut or bool((a[made] != b[other]).any())
    if not cut:
        np.testing.assert_array_equal(a["y"], b["y"])


@settings(max_examples=40, deadline=None)
@given(networks)
def test_a_cpu_view_leads_back_to_the_layers(model: ModelProto) -> None:
    """Groups are joined, floats are moved again: the origin's nodes and weights, the view's answers."""
    view = cpu_view(model)
    back = as_calibrated(view)
    onnx.checker.check_model(back, full_check=True)
    there, pairs = Graph(back), ("QuantizeLinear", "DequantizeLinear")
    for node in model.graph.node:
        if node.op_type not in pairs:
            found = there.named[node.name]
            assert (found.op_type, found.output) == (node.op_type, node.output)
            assert sorted(map(str, found.attribute)) == sorted(map(str, node.attribute))
    for one, other in zip(weights_of(model), weights_of(back), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(plain(view, picture(), [])["y"], plain(back, picture(), [])["y"])


def weights_of(model: ModelProto) -> list[Any]:
    graph = Graph(model)
    return [
        graph.value(graph.producers[node.input[1]].input[0])
        for node in sorted(graph.nodes, key=lambda node: node.name)
        if node.op_type == "Conv"
    ]


@settings(max_examples=30, deadline=None)
@given(networks)
def test_rewrites_settle_and_leave_the_origin_alone(model: ModelProto) -> None:
    before = model.SerializeToString()
    for rewrite in (cpu_view, trt_view, drop_conv_side):
        once = rewrite(model)
        assert rewrite(once).SerializeToString() == once.SerializeToString()
        onnx.checker.check_model(once, full_check=True)
    assert model.SerializeToString() == before


@settings(max_examples=30, deadline=None)
@given(networks)
def test_trt_view_frees_one_convolution_per_add_and_nothing_else(model: ModelProto) -> None:
    view = trt_view(model)
    graph = Graph(view)
    adds = [node for node in graph.nodes if node.op_type == "Add"]
    for node in adds:
        direct = [graph.producers[name].op_type for name in node.input]
        assert direct.count("Conv") == 1
        assert direct.count("DequantizeLinear") == 1  # the shortcut keeps its pair
    dropped = len(adds)
    weights = count_ops(model)["Conv"]
    assert count_ops(view)["QuantizeLinear"] == count_ops(model)["QuantizeLinear"] - dropped + weights


@settings(max_examples=30, deadline=None)
@given(networks)
def test_trt_view_is_the_origin_with_those_pairs_passed_through(model: ModelProto) -> None:
    """The origin, its conv-side pairs bridged in an independent way, answers bit for bit the same."""
    passed = copy(model)
    made = {o: n for n in passed.graph.node for o in n.output}
    reads = Counter(name for n in passed.graph.node for name in n.input)
    for node in passed.graph.node:
        if node.op_type == "Add":
            for index, name in enumerate(node.input):
                source = made[made[name].input[0]].input[0]
                alone = reads[name] == 1 and reads[source] == 1
                if alone and source in made and made[source].op_type == "Conv":
                    node.input[index] = source
                    break
    expected = outputs_of(passed, [{"x": picture()}], optimised=False)[0]["y"]
    np.testing.assert_array_equal(
        outputs_of(trt_view(model), [{"x": picture()}], optimised=False)[0]["y"], expected
    )


def test_weights_keep_their_integers(quantized: Quantized) -> None:
    view = trt_view(quantized.model)
    values = {t.name: numpy_helper.to_array(t) for t in view.graph.initializer}
    origin = {t.name: numpy_helper.to_array(t) for t in quantized.model.graph.initializer}
    assert not any(v.dtype == np.int8 and v.size > 1 and v.any() for v in values.values())
    made = {n.output[0]: n for n in view.graph.node}
    checked = 0
    for node in quantized.model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in origin:
            quantize = made[made[node.output[0]].input[0]]
            scale = values[quantize.input[1]].reshape(-1, 1, 1, 1)
            integers = np.clip(np.rint(values[quantize.input[0]] / scale), -128, 127)
            np.testing.assert_array_equal(integers, origin[node.input[0]])
            checked += 1
    assert checked == 11


def test_scales_are_those_of_the_origin_in_every_view(quantized: Quantized, traced: ModelProto) -> None:
    def scales(model: ModelProto) -> set[bytes]:
        graph = Graph(model)
        found = [graph.value(n.input[1]) for n in graph.nodes if n.op_type == "DequantizeLinear"]
        return {np.asarray(s, np.float16).tobytes() for s in found if s is not None}

    origin = scales(quantized.model)
    cpu = as_calibrated(cpu_view(quantized.model))  # else the groups' scales stand by themselves
    for view in (cpu, trt_view(quantized.model), typed_view(quantized.model, ())):
        assert scales(view) <= origin
        assert len(scales(view)) >= len(origin) - 3


def test_cpu_view_fuses_what_the_trt_placement_does_not(quantized: Quantized, tmp_path: Any) -> None:
    import onnxruntime as ort

    counts = []
    for index, view in enumerate((cpu_view(quantized.model), trt_view(quantized.model))):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{index}.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(view.SerializeToString(), options, providers=["CPUExecutionProvider"])
        counts.append(count_ops(onnx.load(tmp_path / f"{index}.onnx"))["QLinearConv"])
    assert counts[0] >= 12  # five of them for the joints' grouped one
    assert counts[0] > counts[1]


def test_typed_views_have_half_inside_and_float32_ends(quantized: Quantized, traced: ModelProto) -> None:
    tail = float_tail(traced, "qrpose")
    for view, expected_opset in ((typed_view(quantized.model, tail), 19), (fp16_view(traced, tail), 17)):
        assert opset(view) == expected_opset
        inferred = onnx.shape_inference.infer_shapes(view, check_type=True, strict_mode=True)
        values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        types = {v.name: v.type.tensor_type.elem_type for v in values}
        types |= {t.name: t.data_type for t in inferred.graph.initializer}
        assert all(types[v.name] == TensorProto.FLOAT for v in (*view.graph.input, *view.graph.output))
        for node in view.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert types[node.input[1]] == TensorProto.FLOAT16
            if node.op_type == "QuantizeLinear":
                assert types[node.input[0]] == TensorProto.FLOAT16  # no cast between a tensor and its pair
            if node.op_type == "Conv":
                half = types[node.output[0]] == TensorProto.FLOAT16
                assert half == (node.name not in tail), node.name


def test_half_views_answer_like_their_origins(
    quantized: Quantized, traced: ModelProto, feeds: list[Feeds]
) -> None:
    tail = float_tail(traced, "qrpose")
    near = largest(
        [
            difference(a, b, 0.1)
            for a, b in zip(
                outputs_of(traced, feeds), outputs_of(fp16_view(traced, tail), feeds), strict=True
            )
        ]
    )
    assert near.keypoint_px < 0.1
    assert near.score < 1e-3
    network = random_network(5, ["conv_relu", "add", "concat_slice", "conv", "resize"], 0.1)
    a = outputs_of(drop_conv_side(network), [{"x": picture()}], optimised=False)[0]["y"]
    b = outputs_of(half_typed(drop_conv_side(network)), [{"x": picture()}], optimised=False)[0]["y"]
    # A value that rounds to the other step is one step off; most are not.
    assert np.mean(np.abs(a - b) > 0.01) < 0.05
    assert np.abs(a - b).max() < 0.5


def gemm(weight: F32, scale: float) -> ModelProto:
    b = Builder(0)
    b.tensors = [b.node("Mul", [b.pair("x", scale), b.constant(weight)])]
    return b.model()


def test_what_does_not_fit_half_is_said() -> None:
    with pytest.raises(EdgeposeError, match="beyond half precision"):
        half_typed(gemm(np.full(1, 1e6, np.float32), 0.1))
    with pytest.raises(EdgeposeError, match="does not fit half"):
        half_typed(gemm(np.ones(1, np.float32), 1e-9))


def test_tiny_weight_scales_grow_without_changing_weights() -> None:
    """A dead channel's scale underflows in half; the same weights are written on a scale that fits."""
    b = Builder(1)
    quiet = b.conv(b.pair("x", 0.1))
    dequantize = next(n for n in b.nodes if n.op_type == "DequantizeLinear" and len(n.attribute))
    scale = next(t for t in b.constants if t.name == dequantize.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.array([1e-9, 2e-5, 1e-3, 1e-3], np.float32), scale.name))
    b.tensors = [quiet]
    model = b.model()
    view = half_typed(model)
    made = {n.output[0]: n for n in view.graph.node}
    conv = next(n for n in view.graph.node if n.op_type == "Conv")
    written = made[conv.input[1]]
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in view.graph.initializer}
    origin = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    shape = (-1, 1, 1, 1)
    after = values[written.input[0]] * values[written.input[1]].reshape(shape)
    before = origin[dequantize.input[0]] * origin[dequantize.input[1]].reshape(shape)
    assert (values[written.input[1]] > 0).all()
    assert np.abs(after - before).max() < 127 * 1e-3 * 1e-3
    assert np.abs(after - before)[1].max() <= np.finfo(np.float16).tiny
