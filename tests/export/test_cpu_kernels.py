"""Groups as whole convolutions, values moved as bytes: against torch, and what is left alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from byte_graphs import IN, OUT, graph_of
from onnx import ModelProto, helper
from torch.nn import functional

from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import Graph, count_ops
from edgepose.export.cpu_kernels import as_calibrated, move_as_bytes, split_groups


def grouped(
    weights: npt.NDArray[np.int8], groups: int, *, relu: bool = True, rounded: bool = True
) -> ModelProto:
    scales = np.exp2(np.arange(len(weights)) % 4 - 6).astype(np.float32)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "w": weights,
        "ws": scales,
        "wz": np.zeros(len(weights), np.int8),
        "b": np.arange(len(weights)).astype(np.float32) / 4,
    }
    last = "r" if relu else "c"
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "WDQ", axis=0),
        helper.make_node(
            "Conv", ["d", "wd", "b"], ["c"], "conv", group=groups, pads=[1, 1, 1, 1], strides=[2, 1]
        ),
        *([helper.make_node("Relu", ["c"], ["r"], "relu")] if relu else []),
        helper.make_node("QuantizeLinear", [last, "out", "z"], ["m"], "QM"),
        helper.make_node("DequantizeLinear", ["m", "out", "z"], ["y"], "DQM"),
    ]
    if not rounded:
        nodes[-2:] = [helper.make_node("Identity", [last], ["y"], "end")]
    return graph_of(nodes, constants, [2, weights.shape[1] * groups, 9, 7])


def random_weights(groups: int, outputs: int, inputs: int) -> npt.NDArray[np.int8]:
    shape = (groups * outputs, inputs, 3, 3)
    return np.random.default_rng(groups).integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("groups", "outputs", "inputs", "parts"), [(17, 8, 8, 5), (3, 2, 40, 3), (4, 3, 8, 1), (5, 1, 7, 2)]
)
def test_whole_convolutions_say_what_the_groups_said(
    groups: int, outputs: int, inputs: int, parts: int, relu: bool
) -> None:
    """Against torch's grouped convolution in float64, exactly."""
    weights = random_weights(groups, outputs, inputs)
    model = grouped(weights, groups, relu=relu)
    images = np.random.default_rng(1).normal(16, 32, (2, groups * inputs, 9, 7)).astype(np.float32)
    steps = torch.from_numpy(np.clip(np.rint(images / IN), 0, 255).astype(np.float64) * IN)
    scales = torch.exp2(torch.arange(len(weights)) % 4 - 6.0)[:, None, None, None].double()
    bias = torch.arange(len(weights)).double() / 4
    said = functional.conv2d(steps, torch.from_numpy(weights) * scales, bias, (2, 1), 1, groups=groups)
    expected = (torch.round(said / float(OUT)).clamp(0, 255) * float(OUT)).float().numpy()
    split_groups(model)
    onnx.checker.check_model(model, full_check=True)
    counts = count_ops(model)
    assert counts["Conv"] == parts
    assert counts["QuantizeLinear"] == 1 + parts
    for each in (model, as_calibrated(model)):
        (found,) = outputs_of(each, [{"x": images}])
        np.testing.assert_array_equal(found["y"], expected)
    back = Graph(as_calibrated(model))
    np.testing.assert_array_equal(back.value(back.producers[back.named["conv"].input[1]].input[0]), weights)
    assert 0 < float((expected > 0).mean()) < 1


def test_what_has_no_kernel_to_gain_is_left_alone() -> None:
    depthwise = grouped(random_weights(6, 1, 1), 6)
    in_floats = grouped(random_weights(4, 2, 2), 4, rounded=False)
    plain = grouped(random_weights(1, 8, 8), 1)
    for model in (depthwise, in_floats, plain):
        before = list(model.graph.node)
        split_groups(model)
        assert list(model.graph.node) == before


def test_values_are_moved_as_bytes() -> None:
    """A Transpose and a Gather read integers; what computes reads floats; a Shape reads what was there."""
    nodes = [
        helper.make_node("Shape", ["d"], ["shape"], "shape"),
        helper.make_node("Transpose", ["d"], ["t"], "turn", perm=[0, 2, 3, 1]),
        helper.make_node("Gather", ["t", "rows"], ["g"], "gather", axis=1),
        helper.make_node("Sigmoid", ["g"], ["s"], "sigmoid"),
        helper.make_node("Gather", ["table", "rows"], ["floats"], "lookup"),
        helper.make_node("Add", ["s", "floats"], ["y"], "add"),
    ]
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    constants: dict[str, npt.NDArray[np.generic]] = {"rows": np.array([2, 0], np.int64), "table": table}
    model = graph_of(nodes, constants, [1, 4, 3, 2])
    images = np.random.default_rng(0).normal(20, 30, (1, 4, 3, 2)).astype(np.float32)
    steps = np.clip(np.rint(images / IN), 0, 255) * IN
    chosen = steps.transpose(0, 2, 3, 1)[:, [2, 0]]
    move_as_bytes(model)
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    assert graph.named["turn"].input[0] == "q"
    assert graph.producers[graph.named["gather"].input[0]].name == "turn"
    assert graph.producers[graph.named["sigmoid"].input[0]].op_type == "DequantizeLinear"
    assert graph.named["lookup"].input[0] == "table"
    (found,) = outputs_of(model, [{"x": images}])
    expected = 1 / (1 + np.exp(-chosen)) + table[[2, 0]]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)
