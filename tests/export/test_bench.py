"""`edgepose bench`: ratios by a known clock, graphs by name, and what cannot be timed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from edgepose.export.verb_bench import bench
from edgepose.runtime.bench import WARM_UP, alternate
from edgepose.runtime.bundle import publish
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec
from edgepose.training import models
from edgepose.training.models import build


def test_ratios_are_those_of_the_same_round() -> None:
    """A machine that slows down threefold half way: the ratio stays, the medians do not tell."""
    now, calls = 0.0, []

    def spend(name: str, seconds: float) -> None:
        nonlocal now
        calls.append(name)
        slow = 3 if len(calls) > (WARM_UP + 5) * 2 else 1
        now += seconds * slow

    timings = alternate({"a": lambda: spend("a", 0.02), "b": lambda: spend("b", 0.005)}, 10, lambda: now)
    assert [timing.name for timing in timings] == ["a", "b"]
    assert [timing.ratio for timing in timings] == pytest.approx([1, 0.25])
    assert (timings[1].low, timings[1].high) == pytest.approx((0.25, 0.25))
    assert timings[0].p50_ms == pytest.approx(40)  # between 20 and 60: half of the rounds each
    assert calls[2 * WARM_UP :][:4] == ["a", "b", "b", "a"]


def graph(path: Path) -> Path:
    nodes = [helper.make_node("Relu", ["images"], ["scores"])]
    shape = ["batch", 3, 8, 8]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "scores")]
    made = helper.make_graph(nodes, "g", value[:1], value[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bench, [*arguments, "--rounds", "3"], catch_exceptions=True)


def test_files_and_bundles_are_timed_together(tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    graph(content / "pose.int8.ort.onnx")
    publish(content, tmp_path / "b", Spec("qrpose", "qrpose_tiny", 256, 256), {})
    first, second = str(graph(tmp_path / "a.onnx")), f"{tmp_path / 'b'}:int8"
    done = run(first, second, "--json", "--batch", "2")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["batch"], found["rounds"]) == (2, 3)
    assert [row["name"] for row in found["graphs"]] == [first, second]
    assert found["graphs"][0]["ratio"] == 1
    assert "median ms" in run(first).output


def test_pytorch_is_timed_beside_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the model's own size, in evaluation, without gradients, by as many threads as the graphs."""
    network = build("qrpose_tiny")
    seen = []
    network.register_forward_hook(
        lambda _, given, made: seen.append((given[0].shape, torch.get_num_threads(), made["scores"]))
    )
    monkeypatch.setattr(models, "build", lambda name: {"qrpose_tiny": network}[name])
    done = run(str(graph(tmp_path / "a.onnx")), "torch:qrpose_tiny", "--json", "--batch", "2")
    assert done.exit_code == 0, done.output
    assert [row["name"] for row in json.loads(done.stdout)["graphs"]][1] == "torch:qrpose_tiny"
    assert len(seen) == WARM_UP + 3
    for shape, threads, scores in seen:
        assert (tuple(shape), threads, scores.requires_grad) == ((2, 3, 256, 256), 1, False)


def two_graphs(folder: Path) -> str:
    """A bundle whose second graph reads an order, and fails for one that is none."""
    content = folder / "content"
    content.mkdir()
    graph(content / "coarse.fp32.onnx")
    nodes = [helper.make_node("GatherElements", ["cells", "order"], ["sorted"], axis=1)]
    kinds = {"cells": TensorProto.FLOAT, "order": TensorProto.INT32, "sorted": TensorProto.FLOAT}
    cells, order, result = (
        helper.make_tensor_value_info(name, kind, ["batch", 12]) for name, kind in kinds.items()
    )
    made = helper.make_graph(nodes, "g", [cells, order], [result])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, content / "fine.fp32.onnx")
    spec = Spec("sharpose", "sharpose_tiny_128x96", 96, 128, graphs=("coarse", "fine"), resize="crop")
    publish(content, folder / "two", spec, {})
    return str(folder / "two")


def test_a_graph_among_several_is_named(tmp_path: Path) -> None:
    bundle = two_graphs(tmp_path)
    done = run(f"{bundle}:coarse:fp32", f"{bundle}:fine:fp32", "--json", "--batch", "3")
    assert done.exit_code == 0, done.output
    for name, said in (("fp32", "has several graphs"), ("medium:fp32", "has no medium")):
        assert said in str(run(f"{bundle}:{name}").exception)


@pytest.mark.parametrize("kind", ["missing", "no graph", "twice", "no such view", "no model"])
def test_what_cannot_be_timed_is_named(tmp_path: Path, kind: str) -> None:
    path = graph(tmp_path / "a.onnx")
    if kind == "no graph":
        path.write_text("hello")
    names = {
        "no model": ["torch:qrpose_huge"],
        "missing": [str(tmp_path / "b.onnx")],
        "no graph": [str(path)],
        "twice": [str(path)] * 2,
        "no such view": [f"{tmp_path}:int8"],
    }[kind]
    error = run(*names).exception
    assert isinstance(error, EdgeposeError)
    assert {"twice": "named twice"}.get(
        kind, names[0].removesuffix(":int8").removeprefix("torch:").split("/")[-1]
    ) in str(error)
