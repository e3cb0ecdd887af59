"""QueryPose as a graph: ONNX Runtime's answers, static shapes, plain operators, either way to pool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto

from edgepose.compression.graph import Graph, count_ops
from edgepose.export.lint import lint
from edgepose.export.single_stage import OUTPUTS
from edgepose.export.trace import FORBIDDEN, trace
from edgepose.runtime.spec import Spec
from edgepose.training.models import build
from edgepose.training.models.querypose.network import QueryPose

SIZE = (96, 64)  # width, height
PIXELS, SHARE = 1e-3, 1e-5  # largest difference to PyTorch; of boxes beyond 256 pixels in proportion
POOLS = {"roialign": ("RoiAlign", "GridSample"), "gridsample": ("GridSample", "RoiAlign")}


def lively(name: str, **options: Any) -> QueryPose:
    """Unequal queries, boxes of many sizes and far joints, as after training."""
    network = build(name, size=SIZE, **options)
    assert isinstance(network, QueryPose)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if parameter.ndim > 1:
                gain = 0.2 if ".delta." in key else 0.5 if "backbone.body.stage" in key else 1.0
                parameter.copy_(gain * torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
        network.queries.boxes[:, :2] = 0.2 + 0.6 * torch.rand(len(network.queries.boxes), 2)
        network.queries.boxes[:, 2:] = 0.1 + 2 * torch.rand(len(network.queries.boxes), 2) ** 3
        network.queries.boxes[:3, 2:] = torch.tensor([[2.0], [4.0], [8.0]])  # one for each coarser map
    return network.eval()


def traced(network: QueryPose) -> ModelProto:
    return trace(network, Spec("querypose", "any", *SIZE))["pose"]


def require_equal(network: QueryPose, graph: ModelProto, batch: int) -> None:
    """The graph says what PyTorch says."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = torch.randn(batch, 3, SIZE[1], SIZE[0])
    found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"images": images.numpy()}), strict=True))
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in network(images).items()}
    sides = (expected["boxes"][..., 2:] - expected["boxes"][..., :2]).max(-1)
    pixels = PIXELS * np.maximum(1, sides / 256)  # (B, N)
    assert (np.abs(found["boxes"] - expected["boxes"]).max(-1) < pixels).all()
    assert (np.abs(found["keypoints"] - expected["keypoints"]).max((2, 3)) < pixels).all()
    for name in ("scores", "keypoint_scores"):
        assert np.abs(found[name] - expected[name]).max() < SHARE, name
    assert expected["keypoints"].std() > 5
    assert network.config.top_k is None or np.unique(expected["scores"]).size == batch * network.config.top_k


def require_plain(graph: ModelProto, roi: str) -> None:
    """Operators and shapes of DESIGN.md section 4, and of the chosen way to pool."""
    used, unused = POOLS[roi]
    ops = count_ops(graph)
    assert not (FORBIDDEN | {"Einsum", "GatherND"}) & ops.keys()
    assert ops[used] > 0
    assert ops[unused] == 0
    assert ops["TopK"] == 1
    assert lint(graph, "10.3") == []
    shaped = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    for output in shaped.graph.output:
        batch, *rest = output.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert all(axis.dim_value > 0 for axis in rest)


def test_the_default_graph_pools_by_roi_align() -> None:
    network = lively("querypose_tiny")
    graph = traced(network)
    require_plain(graph, "roialign")
    for batch in (1, 3):
        require_equal(network, graph, batch)
    require_narrow_indices(graph)


def require_narrow_indices(graph: ModelProto) -> None:
    """Image numbers are int32 until the operator itself, which asks for int64."""
    index = Graph(graph)
    (ramp,) = [node for node in index.nodes if node.op_type == "Range"]
    values = [index.value(name) for name in ramp.input]
    assert {value.dtype for value in values if value is not None} == {np.dtype(np.int32)}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "roi"),
    [
        ("querypose_r50", "roialign"),
        ("querypose_hrnet32", "gridsample"),
        ("querypose_swint_full", "roialign"),
    ],
)
def test_published_networks_export(name: str, roi: str) -> None:
    """All stages, with fewer queries."""
    network = lively(name, roi=roi, queries=20, top_k=5)
    graph = traced(network)
    require_plain(graph, roi)
    require_equal(network, graph, 2)
