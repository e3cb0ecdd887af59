"""A board for the tests: TensorRT, pycuda and libcuda by their stand-ins, and a bundle with every view."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import fakecuda
import host_kernel
import numpy as np
import onnx
import pytest
import standin_cuda_python
import standin_pycuda
import standin_tensorrt
from onnx import TensorProto, helper, numpy_helper
from standin_gpu import Gpu

from edgepose.export import golden, views
from edgepose.export.scales import activation_scales
from edgepose.runtime import cli
from edgepose.runtime.backend import open_backend
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.golden import FILE
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import ORDER
from edgepose.runtime.trt import board as boards
from edgepose.runtime.trt import driver, engines

SPEC = Spec("qrpose", "qrpose_tiny", 32, 32)
SHAPES = {"keypoints": (4, 17, 2), "keypoint_scores": (4, 17), "boxes": (4, 4), "scores": (4,)}
Install = Callable[[str], Gpu]
AREA = 16.0  # square pixels
REAL_CUDA = os.environ.get("EDGEPOSE_TEST_CUDA")  # a key of cuda.LIBRARIES, set by test_real_cuda.py


class Libcuda:
    """The few C functions of libcuda.so.1 that `driver` calls."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0 if self._gpu.ready() else 100

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 12060
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:  # noqa: N802
        known = {18: self._gpu.integrated, 75: self._gpu.sm // 10, 76: self._gpu.sm % 10}
        value._obj.value = int(known[which])
        return 0


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Makes this machine a board with that TensorRT, and gives its GPU."""

    def with_release(release: str) -> Gpu:
        gpu: Any = Gpu()
        if REAL_CUDA:  # in the processes of test_real_cuda.py: the real library on a fake driver
            gpu = fakecuda.FakeGpu(ctypes.CDLL(fakecuda.NAME))
        else:
            cuda = standin_pycuda.load(gpu)
            package = ModuleType("pycuda")
            package.driver = cuda  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, "pycuda", package)
            monkeypatch.setitem(sys.modules, "pycuda.driver", cuda)
            monkeypatch.setitem(sys.modules, "cuda.bindings.driver", standin_cuda_python.load(gpu))
            monkeypatch.setattr(driver, "load", lambda: Libcuda(gpu))
        if (
            host_kernel.compiler()
        ):  # without one pictures are prepared on the CPU, as on a board without NVRTC
            monkeypatch.setattr(engines, "compiled", host_kernel.cubin)
        monkeypatch.setitem(sys.modules, "tensorrt", standin_tensorrt.load(release, gpu))
        release_file = tmp_path / "nv_tegra_release"
        if not release.startswith("11."):  # which runs on no Jetson before 11.4.1
            release_file.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
        monkeypatch.setattr(boards, "RELEASE_FILE", release_file)
        return gpu

    return with_release


def pose_graph(*, quantized: bool) -> onnx.ModelProto:
    """images (B, 3, 32, 32) -> SHAPES in input pixels; `quantized`: int8 weights, and pairs."""
    generator = np.random.default_rng(3)
    stem = generator.normal(0, 0.15, (16, 3, 8, 8)).astype(np.float32)
    made = SimpleNamespace(
        nodes=[], constants={"stem_bias": np.zeros(16, np.float32), "size": np.float32(32)}
    )
    weight = _weight(made, "stem", stem, 0, quantized)
    images = _pair(made, "images", 0.03) if quantized else "images"
    _add(made, "Conv", [images, weight, "stem_bias"], "stem_out", strides=[8, 8])
    _add(made, "Relu", ["stem_out"], "relu")
    _add(made, "Flatten", ["relu"], "flat")
    flat = _pair(made, "flat", 0.1) if quantized else "flat"
    for name, shape in SHAPES.items():
        head = generator.normal(0, 0.02, (16 * 4 * 4, int(np.prod(shape)))).astype(np.float32)
        weight = _weight(made, name, head, 1, quantized and name == "keypoints")
        _add(made, "MatMul", [flat, weight], f"{name}_raw")
        _add(made, "Sigmoid", [f"{name}_raw"], f"{name}_unit")
        if name in ("keypoints", "boxes"):
            _add(made, "Mul", [f"{name}_unit", "size"], f"{name}_px")
        made.constants[f"{name}_shape"] = np.array([-1, *shape], np.int64)
        last = f"{name}_px" if name in ("keypoints", "boxes") else f"{name}_unit"
        _add(made, "Reshape", [last, f"{name}_shape"], name)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        made.nodes,
        "pose",
        [value("images", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [value(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in SHAPES.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in made.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _add(made: Any, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
    made.nodes.append(helper.make_node(kind, inputs, [output], f"{output}_node", **attributes))


def _pair(made: Any, tensor: str, scale: float) -> str:
    made.constants |= {f"{tensor}_scale": np.float32(scale), "zero": np.int8(0)}
    _add(made, "QuantizeLinear", [tensor, f"{tensor}_scale", "zero"], f"{tensor}_q")
    _add(made, "DequantizeLinear", [f"{tensor}_q", f"{tensor}_scale", "zero"], f"{tensor}_dq")
    return f"{tensor}_dq"


def _weight(made: Any, name: str, weight: Any, axis: int, quantized: bool) -> str:
    if not quantized:
        made.constants[f"{name}_weight"] = weight
        return f"{name}_weight"
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = (np.abs(weight).max(others) / 127).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    made.constants |= {
        f"{name}_weight_q": np.rint(weight / scale.reshape(shape)).astype(np.int8),
        f"{name}_weight_scale": scale,
        f"{name}_weight_zero": np.zeros(len(scale), np.int8),
    }
    inputs = [f"{name}_weight_q", f"{name}_weight_scale", f"{name}_weight_zero"]
    made.nodes.append(
        helper.make_node("DequantizeLinear", inputs, [f"{name}_weight"], f"{name}_dq", axis=axis)
    )
    return f"{name}_weight"


@pytest.fixture(scope="session")
def graphs() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The small graph, and the same quantized."""
    return pose_graph(quantized=False), pose_graph(quantized=True)


@pytest.fixture(scope="session")
def bundle(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Every view of the small graph, with golden vectors."""
    fp32, quantized = graphs
    made = {
        "pose.fp32": fp32,
        "pose.fp16": views.fp16_view(fp32, ()),
        "pose.int8.ort": views.cpu_view(quantized),
        "pose.int8.trt": views.trt_view(quantized),
        "pose.int8.trt-typed": views.typed_view(quantized, ()),
    }
    content = tmp_path_factory.mktemp("content")
    for name, model in made.items():
        onnx.save(model, content / f"{name}.onnx")
    scales = activation_scales(quantized, fp32)
    (content / "pose.scales.json").write_text(json.dumps(scales))
    frames = np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), np.uint8)
    (content / FILE).write_bytes(golden.to_bytes(golden.record(made.items(), frames, SPEC)))
    return publish(content, tmp_path_factory.mktemp("bundle") / "pose", SPEC, {"model": "qrpose_tiny"})


@pytest.fixture
def two_graphs(tmp_path: Path) -> Bundle:
    """A bundle of SHaRPose's form: the second graph reads the picture and what the first gave."""
    value = helper.make_tensor_value_info
    images = value("images", TensorProto.FLOAT, ["batch", 3, 4, 4])
    order, context = (
        value(ORDER, TensorProto.INT32, ["batch", 3]),
        value("tokens", TensorProto.FLOAT, ["batch", 3]),
    )
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    first = [
        helper.make_node("ReduceSum", ["images", "axes"], ["tokens"], keepdims=0),
        helper.make_node("Cast", ["tokens"], [ORDER], to=TensorProto.INT32),
    ]
    second = [
        helper.make_node("Cast", [ORDER], ["ranks"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["ranks", "tokens"], ["sums"]),
        helper.make_node("Unsqueeze", ["sums", "axes"], ["wide"]),
        helper.make_node("Add", ["images", "wide"], ["heatmaps"]),
    ]
    graphs = {
        "coarse.fp32": helper.make_graph(first, "coarse", [images], [context, order], [axes]),
        "fine.fp32": helper.make_graph(
            second,
            "fine",
            [images, context, order],
            [value("heatmaps", TensorProto.FLOAT, ["batch", 3, 4, 4])],
            [axes],
        ),
    }
    opsets = [helper.make_opsetid("", 17)]
    models = {name: helper.make_model(g, opset_imports=opsets, ir_version=8) for name, g in graphs.items()}
    content = tmp_path / "content"
    content.mkdir()
    for name, model in models.items():
        onnx.save(model, content / f"{name}.onnx")
    spec = Spec("sharpose", "tiny", 4, 4, graphs=("coarse", "fine"), resize="crop", sharp_cells=2)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    (content / FILE).write_bytes(golden.to_bytes(golden.record(models.items(), frames, spec)))
    return publish(content, tmp_path / "two", spec, {})


@pytest.fixture(scope="session")
def labelled(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file of pictures whose labels are what the bundle's FP32 network sees: its AP is 1.

    People of AREA are so small that a tenth of a pixel counts.
    """
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
    pictures, people, generator = [], [], np.random.default_rng(11)
    with open_backend(bundle, "fp32", threads=1) as backend:
        estimate = Estimator(backend, SPEC)
        for index in range(1, 7):
            frame = cv2.resize(generator.integers(0, 256, (9, 12, 3), np.uint8), (64, 48))
            cv2.imwrite(str(folder / "images" / f"{index}.png"), frame)
            pictures.append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 48})
            poses = estimate(frame)
            for keypoints, box in zip(poses.keypoints, poses.boxes, strict=True):
                low, high = box[:2], box[2:]
                joints = [value for x, y in keypoints.tolist() for value in (x, y, 2)]
                people.append(
                    {
                        "id": len(people) + 1,
                        "image_id": index,
                        "category_id": 1,
                        "keypoints": joints,
                        "num_keypoints": 17,
                        "bbox": [*low.tolist(), *(high - low).tolist()],
                        "area": AREA,
                        "iscrowd": 0,
                    }
                )
    category = {"id": 1, "name": "person", "keypoints": list(SPEC.joints().joints), "skeleton": []}
    values = {"images": pictures, "annotations": people, "categories": [category]}
    (folder / "annotations.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The views that were built, in order."""
    seen: list[str] = []
    original = engines.build

    def recorded(onnx: Path, *rest: Any) -> Any:
        seen.append(onnx.name)
        return original(onnx, *rest)

    monkeypatch.setattr(engines, "build", recorded)
    return seen


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs `edgepose build` in this process; gives its exit code, stdout and stderr."""

    def command(*words: object) -> tuple[int, str, str]:
        words = ("edgepose", "build", *words, "--engines", tmp_path / "engines", "--rounds", "3")
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    return command
