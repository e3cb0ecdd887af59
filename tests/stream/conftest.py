"""Fixtures of the stream's tests: a bundle made by hand, and the verb as a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepose.runtime.bundle import publish
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.gauge import FILE
from edgepose.runtime.topdown.twostage import CONTEXT, GRAPHS

if TYPE_CHECKING:
    from deploy_standins import Board

sys.path.insert(0, str(Path(__file__).parent))  # for stream_standins: pytest's importlib mode adds no folder


@pytest.fixture(scope="session")
def still_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network always sees the same person, wherever the camera looks."""
    joints = np.arange(17, dtype=np.float32)
    values = {
        "scores": np.array([[0.9, 0.0]], np.float32),  # (1, N): the second slot is empty
        "keypoints": np.tile(np.stack([40 + 2 * joints, 20 + 4 * joints], 1), (1, 2, 1, 1)),  # (1, N, K, 2)
        "keypoint_scores": np.full((1, 2, 17), 0.8, np.float32),
    }
    spec = Spec(family="qrpose", model="still", width=128, height=128)
    return published(tmp_path_factory.mktemp("still"), spec, {"pose": constant([128, 128], values)})


@pytest.fixture(scope="session")
def still_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-stage network whose second look finds joint k at x 6 + k % 12, y 8 + k of 24 x 32 pixels.

    Its first look finds them all at one place, and promises an OKS of 0.95.
    """
    joints = np.arange(17)
    seen = {name: np.zeros((1, 17, 32, 24), np.float32) for name in ("coarse_heatmaps", "heatmaps")}
    seen["coarse_heatmaps"][:, :, 15, 11] = 1
    seen["heatmaps"][:, joints, 8 + joints, 6 + joints % 12] = 1
    context = {name: np.zeros((1, 2), np.float32) for name in CONTEXT}
    first = {"coarse_heatmaps": seen["coarse_heatmaps"], "quality": np.full(1, 0.95, np.float32), **context}
    graphs = {
        "coarse": constant([128, 96], first),
        "fine": constant([128, 96], {"heatmaps": seen["heatmaps"]}, tuple(CONTEXT)),
    }
    spec = Spec("sharpose", "still", 96, 128, graphs=GRAPHS, resize="crop", refine_below=0.96, sharp_cells=1)
    gauge = {"version": 1, "coarse": [0, 1], "fine": [0, 1]}  # its promise is what it reaches
    return published(tmp_path_factory.mktemp("refiner"), spec, graphs, {FILE: json.dumps(gauge)})


def constant(size: list[int], values: dict[str, np.ndarray], unread: tuple[str, ...] = ()) -> object:
    """A model that answers the same to each of its `images` of `size`; values are those of a batch of one."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "nought"], ["nothing"]),  # (B,)
    ]
    constants = [onnx.numpy_helper.from_array(np.float32(0), "nought")]
    for name, value in values.items():
        shape = np.array([-1, *[1] * (value.ndim - 1)])
        constants += [
            onnx.numpy_helper.from_array(value, f"{name}_value"),
            onnx.numpy_helper.from_array(shape, f"{name}_shape"),
        ]
        nodes += [
            helper.make_node("Reshape", ["nothing", f"{name}_shape"], [f"{name}_nothing"]),
            helper.make_node("Add", [f"{name}_value", f"{name}_nothing"], [name]),
        ]
    inputs = [helper.make_tensor_value_info("images", kind, ["batch", 3, *size])]
    inputs += [helper.make_tensor_value_info(name, kind, ["batch", 2]) for name in unread]
    outputs = [
        helper.make_tensor_value_info(name, kind, ["batch", *value.shape[1:]])
        for name, value in values.items()
    ]
    graph = helper.make_graph(nodes, "still", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def published(
    folder: Path, spec: Spec, graphs: dict[str, object], texts: dict[str, str] | None = None
) -> Path:
    """A bundle of the models by graph, the same in both precisions, and of other files."""
    onnx = pytest.importorskip("onnx")
    content = folder / "content"
    content.mkdir()
    for name, text in (texts or {}).items():
        (content / name).write_text(text)
    for name, model in graphs.items():
        for view in ("fp32", "int8.ort"):
            onnx.save(model, content / f"{name}.{view}.onnx")
    return publish(content, folder / "still.edgepose", spec, {}).path


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """This machine as a board: its own folders, and a systemd that is the stand-in."""
    from deploy_standins import Board

    found = Board(tmp_path / "board")
    (found.folder / "systemd").mkdir(parents=True)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("EDGEPOSE_STREAM_USER", raising=False)
    yield found
    found.end()
