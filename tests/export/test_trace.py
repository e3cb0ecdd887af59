"""PyTorch to ONNX: the same answers for every batch size, plain operators, nothing of this machine inside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from edgepose.compression.execution import INPUT, outputs_of
from edgepose.compression.graph import Graph, count_ops, opset
from edgepose.export.single_stage import OUTPUTS
from edgepose.export.trace import FORBIDDEN, trace
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32
from edgepose.runtime.spec import Spec
from edgepose.training.models import build


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_answers_as_torch_does(standin: Any, traced: ModelProto, images: list[F32], batch: int) -> None:
    stacked = np.concatenate(images[:batch])
    with torch.no_grad():
        expected = standin(torch.from_numpy(stacked))
    actual = outputs_of(traced, [{INPUT: stacked}])[0]
    assert tuple(actual) == OUTPUTS
    for name in OUTPUTS:
        np.testing.assert_allclose(actual[name], expected[name].numpy(), rtol=1e-4, atol=1e-4)


def test_form_of_the_graph(traced: ModelProto) -> None:
    assert opset(traced) == 17
    assert {entry.domain for entry in traced.opset_import} == {""}
    assert not FORBIDDEN & count_ops(traced).keys()
    image = traced.graph.input[0]
    dims = [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim]
    assert (image.name, dims) == (INPUT, ["batch", 3, 64, 64])
    for output in traced.graph.output:
        axes = output.type.tensor_type.shape.dim
        assert axes[0].dim_param == "batch"
        assert all(axis.dim_value > 0 for axis in axes[1:])
    onnx.checker.check_model(traced, full_check=True)


def test_nodes_and_weights_are_named_like_layers(standin: Any, traced: ModelProto) -> None:
    names = [node.name for node in traced.graph.node]
    assert len(set(names)) == len(names)
    layers = {name for name, module in standin.named_modules() if isinstance(module, nn.Conv2d)}
    assert {node.name for node in traced.graph.node if node.op_type == "Conv"} == layers
    weights = {tensor.name for tensor in traced.graph.initializer}
    assert {f"{layer}.weight" for layer in layers} <= weights


def test_numbers_of_rows_stay_int32(spec: Spec) -> None:
    """The exporter casts them to int64, which TensorRT 8 does not have."""
    graph = Graph(trace(build("qrpose_tiny", size=(64, 64)), spec)["pose"])
    rows = [node.input[1] for node in graph.nodes if node.op_type == "Gather"]
    makers = [maker.op_type for name in rows if (maker := graph.producers.get(name)) is not None]
    assert len(makers) == 10  # of I, of R, and of four corners a look
    assert "Cast" not in makers


def test_nothing_of_this_machine_is_inside(raw: ModelProto) -> None:
    content = raw.SerializeToString()
    for path in (sys.prefix, str(Path(__file__).parent), str(Path.home()), ".py"):
        assert path.encode() not in content


class Head(nn.Module):
    """A network whose last step can be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(OUTPUTS, self.finish(self.conv(images)))

    def finish(self, maps: Tensor) -> Tensor:
        return maps.mean((1, 2, 3))


class DataDependent(Head):
    def finish(self, maps: Tensor) -> Tensor:
        return torch.zeros_like(maps).scatter(1, maps.argmax(1, keepdim=True), 1.0).flatten(1)


class FixedBatch(Head):
    def finish(self, maps: Tensor) -> Tensor:
        return maps.reshape(len(maps), -1)


class Python(Head):
    def finish(self, maps: Tensor) -> Tensor:
        return maps if float(maps.sum()) > 0 else -maps


@pytest.mark.parametrize(
    ("model", "why"),
    [(DataDependent(), "no static shape"), (FixedBatch(), "batch size"), (Python(), "cannot export")],
)
def test_what_no_engine_takes_is_refused(model: nn.Module, why: str, spec: Spec) -> None:
    with pytest.raises(EdgeposeError, match=why) as caught:
        trace(model, spec)
    assert "\n" not in str(caught.value)


def test_a_plain_head_is_taken(spec: Spec) -> None:
    assert len(trace(Head(), spec)["pose"].graph.output) == 4


class Untrained(Head):
    """Linear layers and a norm whose biases are all zero, which the exporter stores once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        for layer in (self.norm, self.first, self.second):
            nn.init.zeros_(layer.bias)

    def finish(self, maps: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.norm(maps.flatten(2).mT))))


def test_equal_biases_do_not_make_equal_names(spec: Spec, images: list[F32]) -> None:
    torch.manual_seed(1)
    model = Untrained()
    graph = trace(model, spec)["pose"]
    names = [tensor.name for tensor in graph.graph.initializer]
    assert len(set(names)) == len(names)
    with torch.no_grad():
        expected = model(torch.from_numpy(images[0]))[OUTPUTS[0]].numpy()
    np.testing.assert_allclose(outputs_of(graph, [{INPUT: images[0]}])[0][OUTPUTS[0]], expected, atol=1e-5)


def test_tracing_is_silent_and_repeatable(
    standin: Any, spec: Spec, raw: ModelProto, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    again = trace(standin, spec)["pose"]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert again.SerializeToString() == raw.SerializeToString()
