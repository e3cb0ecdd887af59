"""Fixtures of the stream's tests: a bundle made by hand, and the verb as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgepose.runtime.bundle import publish
from edgepose.runtime.spec import Spec

sys.path.insert(0, str(Path(__file__).parent))  # for stream_standins: pytest's importlib mode adds no folder


@pytest.fixture(scope="session")
def still_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network always sees the same person, wherever the camera looks."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    joints = np.arange(17, dtype=np.float32)
    values = {
        "scores": np.array([[0.9, 0.0]], np.float32),  # (1, N): the second slot is empty
        "keypoints": np.tile(np.stack([40 + 2 * joints, 20 + 4 * joints], 1), (1, 2, 1, 1)),  # (1, N, K, 2)
        "keypoint_scores": np.full((1, 2, 17), 0.8, np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nought"], ["nothing"]),
        *(helper.make_node("Add", [f"{name}_value", "nothing"], [name]) for name in values),
    ]
    constants = [numpy_helper.from_array(value, f"{name}_value") for name, value in values.items()]
    constants.append(numpy_helper.from_array(np.float32(0), "nought"))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "still",
        [helper.make_tensor_value_info("images", kind, [1, 3, 128, 128])],
        [helper.make_tensor_value_info(name, kind, value.shape) for name, value in values.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path_factory.mktemp("still")
    content = folder / "content"
    content.mkdir()
    for view in ("fp32", "int8.ort"):
        onnx.save(model, content / f"pose.{view}.onnx")
    spec = Spec(family="qrpose", model="still", width=128, height=128)
    return publish(content, folder / "still.edgepose", spec, {}).path
