"""Which nodes stay float: rules on hand-made graphs, scopes on the stand-in, against plain reachability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgepose.compression.plan import float_plan, float_tail, kept_float, require_matches
from edgepose.compression.scopes import FLOAT_SCOPES
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec


def reachable(model: ModelProto) -> npt.NDArray[np.bool_]:
    """(n, n) whether node j depends on node i, by squaring the adjacency matrix: slow and plain."""
    nodes = list(model.graph.node)
    step = np.array([[bool(set(a.output) & set(b.input)) for b in nodes] for a in nodes])
    closed = step
    for _ in range(len(nodes).bit_length()):
        closed = closed | ((closed.astype(np.float32) @ closed.astype(np.float32)) > 0)
    return closed


def test_scores_offsets_confidences_and_all_behind_them_stay_float(traced: ModelProto) -> None:
    plan = float_plan(traced, "qrpose")
    nodes = list(traced.graph.node)
    named = [i for i, n in enumerate(nodes) if n.name in ("score0", "off1", "off2", "conf", "score")]
    assert len(named) == 5
    behind = reachable(traced)[named].any(0)
    tail = {nodes[i].name for i in np.flatnonzero(behind)}
    assert tail == float_tail(traced, "qrpose")
    wanted = tail | {nodes[i].name for i in named} | {"stem.0.0"}  # of a picture's three colours
    assert set(plan) == wanted  # and nothing else of the convolutional part
    assert "mix.0" in plan
    assert "kpt.1.0" not in plan
    assert all(plan.values())


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("score0", True),
        ("head.off1", True),
        ("/h/off2/Conv", True),
        ("score/2", True),
        ("scoreboard.0", False),
        ("offset_net", False),
        ("kpt.1.0", False),
        ("confusion", False),
    ],
)
def test_scopes_match_whole_parts_of_a_path(name: str, kept: bool) -> None:
    assert any(scope.matches(name) for scope in FLOAT_SCOPES["qrpose"]) is kept


def model_of(
    nodes: Sequence[NodeProto], constants: Mapping[str, tuple[int, ...]], inputs: dict[str, list[int]]
) -> ModelProto:
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in constants.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", given, [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_rules_on_single_nodes() -> None:
    x = {"x": [1, 32, 8, 8]}
    attention = model_of([helper.make_node("MatMul", ["x", "x"], ["y"], "qk")], {}, x)
    assert "two activations" in float_plan(attention, "qrpose")["qk"]
    linear = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": (8, 64)}, x)
    assert "below 16" in float_plan(linear, "qrpose")["fc"]
    wide = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": (64, 64)}, {"x": [1, 64]})
    assert not float_plan(wide, "qrpose")
    batched = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "bm")], {"w": (2, 64, 64)}, {"x": [2, 4, 64]}
    )
    assert "batched" in float_plan(batched, "qrpose")["bm"]
    up = model_of([helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up")], {"w": (32, 32, 2, 2)}, x)
    assert "deconvolution" in float_plan(up, "qrpose")["up"]


@pytest.mark.parametrize(
    ("channels", "side", "reads", "kept"),
    [
        (3, 3, "x", True),  # 27 products an output
        (3, 4, "x", False),  # a patch of 48
        (3, 7, "x", False),
        (3, 3, "r", False),  # further on
        (16, 1, "x", True),
    ],
)
def test_a_stem_of_few_products_stays_float(channels: int, side: int, reads: str, kept: bool) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Conv", [reads, "w"], ["y"], "stem"),
    ]
    model = model_of(nodes, {"w": (64, channels, side, side)}, {"x": [1, channels, 32, 32]})
    assert ("stem" in float_plan(model, "qrpose")) is kept


def test_adds_are_quantized_only_behind_convolutions() -> None:
    x = {"x": [1, 32, 8, 8]}
    shapes = {"w": (32, 32, 1, 1)}
    residual = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Add", ["r", "x"], ["y"], "add"),
    ]
    assert "add" not in float_plan(model_of(residual, shapes, x), "qrpose")
    boxes = [
        helper.make_node("Sigmoid", ["x"], ["s"], "s"),
        helper.make_node("Add", ["s", "x"], ["y"], "add"),
    ]
    assert "coordinates" in float_plan(model_of(boxes, {}, x), "qrpose")["add"]


def test_what_is_computed_from_a_layer_may_end_at_the_next() -> None:
    """Boxes reach the convolutions of the pose stages, which are INT8 and, with all behind them, half."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["d"], "box_stages.0.delta"),
        helper.make_node("Add", ["d", "b"], ["boxes"], "moved"),
        helper.make_node("MatMul", ["boxes", "v"], ["told"], "qkv"),
        helper.make_node("Sigmoid", ["told"], ["t"], "told"),
        helper.make_node("Conv", ["t", "k"], ["c"], "pose_stages.0.convs.0"),
        helper.make_node("Relu", ["c"], ["y"], "seen"),
    ]
    shapes = {"w": (32, 32), "b": (32,), "v": (32, 32), "k": (32, 32, 1, 1)}
    model = model_of(nodes, shapes, {"x": [1, 32, 32, 32]})
    assert float_tail(model, "querypose") == {"moved"}
    assert float_plan(model, "querypose").keys() == {"box_stages.0.delta", "moved", "qkv", "told"}


def test_a_pattern_is_a_name_a_part_of_the_path_or_a_star() -> None:
    names = ["a.b", "a.b.c", "a.bc", "head.a.b", "a", "/a/b/Conv"]
    for pattern, matched in (
        ("a.b", {"a.b", "a.b.c"}),
        ("a", {"a", "a.b", "a.b.c", "a.bc"}),
        ("*.b", {"a.b", "a.b.c", "head.a.b"}),
        ("/a/*", {"/a/b/Conv"}),
        ("A", set()),
    ):
        assert kept_float(names, {pattern: "why"}) == dict.fromkeys(matched, "why"), pattern
    assert kept_float(names, {"a": "first", "head": "second"})["head.a.b"] == "second"


def test_a_pattern_that_matches_nothing_is_told_the_nearest_layers(traced: ModelProto) -> None:
    require_matches([traced], ["layer1", "stem.*", "Add_*"])
    with pytest.raises(EdgeposeError, match=r"--keep-float layer1\.frist: matches .* are layer1\.first\.0, "):
        require_matches([traced], ["layer1", "layer1.frist"])
    with pytest.raises(EdgeposeError, match="--keep-float xyzzy: matches no layer; the nearest are "):
        require_matches([traced], ["xyzzy"])


def test_every_family_with_a_spec_has_scopes(spec: Spec) -> None:
    from edgepose.export.specs import CONTRACTS

    assert CONTRACTS.keys() <= FLOAT_SCOPES.keys()
    assert spec.family in FLOAT_SCOPES
