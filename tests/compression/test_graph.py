"""The graph index and the reading of ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepose.compression.graph import Graph, attribute, drop_dead, load_onnx, opset, set_constant
from edgepose.runtime.errors import EdgeposeError


def small_model() -> ModelProto:
    """x -> Relu -> a -> Add(a, a) -> y, and a dead branch with a constant of its own."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("Add", ["a", "a"], ["y"], "add"),
        helper.make_node("Mul", ["a", "unused"], ["dead"], "dead"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    constant = numpy_helper.from_array(np.ones(2, np.float32), "unused")
    graph = helper.make_graph(nodes, "g", [x], [y], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_index_knows_makers_readers_and_constants() -> None:
    graph = Graph(small_model())
    assert graph.producers["y"].name == "add"
    assert [node.name for node in graph.consumers["a"]] == [
        "add",
        "dead",
    ]  # a node that reads twice counts once
    assert graph.value("unused") is not None
    assert graph.value("a") is None
    assert not graph.read_only_by("y", graph.nodes[1])  # a graph output has readers outside
    assert [node.name for node in graph.after([graph.nodes[0]])] == ["add", "dead"]


def test_constant_nodes_are_constants() -> None:
    model = small_model()
    value = numpy_helper.from_array(np.array(3, np.float32), "v")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["three"], "c", value=value))
    assert Graph(model).value("three") == 3


def test_drop_dead_removes_exactly_what_no_output_needs() -> None:
    model = small_model()
    drop_dead(model)
    assert [node.name for node in model.graph.node] == ["relu", "add"]
    assert not model.graph.initializer
    onnx.checker.check_model(model)


def test_set_constant_replaces_and_keeps_scalars_scalar() -> None:
    model = small_model()
    set_constant(model, "unused", np.float32(7))
    assert [tensor.name for tensor in model.graph.initializer] == ["unused"]
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == ()


def test_attribute_and_opset() -> None:
    node = helper.make_node("Concat", ["a", "b"], ["c"], axis=2)
    assert attribute(node, "axis") == 2
    assert attribute(node, "other", 5) == 5
    assert opset(small_model()) == 17


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no graph"),
        (b"\x89PNG\r\n\x1a\n not a model at all", "ONNX model"),
        (b'{"format": "something else"}', "ONNX model"),
    ],
)
def test_foreign_files_get_one_sentence(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(EdgeposeError, match=why) as caught:
        load_onnx(path)
    assert "m.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path, traced: ModelProto) -> None:
    content = traced.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert load_onnx(path) == traced
    for length in np.linspace(1, len(content) - 1, 23).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(EdgeposeError, match=r"m\.onnx"):
            load_onnx(path)


def test_a_graph_that_reads_what_nobody_makes_is_refused(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EdgeposeError, match="nowhere"):
        load_onnx(tmp_path / "m.onnx")


def test_what_onnx_refuses_is_not_called_truncated(tmp_path: Path) -> None:
    unknown, newer = small_model(), small_model()
    unknown.graph.node[0].op_type, newer.ir_version = "Foo", 999
    for model, reason in ((unknown, "No Op registered for Foo"), (newer, "Your model ir_version 999")):
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(EdgeposeError, match=rf"m\.onnx: onnx refuses the model \({reason}"):
            load_onnx(tmp_path / "m.onnx")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "a folder; name the ONNX model"), (tmp_path / "no.onnx", "no such file")):
        with pytest.raises(EdgeposeError, match=said):
            load_onnx(path)
