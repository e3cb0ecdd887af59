"""QueryPose's graph is the PyTorch network, with either pooling, in halves and in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, NodeProto, TensorProto

from edgepose.compression.execution import INPUT, Feeds, outputs_of
from edgepose.compression.graph import DEQUANTIZE, WEIGHTED, Graph, count_ops, load_onnx, opset
from edgepose.compression.plan import float_tail
from edgepose.compression.quantize import quantize
from edgepose.compression.torch_quantize import (
    fold_batch_norm,
    quantize_torch,
    torch_plan,
    without_compiler,
)
from edgepose.export.assemble import LINTED
from edgepose.export.half import MOVES
from edgepose.export.lint import errors, lint
from edgepose.export.simplify import simplify
from edgepose.export.single_stage import OUTPUTS
from edgepose.export.specs import spec_of
from edgepose.export.trace import FORBIDDEN, trace
from edgepose.export.verb_export import export
from edgepose.export.views import cpu_view, fp16_view, trt_view, typed_view
from edgepose.runtime.agreement import AGREEMENTS, PoseDifference, largest, pose_difference
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.poses import F32
from edgepose.training.checkpoint import save_tensors
from edgepose.training.models import build
from edgepose.training.models.querypose.network import QueryPose

TINY = "querypose_tiny"
POOLS = {"roialign": "RoiAlign", "gridsample": "GridSample"}
STAGES = {"roialign": 2, "gridsample": 1}  # enough for moved boxes to be read; tracing takes most of the time
K = 10


def network_of(roi: str) -> QueryPose:
    """Random weights whose boxes are of many sizes; some queries find somebody, others nobody."""
    torch.manual_seed(5)
    network = build(TINY, **{"size": (128, 96), "stages": STAGES[roi], "top_k": K, "roi": roi})
    assert isinstance(network, QueryPose)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("delta.weight"):
                parameter.mul_(0.3)
            elif name.endswith("logit.weight"):
                parameter.mul_(3)
            elif name.endswith("logit.bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
        centre, size = torch.rand(2, network.config.queries, 2)
        network.queries.boxes.copy_(torch.cat([centre, 0.1 + 0.9 * size], -1))
    return network.eval()


@cache
def pictures(count: int) -> F32:
    """Blocks of colour and noise, (count, 3, 96, 128)."""
    rng = np.random.default_rng(5)
    blocks = rng.standard_normal((count, 3, 6, 8)).repeat(16, 2).repeat(16, 3)
    return (blocks + 0.5 * rng.standard_normal(blocks.shape)).astype(np.float32)


@cache
def feeds() -> list[Feeds]:
    return [{INPUT: picture[None]} for picture in pictures(4)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """By the verb: of a file of weights, with options, pooled by GridSample."""
    folder = tmp_path_factory.mktemp("export")
    weights, out = folder / "w.safetensors", folder / "bundle"
    save_tensors(weights, network_of("gridsample").state_dict(), {})
    options = (f"top_k={K}", "roi=gridsample", "stages=1", "size=[128, 96]")
    given = [part for option in options for part in ("--option", option)]
    run = CliRunner().invoke(export, [TINY, "--weights", str(weights), *given, "--out", str(out)])
    assert run.exit_code == 0, run.output
    return Bundle.open(out)


@pytest.fixture(scope="module")
def graphs(bundle: Bundle) -> dict[str, ModelProto]:
    """By pooling, simplified."""
    torch.set_num_threads(1)
    network = network_of("roialign")
    traced = trace(network, spec_of(TINY, network))["pose"]
    return {
        "roialign": simplify(traced, feeds()[:1])[0],
        "gridsample": load_onnx(bundle.folder / "pose.fp32.onnx"),
    }


@pytest.mark.parametrize("roi", POOLS)
def test_onnx_answers_as_torch_does(roi: str, graphs: dict[str, ModelProto]) -> None:
    """Within a thousandth of a pixel, in the same order, for any batch."""
    with torch.no_grad():
        expected = {
            name: value.numpy() for name, value in network_of(roi)(torch.from_numpy(pictures(4))).items()
        }
    sides = expected["boxes"][..., 2:] - expected["boxes"][..., :2]
    assert sides.min() < 40 < 100 < sides.max()
    answers = outputs_of(graphs[roi], [feeds()[0], {INPUT: pictures(4)}])
    for batch, found in zip((1, 4), answers, strict=True):
        assert tuple(found) == OUTPUTS
        for name in OUTPUTS:
            far = np.abs(found[name] - expected[name][:batch]).max()
            assert far < (1e-3 if name in ("boxes", "keypoints") else 1e-5), (name, batch, far)


@pytest.mark.parametrize("roi", POOLS)
def test_form_of_the_graph(roi: str, graphs: dict[str, ModelProto]) -> None:
    graph = graphs[roi]
    found = count_ops(graph)
    assert not FORBIDDEN & found.keys()
    assert opset(graph) == 17
    assert {entry.domain for entry in graph.opset_import} == {""}
    assert found[POOLS[roi]] == 5 * STAGES[roi]  # four maps for a box stage, one for a pose stage
    assert sum(found[operator] for operator in POOLS.values()) == found[POOLS[roi]]
    assert found["TopK"] == 1
    onnx.checker.check_model(graph, full_check=True)
    for output in graph.graph.output:
        axes = output.type.tensor_type.shape.dim
        assert axes[0].dim_param == "batch"
        assert axes[1].dim_value == K
    for view in ("8.6", "10.3", "11.1"):
        assert not errors(lint(graph, view)), view


def kept(model: ModelProto) -> set[str]:
    return float_tail(model, "querypose")


@pytest.mark.parametrize("roi", POOLS)
def test_places_stay_float32_and_convolutions_become_half(roi: str, graphs: dict[str, ModelProto]) -> None:
    """Every coordinate that a pooling reads is made of float32 numbers alone, back to the layers."""
    model = fp16_view(graphs[roi], kept(graphs[roi]))
    types = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    halves = {value.name for value in types if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    graph = Graph(model)
    pending = [node.input[1] for node in graph.nodes if node.op_type == POOLS[roi]]
    seen = set()
    while pending:
        maker = graph.producers.get(pending.pop())
        if maker is not None and maker.name not in seen and maker.op_type not in WEIGHTED:
            seen.add(maker.name)
            pending.extend(maker.input)
            if maker.op_type not in (*MOVES, "Cast"):
                assert maker.output[0] not in halves, maker.name
    assert len(seen) > 10
    for node in graph.nodes:
        if node.op_type in ("Conv", "LayerNormalization", "Softmax"):
            assert node.output[0] in halves, node.name


def compared(expected: Sequence[Any], actual: Sequence[Any]) -> PoseDifference:
    """Of whoever is found with a score that rounding does not reorder."""
    return largest([pose_difference(a, b, 0.05) for a, b in zip(expected, actual, strict=True)])


def test_answers_in_halves_are_within_the_contract(graphs: dict[str, ModelProto]) -> None:
    model = graphs["roialign"]
    view = fp16_view(model, kept(model))
    for optimised in (False, True):
        apart = compared(outputs_of(model, feeds()), outputs_of(view, feeds(), optimised=optimised))
        assert apart.within(AGREEMENTS["querypose"].views["fp16"]), apart


@pytest.fixture(scope="module")
def int8(graphs: dict[str, ModelProto]) -> ModelProto:
    return quantize(graphs["roialign"], feeds(), "querypose").model


def reads_integers(graph: Graph, node: NodeProto) -> bool:
    makers = [graph.producers.get(name) for name in node.input]
    return any(maker is not None and maker.op_type == DEQUANTIZE for maker in makers)


def test_int8_is_the_backbone_the_pyramid_and_the_pose_convolutions(int8: ModelProto) -> None:
    """The plan of specs/querypose.md section 14, but for the first convolution of the backbone."""
    graph = Graph(int8)
    layers = [node for node in graph.nodes if node.op_type in WEIGHTED]
    integers = {node.name for node in layers if reads_integers(graph, node)}
    convolutions = {node.name for node in layers if node.op_type == "Conv"}
    floats = {name for name in convolutions if name.endswith("attend")} | {"backbone.body.stem.0"}
    assert integers == convolutions - floats
    assert {name.partition(".")[0] for name in integers} == {"backbone", "pose_stages"}
    others = {node.op_type for node in graph.nodes if reads_integers(graph, node)} - {"Conv"}
    assert others <= {"Add", "Resize", "Shape", "RoiAlign"}


def test_every_view_of_the_quantized_graph_is_legal_and_answers_alike(
    int8: ModelProto, graphs: dict[str, ModelProto]
) -> None:
    """No claim about accuracy: these weights are random, and few pictures calibrated them."""
    tail = kept(graphs["roialign"])
    views = {"int8.trt": trt_view(int8), "int8.trt-typed": typed_view(int8, tail)}
    origin = outputs_of(int8, feeds(), optimised=False)
    for name, view in views.items():
        for release in LINTED[name]:
            assert not errors(lint(view, release)), (name, release)
            assert not [one for one in lint(view, release) if one.rule == "P03"]  # no INT8 deconvolution
        apart = compared(origin, outputs_of(view, feeds(), optimised=False))
        assert apart.within(AGREEMENTS["querypose"].views[name]), (name, apart)
    assert compared(origin, outputs_of(cpu_view(int8), feeds())).within(
        AGREEMENTS["querypose"].views["int8.ort"]
    )


def test_the_torch_network_is_quantized_by_the_same_plan() -> None:
    """For the ledger's row, on NNCF's other backend: of the convolutions the same stay float."""
    network = network_of("gridsample")
    picture = torch.from_numpy(pictures(1))
    plan = torch_plan(fold_batch_norm(network, picture), picture, "querypose")
    convolutions = {name for name in plan if "/conv" in name}
    embedding = "pose_stages/0/embedding"
    assert convolutions == {
        "backbone/body/stem/0/conv2d/0",
        f"{embedding}/raise_/0/conv_transpose2d/0",
        f"{embedding}/attend/conv2d/0",
    }
    changed = quantize_torch(network, [pictures(1)], "querypose")
    with torch.no_grad(), without_compiler():
        before, after = (
            {name: value.numpy() for name, value in one(picture).items()} for one in (network, changed)
        )
    apart = compared([before], [after])
    assert apart.keypoint_px > 0
    assert apart.within(AGREEMENTS["querypose"].views["int8.trt"]), apart


def test_a_bundle_says_how_it_was_made_and_where_pixels_are(bundle: Bundle) -> None:
    assert (bundle.spec.family, bundle.spec.width, bundle.spec.height) == ("querypose", 128, 96)
    assert bundle.spec.resize == "letterbox"
    assert bundle.provenance["options"] == {"top_k": K, "roi": "gridsample", "stages": 1, "size": [128, 96]}
    text = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert "A network of queries" in text
    assert "corner (not centre) is at integers" in text
