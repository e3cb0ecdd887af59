"""SHaRPose's two graphs are the PyTorch network, for any batch, in the form that engines want."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto
from torch import nn

from edgepose.compression.execution import INPUT, feeds_of, outputs_of
from edgepose.compression.graph import WEIGHTED, Array, Graph, count_ops, opset
from edgepose.export.specs import CONTRACTS, spec_of
from edgepose.export.trace import trace
from edgepose.runtime.agreement import AGREEMENTS
from edgepose.runtime.golden import apart
from edgepose.runtime.spec import Spec
from edgepose.training.models import build, sharpose
from edgepose.training.models.sharpose.deploy import CoarseGraph, FineGraph
from edgepose.training.models.sharpose.network import SharPose

TINY, SMALL, *LARGE = sharpose.PROFILES
CONFIGURATIONS = [TINY, SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
CELLS = {TINY: (12, 5), SMALL: (48, 24), LARGE[0]: (48, 20), LARGE[1]: (108, 33)}  # n0 and k, section 0

# All operators of both graphs: nothing data-dependent, nothing that blocks a fused kernel.
COARSE = frozenset({"AveragePool", "TopK", "ReduceMean", "ReduceSum", "ConstantOfShape", "Gemm", "Gather"})
FINE = frozenset({"GatherElements", "Unsqueeze"})
BOTH = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Conv",
        "Div",
        "Erf",
        "Expand",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Reshape",
    }
    | {"Shape", "Slice", "Softmax", "Squeeze", "Transpose"}
)


def network_of(name: str) -> SharPose:
    """Random weights of a trained network's size; tokens and position tables would start as zeros."""
    network = build(name).eval()
    assert isinstance(network, SharPose)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if key.endswith(".bias"):
                value.copy_(0.01 * noise)
            elif key.endswith(".weight"):
                spread = 1 + 0.1 * noise if value.ndim == 1 else noise / value[0].numel() ** 0.5
                value.copy_(spread)
            else:
                value.copy_(0.5 * noise)
    return network


@cache
def made(name: str) -> tuple[SharPose, Spec, dict[str, ModelProto]]:
    torch.set_num_threads(1)
    network = network_of(name)
    spec = spec_of(name, network)
    return network, spec, trace(network, spec)


def crops(spec: Spec, count: int) -> Array:
    """Blocks of colour and noise, (count, 3, height, width)."""
    rng = np.random.default_rng(5)
    blocks = rng.standard_normal((count, 3, spec.height // 32, spec.width // 32)).repeat(32, 2).repeat(32, 3)
    return (blocks + 0.5 * rng.standard_normal(blocks.shape)).astype(np.float32)


def of_torch(network: nn.Module, images: Array) -> dict[str, Array]:
    """The outputs of both graphs and the images, by name."""
    known = {INPUT: torch.from_numpy(images)}
    with torch.no_grad():
        known |= CoarseGraph(network)(known[INPUT])
        known |= FineGraph(network)(
            *(known[name] for name in (INPUT, "region_order", "reuse_features", "coarse_embedding"))
        )
    return {name: value.numpy() for name, value in known.items()}


def run(model: ModelProto, known: Mapping[str, Array]) -> dict[str, Array]:
    return outputs_of(model, [feeds_of(model, known)])[0]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_onnx_answers_as_torch_does(name: str) -> None:
    network, spec, graphs = made(name)
    expected = of_torch(network, crops(spec, 2))
    found = run(graphs["coarse"], expected) | run(graphs["fine"], expected)  # given the same order
    k = CELLS[name][1]
    for output in ("coarse_heatmaps", "heatmaps", "quality", "reuse_features", "coarse_embedding"):
        np.testing.assert_allclose(found[output], expected[output], rtol=0, atol=1e-5, err_msg=output)
    for mine, wanted in zip(found["region_order"], expected["region_order"], strict=True):
        assert set(mine[:k]) == set(wanted[:k])
        assert sorted(mine) == list(range(CELLS[name][0]))


def test_any_batch_is_its_people_one_by_one() -> None:
    _, spec, graphs = made(TINY)
    images = crops(spec, 16)
    shown: list[dict[str, Array]] = [{INPUT: images[:batch]} for batch in range(1, 17)]
    shown += [{INPUT: images[index : index + 1]} for index in range(16)]
    for model in (graphs[graph] for graph in spec.graphs):
        for known, outputs in zip(
            shown, outputs_of(model, [feeds_of(model, one) for one in shown]), strict=True
        ):
            known |= outputs
    together, alone = shown[:16], shown[16:]
    for batch, known in enumerate(together, 1):
        for name, value in known.items():
            each = np.concatenate([one[name] for one in alone[:batch]])
            np.testing.assert_allclose(value, each, rtol=0, atol=1e-5, err_msg=f"{name}, batch {batch}")


def interface(values: Any) -> dict[str, tuple[int, list[Any]]]:
    types = {value.name: value.type.tensor_type for value in values}
    return {
        name: (kind.elem_type, [axis.dim_param or axis.dim_value for axis in kind.shape.dim])
        for name, kind in types.items()
    }


def test_the_interface_is_the_contract() -> None:
    _, spec, graphs = made(TINY)
    images = (TensorProto.FLOAT, ["batch", 3, 128, 96])
    maps = (TensorProto.FLOAT, ["batch", 17, 32, 24])
    context = {
        "region_order": (TensorProto.INT32, ["batch", 12]),
        "reuse_features": (TensorProto.FLOAT, ["batch", 12, 64]),
        "coarse_embedding": (TensorProto.FLOAT, ["batch", 12, 64]),
    }
    coarse, fine = (graphs[name].graph for name in spec.graphs)
    assert interface(coarse.input) == {INPUT: images}
    quality = (TensorProto.FLOAT, ["batch"])
    assert interface(coarse.output) == {"coarse_heatmaps": maps, "quality": quality, **context}
    assert interface(fine.input) == {INPUT: images, **context}
    assert interface(fine.output) == {"heatmaps": maps}
    assert (spec.resize, spec.sharp_cells, spec.refine_below) == ("crop", 5, 0.99)


@pytest.mark.parametrize("name", [TINY, SMALL])
def test_only_operators_that_engines_take(name: str) -> None:
    _, _, graphs = made(name)
    coarse, fine = (count_ops(graphs[graph]) for graph in ("coarse", "fine"))
    assert coarse.keys() <= BOTH | COARSE
    assert fine.keys() <= BOTH | FINE
    assert (coarse["TopK"], coarse["AveragePool"], fine["GatherElements"]) == (1, 1, 2)
    for model in graphs.values():
        assert opset(model) == 17
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", [TINY, SMALL])
def test_attention_is_one_chain_and_its_scale_is_in_the_weights(name: str) -> None:
    network, _, graphs = made(name)
    depth = network.config.depth
    mined = {"coarse": depth - depth // 4, "fine": 0}
    for graph, model in graphs.items():
        index = Graph(model)
        chains = 0
        for node in index.nodes:
            if node.op_type == "Softmax":
                (reader,) = index.consumers[node.output[0]]
                assert node.output[0] not in index.outputs
                logits = index.producers[node.input[0]]
                assert logits.op_type == "MatMul"
                assert index.consumers[logits.output[0]] == [node]
                chains += reader.op_type == "MatMul"
                for side in logits.input:  # queries and keys come from qkv by moves alone
                    while (maker := index.producers[side]).op_type != "Add":
                        assert maker.op_type in ("Transpose", "Squeeze", "Slice", "Reshape", "Gather"), maker
                        side = maker.input[0]
        assert chains == depth
        assert count_ops(model)["Softmax"] == depth + mined[graph]


def test_layers_keep_their_names() -> None:
    network, _, graphs = made(TINY)
    layers = {name for name, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    coarse, fine = (
        {
            node.name
            for node in graphs[graph].graph.node
            if node.op_type in WEIGHTED and node.input[1] in Graph(graphs[graph]).constants
        }
        for graph in ("coarse", "fine")
    )
    assert coarse == layers
    assert fine == {name for name in layers if "reuse_block" not in name and "quality" not in name}
    state = network.state_dict()
    for model in graphs.values():
        for tensor in model.graph.initializer:
            if tensor.name in state:
                assert sorted(tensor.dims) == sorted(state[tensor.name].shape)


def test_tracing_leaves_the_network_as_it_was() -> None:
    after, again = made(TINY)[0].state_dict(), network_of(TINY).state_dict()
    assert all(torch.equal(again[name], value) for name, value in after.items())


def test_every_family_names_its_graphs_and_a_difference_of_nothing_is_within() -> None:
    assert CONTRACTS.keys() == AGREEMENTS.keys()
    network, spec, _ = made(TINY)
    contract = CONTRACTS["sharpose"]
    assert tuple(contract.ports) == spec.graphs
    known = of_torch(network, crops(spec, 2))
    outputs = {name: known[name] for name in contract.ports["coarse"].outputs}
    assert apart([outputs], [outputs], spec).within(contract.traced)
