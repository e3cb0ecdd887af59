"""What quantizers have learnt reaches the ONNX graph: every number at its place, and nothing else changes."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nncf.torch.function_hook.wrapper import get_hook_storage
from onnx import ModelProto
from torch import nn

from edgepose.compression.execution import Feeds, outputs_of
from edgepose.compression.graph import Graph, copy, drop_dead
from edgepose.compression.quantize import Quantized
from edgepose.compression.torch_quantize import quantize_torch
from edgepose.compression.trainable import Quantizer, quantizers, settled, with_learning_quantizers
from edgepose.export.learnt import learnt_graph, transplanted
from edgepose.export.trace import trace
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32
from edgepose.runtime.spec import Spec

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def learnt(standin: Any, images: list[F32]) -> nn.Module:
    """The stand-in with quantizers, weights and scales all away from where they were calibrated."""
    model = with_learning_quantizers(quantize_torch(standin, images, "qrpose")).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + 0.05 * noise) if parameter.ndim > 1 else parameter.add_(0.05 * noise)
    return model


@pytest.fixture(scope="module")
def traces(standin: Any, learnt: nn.Module, spec: Spec) -> tuple[ModelProto, ModelProto]:
    return trace(settled(learnt), spec)["pose"], trace(standin, spec)["pose"]


@pytest.fixture(scope="module")
def graph(traces: tuple[ModelProto, ModelProto], quantized: Quantized) -> ModelProto:
    return transplanted(*traces, quantized.model)


def test_weights_biases_and_scales_are_those_that_were_learnt(graph: ModelProto, learnt: nn.Module) -> None:
    index = Graph(graph)
    hooks = quantizers(learnt)
    layers = 0
    for node in index.nodes:
        if node.op_type != "Conv":
            continue
        layer = learnt.get_submodule(node.name)
        rounded = hooks.get(f"pre_hooks.{node.name.replace('.', '/')}/conv2d/0__1.0")
        expected = layer.weight if rounded is None else rounded(layer.weight)
        pair = index.producers.get(node.input[1])
        if pair is None:
            found = index.value(node.input[1])
        else:
            steps, scale = index.value(pair.input[0]), index.value(pair.input[1])
            assert steps is not None
            assert scale is not None
            assert steps.dtype == np.int8
            found = steps * scale.reshape(-1, 1, 1, 1)
            layers += 1
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)
        np.testing.assert_array_equal(index.value(node.input[2]), layer.bias.detach().numpy())
    weighted = [name for name in hooks if name.endswith("__1.0")]
    assert layers == len(weighted) > 5


def test_nodes_and_their_names_are_those_of_the_compressed_graph(
    graph: ModelProto, quantized: Quantized
) -> None:
    shape = [(node.op_type, node.name, list(node.output)) for node in graph.graph.node]
    assert shape == [(node.op_type, node.name, list(node.output)) for node in quantized.model.graph.node]


def test_it_answers_as_the_network_does(
    graph: ModelProto, quantized: Quantized, learnt: nn.Module, feeds: list[Feeds]
) -> None:
    """Nearly: a value half way between two steps, and the pair behind the last INT8 layers."""
    apart = []
    for model in (graph, quantized.model):
        found = outputs_of(model, feeds[:4])
        with torch.no_grad():
            expected = [learnt(torch.from_numpy(feed["images"]))["scores"].numpy() for feed in feeds[:4]]
        apart.append(np.mean([abs(a["scores"] - b).mean() for a, b in zip(found, expected, strict=True)]))
    assert apart[0] < 0.15 * apart[1]


def test_other_places_are_refused(traces: tuple[ModelProto, ModelProto], quantized: Quantized) -> None:
    bare = copy(quantized.model)
    index = Graph(bare)
    pair = index.named["stem.1.0"].input[0]
    plain = index.before_pair(pair)
    index.named["stem.1.0"].input[0] = plain
    drop_dead(bare)
    with pytest.raises(
        EdgeposeError, match=f"the trained network quantizes {plain}, the compressed graph does"
    ):
        transplanted(*traces, bare)
    with pytest.raises(EdgeposeError, match="is traced otherwise than without"):
        transplanted(traces[0], quantized.model, quantized.model)


def test_every_quantizer_must_be_traced_once(
    quantized: Quantized, learnt: nn.Module, standin: Any, spec: Spec
) -> None:
    found: Any = SimpleNamespace(spec=spec, quantized=lambda name: quantized.model)
    model = deepcopy(learnt)
    get_hook_storage(model).add_module("unused", Quantizer(torch.tensor(1.0), 0, -128))
    with pytest.raises(EdgeposeError, match=r"graph has (\d+) quantizers, the network (\d+); they cannot"):
        learnt_graph(found, standin, model)
