"""Pictures shown to an engine: the kernel's part, against the numpy reference and OpenCV."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import host_kernel
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from standin_tensorrt import WouldCrash
from trt_surface import RELEASES

from edgepose.runtime.backend import CropBackend, FrameBackend, choose
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.golden import read
from edgepose.runtime.preprocess import prepare
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown import crop
from edgepose.runtime.topdown.crop import Regions
from edgepose.runtime.trt import driver, engines, frames, kernel, nvrtc
from edgepose.runtime.trt.build import Settings, build
from edgepose.runtime.trt.cache import PLAN
from edgepose.runtime.trt.cuda import LIBRARIES, DeviceLost, NotLoaded, NotRecorded, OutOfMemory, open_cuda
from edgepose.runtime.trt.engines import Engines, Options
from edgepose.runtime.trt.frames import FrameEngine
from edgepose.runtime.trt.kernel import SOURCE, Source
from edgepose.runtime.trt.precision import attempts, typings
from edgepose.runtime.trt.runner import TensorRtBackend

pytestmark = pytest.mark.skipif(
    host_kernel.compiler() is None, reason="no C++ compiler (c++) to build the kernel for the host"
)

SPEC = Spec("qrpose", "qrpose_tiny", 96, 64)
REAL_CUDA = os.environ.get("EDGEPOSE_TEST_CUDA")  # test_real_cuda.py runs a part of this file with it
MADE_BY = [REAL_CUDA] if REAL_CUDA else list(LIBRARIES)
GRAPHS = [library for library in MADE_BY if library == "cuda-python"]
LIMIT = 1.5  # of 255, before normalising: the issue's own
AREA = 16  # where `area` stands among the fields of a Task


def mirror(path: Path, kind: int = TensorProto.FLOAT, *, told: bool = False) -> Path:
    """A graph that answers its input; `told`: and another one."""
    value = helper.make_tensor_value_info
    pairs = [("images", "seen", ["n", 3, 64, 96]), ("whom", "heard", ["n", 5])][: 1 + told]
    ends = [[value(pair[end], kind, pair[2]) for pair in pairs] for end in (0, 1)]
    nodes = [helper.make_node("Identity", [pair[0]], [pair[1]]) for pair in pairs]
    graph = helper.make_graph(nodes, "g", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def looking(tmp_path: Path):
    """An engine that answers what the kernel prepared for it."""

    def opened(
        gpu: Any, *, kind: int = TensorProto.FLOAT, library: str = MADE_BY[0], told: bool = False
    ) -> FrameEngine:
        graph = mirror(tmp_path / f"{kind}.onnx", kind, told=told)
        plan = build(graph, attempts("fp32", typings())[0], Settings((1, 2, 4) if told else (1, 1, 1))).plan
        engine = TensorRtBackend(plan, open_cuda(library), mapped=gpu.integrated)
        return FrameEngine(engine, code(gpu.sm), SPEC)

    return opened


def code(sm: int) -> bytes:
    """NVRTC's own where it is installed, for the real libraries; the stand-ins are content with a note."""
    if REAL_CUDA:
        with contextlib.suppress(MissingLibrary):
            return nvrtc.compiled(SOURCE.read_bytes(), sm)
    return host_kernel.cubin(SOURCE.read_bytes(), sm)


def picture(width: int, height: int, seed: int = 0) -> Any:
    """(H, W, 3) BGR with soft shapes and a hard edge."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 12, width // 12, 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(image, (width // 4, height // 4), (width // 2, height // 2), (255, 0, 40), -1)
    return image


def apart(found: Any, expected: Any) -> float:
    """The largest difference in 0..255."""
    return float((np.abs(found - expected) * np.array(SPEC.std).reshape(3, 1, 1) * 255).max())


@pytest.mark.parametrize("library", MADE_BY)
@pytest.mark.parametrize("integrated", [True, False], ids=["mapped", "copied"])
@pytest.mark.parametrize("release", ["8.6", "10.3", "11.4"])
def test_a_picture_of_any_size_reaches_the_engine_as_numpy_would_prepare_it(
    release: str, integrated: bool, library: str, install, looking
) -> None:
    gpu = install(release)
    gpu.integrated = integrated
    with looking(gpu, library=library) as engine:
        for index, size in enumerate([(320, 240), (640, 360), (61, 47), (320, 240), (320, 240)]):
            frame = picture(*size, seed=index)
            answers, box = engine.see(frame)
            expected, same = prepare(frame, SPEC)
            assert box == same
            assert apart(answers["seen"], expected) <= LIMIT
    assert (gpu.blocks, gpu.pinned, gpu.has_context()) == ({}, {}, False)


def test_rows_of_a_picture_need_not_lie_in_one_piece(install, looking) -> None:
    with looking(install("10.3")) as engine:
        frame = picture(330, 250)[5:245, 3:323]
        assert apart(engine.see(frame)[0]["seen"], prepare(frame, SPEC)[0]) <= LIMIT


def nv12(image: Any, pitch: int) -> Any:
    """(3/2 H, pitch) of a BGR image by OpenCV's BT.601 limited conversion."""
    height, width = image.shape[:2]
    planar = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
    u, v = (plane.reshape(height // 2, width // 2) for plane in np.split(planar[height:].reshape(-1), 2))
    rows = np.zeros((height * 3 // 2, pitch), np.uint8)
    rows[:height, :width] = planar[:height]
    rows[height:, :width] = np.stack([u, v], -1).reshape(height // 2, width)
    return rows


def test_what_a_decoder_gives_is_shown_as_it_lies_in_memory(install, looking) -> None:
    """NV12 with rows longer than the picture, and RGBA."""
    with looking(install("10.3")) as engine:
        image = picture(320, 240)
        rows = nv12(image, 384)
        packed = np.ascontiguousarray(rows[:, :320])
        expected = prepare(cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_NV12), SPEC)[0]
        answers, _ = engine.see_planes(rows, Source(320, 240, 384))
        assert apart(answers["seen"], expected) <= LIMIT
        rgba = cv2.cvtColor(image, cv2.COLOR_BGR2RGBA).reshape(240, -1)
        answers, _ = engine.see_planes(rgba, Source(320, 240, 1280, "RGBA"))
        assert apart(answers["seen"], prepare(image, SPEC)[0]) <= LIMIT


def around(boxes: list[tuple[float, float, float, float]], degrees: float = 0.0) -> Regions:
    regions = Regions.around(np.array(boxes), (SPEC.width, SPEC.height))
    return replace(regions, degrees=np.full(len(boxes), degrees))


@pytest.mark.parametrize("library", MADE_BY)
@pytest.mark.parametrize("integrated", [True, False], ids=["mapped", "copied"])
@pytest.mark.parametrize("release", ["8.6", "10.3", "11.4"])
def test_people_of_a_frame_reach_the_engine_as_numpy_would_cut_them(
    release: str, integrated: bool, library: str, install, looking
) -> None:
    """One to four of them, over the border too; what else is fed arrives with them."""
    gpu = install(release)
    gpu.integrated = integrated
    people = [
        (40.0, 30.0, 60.0, 120.0),
        (-20.0, 10.0, 90.0, 70.0),
        (250.0, 180.0, 80.0, 90.0),
        (5.0, 5, 9, 9),
    ]
    with looking(gpu, library=library, told=True) as engine:
        for turn, chosen in enumerate([people[:2], people, people, people[2:3]]):
            frame, regions = picture(320 + 8 * turn, 240, seed=turn), around(chosen, 12.0 * turn)
            whom = np.random.default_rng(turn).standard_normal((len(chosen), 5), np.float32)
            answers = engine.see_regions(frame, regions, {"whom": whom})
            expected = crop.prepare(frame, regions, SPEC)
            assert apart(answers["seen"], expected) <= LIMIT
            np.testing.assert_array_equal(answers["heard"], whom)
    assert (gpu.blocks, gpu.pinned, gpu.has_context()) == ({}, {}, False)


@pytest.mark.parametrize("library", GRAPHS)
def test_people_who_move_are_part_of_the_graph(library: str, install, looking) -> None:
    gpu = install("10.3")
    with looking(gpu, library=library, told=True) as engine:
        for turn, count in enumerate([3, 2, 2, 3, 3]):
            frame, regions = picture(320, 240, seed=turn), around([(30.0 + 9 * turn, 40, 70, 90)] * count)
            whom = np.full((count, 5), turn, np.float32)
            answers = engine.see_regions(frame, regions, {"whom": whom})
            assert apart(answers["seen"], crop.prepare(frame, regions, SPEC)) <= LIMIT
            np.testing.assert_array_equal(answers["heard"], whom)
    assert gpu.replays == 2


def test_an_engine_that_takes_half_is_given_half(install, looking) -> None:
    with looking(install("10.3"), kind=TensorProto.FLOAT16) as engine:
        frame = picture(320, 240)
        seen = engine.see(frame)[0]["seen"]
        assert seen.dtype == np.float16
        assert apart(seen.astype(np.float32), prepare(frame, SPEC)[0]) <= LIMIT + 0.5  # half has 11 bits


@pytest.mark.parametrize(
    ("shape", "source"),
    [
        ((240, 960), Source(320, 240, 320)),
        ((240, 640), Source(320, 240, 640, "BGR")),
        ((361, 322), Source(321, 241, 322)),
        ((240, 321), Source(320, 240, 320, "BGR")),
    ],
)
def test_rows_that_are_not_the_pictures_are_refused(shape: Any, source: Source, install, looking) -> None:
    with looking(install("10.3")) as engine, pytest.raises(EdgeposeError, match="its rows are"):
        engine.see_planes(np.zeros(shape, np.uint8), source)


def test_a_lost_gpu_and_exhausted_memory_are_said(install, looking) -> None:
    gpu = install("10.3")
    gpu.integrated = False
    with looking(gpu) as engine:
        gpu.total = gpu.total - gpu.free() + 1000
        with pytest.raises(OutOfMemory, match="memory is exhausted"):
            engine.see(picture(320, 240))
        gpu.total *= 1000
        engine.see(picture(320, 240))
        gpu.faults.lost = True
        for _ in range(2):
            with pytest.raises(DeviceLost, match="engine is lost"):
                engine.see(picture(320, 240))


def test_code_for_another_gpu_is_refused(install, tmp_path) -> None:
    install("10.3")
    plan = build(mirror(tmp_path / "g.onnx"), attempts("fp32", typings())[0], Settings()).plan
    images = np.ones((1, 3, 64, 96), np.float32)
    with TensorRtBackend(plan, open_cuda(MADE_BY[0]), mapped=True) as engine:
        with pytest.raises(NotLoaded, match=r"prepare_f32 cannot be loaded"):
            FrameEngine(engine, code(75), SPEC)
        np.testing.assert_array_equal(engine.run({"images": images})["seen"], images)  # it is not lost


@pytest.mark.parametrize("library", LIBRARIES)
def test_code_for_another_gpu_leaves_pictures_to_the_cpu(
    library: str, bundle, install, cached, monkeypatch, caplog
) -> None:
    install("10.3")
    make(bundle, cached, cuda=library).keep_default("int8", {})
    monkeypatch.setattr(engines, "compiled", lambda source, sm: host_kernel.cubin(source, 75))
    assert chosen(bundle, "gpu") == (TensorRtBackend, "int8")
    assert (
        "pictures are prepared on the CPU, which is slower: the kernel prepare_f32 cannot be" in caplog.text
    )


# CUDA graphs.


@pytest.fixture(params=GRAPHS)
def opened(request: pytest.FixtureRequest, bundle: Bundle):
    """An engine of the bundle whose work becomes graphs, or is done step by step."""

    def backend(*, graphs: bool = True) -> TensorRtBackend:
        attempt = attempts("fp32", typings())[0]
        made = build(bundle.graph("pose", attempt.view), attempt, Settings((1, 2, 4))).plan
        engine = TensorRtBackend(made, open_cuda(request.param), mapped=False)
        engine._records = graphs
        return engine

    return backend


def feeds(batch: int, seed: int) -> dict[str, Any]:
    return {"images": np.random.default_rng(seed).standard_normal((batch, 3, 32, 32), np.float32)}


@pytest.mark.parametrize("release", RELEASES)
def test_the_same_work_again_is_one_graph_with_the_same_answers(release: str, opened, install) -> None:
    gpu = install(release)
    gpu.integrated = False
    with opened() as graphs, opened(graphs=False) as steps:
        for turn, batch in enumerate([1, 1, 1, 3, 3, 1, 1]):
            given = feeds(batch, turn)
            found, expected = graphs.run(given), steps.run(given)
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)
    assert gpu.replays == 4  # the first run of each shape, and after each change, is step by step
    assert (gpu.blocks, gpu.pinned, gpu.capturing) == ({}, {}, {})
    if not REAL_CUDA:
        assert sys.modules["cuda.bindings.driver"]._driver._graphs == {}


@pytest.mark.parametrize("library", GRAPHS)
def test_pictures_are_part_of_the_graph(library: str, install, looking) -> None:
    gpu = install("10.3")
    with looking(gpu, library=library) as engine:
        for turn in range(4):
            frame = picture(320, 240, seed=turn)
            assert apart(engine.see(frame)[0]["seen"], prepare(frame, SPEC)[0]) <= LIMIT
    assert gpu.replays == 3


def test_work_that_cannot_be_a_graph_runs_step_by_step(opened, install, caplog) -> None:
    gpu = install("10.3")
    gpu.integrated = False
    gpu.faults.unrecordable = True
    with opened() as graphs, opened(graphs=False) as steps:
        for turn in range(3):
            found, expected = graphs.run(feeds(1, turn)), steps.run(feeds(1, turn))
            np.testing.assert_array_equal(found["scores"], expected["scores"])
    assert gpu.replays == 0
    assert [record.message for record in caplog.records] == [
        "the engine cannot be made a CUDA graph (the GPU does not answer as it should (cuStreamEndCapture: "
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)); it runs step by step"
    ]


def test_no_memory_for_a_graph_costs_no_answer(opened, install, caplog) -> None:
    gpu = install("10.3")
    gpu.integrated = False
    gpu.faults.no_room_for_graphs = True
    with opened() as graphs, opened(graphs=False) as steps:
        for turn in range(3):
            found, expected = graphs.run(feeds(1, turn)), steps.run(feeds(1, turn))
            np.testing.assert_array_equal(found["scores"], expected["scores"])
    assert [record.message for record in caplog.records] == [
        "the engine cannot be made a CUDA graph (the GPU's memory is exhausted (cuGraphInstantiate)); it "
        "runs step by step"
    ]
    assert sys.modules["cuda.bindings.driver"]._driver._graphs == {}


def test_work_that_fails_while_it_is_recorded_leaves_no_graph(opened, install) -> None:
    install("10.3").integrated = False

    def failing() -> None:
        raise EdgeposeError("no such work")

    with opened() as engine, engine.owned():
        with pytest.raises(NotRecorded, match="no such work"):
            engine.cuda.record(engine._stream, failing)
        assert sys.modules["cuda.bindings.driver"]._driver._graphs == {}


def test_the_stand_in_catches_a_graph_of_a_first_run(opened, install) -> None:
    install("10.3").integrated = False
    with opened() as graphs, graphs.owned():
        graphs._set_shape("images", (1, 3, 32, 32))
        with pytest.raises(WouldCrash, match="before a first run"):
            graphs._record(lambda: graphs._execution.execute_async_v3(graphs._stream))


# An engine chosen for a stream.


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def make(bundle: Any, root: Path, precision: str = "int8", **choices: Any) -> Engines:
    made = Engines(bundle, "pose", Options(root=root, **choices))
    backend, _ = made.exactly(precision)
    assert backend is not None
    backend.close()
    return made


def chosen(bundle: Any, device: str = "auto", precision: str = "default") -> tuple[Any, str]:
    found = choose(bundle, precision, "pose", 1, device)
    found.backend.close()
    return type(found.backend), found.precision


def test_without_a_gpu_another_precision_is_said(bundle, monkeypatch, caplog) -> None:
    def load() -> None:
        raise OSError("no such library")

    monkeypatch.setattr(driver, "load", load)
    caplog.set_level("INFO")
    assert chosen(bundle, precision="fp16") == (OnnxRuntimeBackend, "fp32")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["no engine can be used here; ONNX Runtime runs the fp32 model on the CPU"]
    assert "INT8" not in caplog.text
    caplog.clear()
    for precision in ("int8", "default"):
        assert chosen(bundle, precision=precision) == (OnnxRuntimeBackend, "int8")
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_auto_takes_what_was_built_here_and_builds_nothing(bundle, install, cached, caplog) -> None:
    gpu = install("10.3")
    assert chosen(bundle) == (OnnxRuntimeBackend, "int8")
    assert f"no engine of pose that can be used: edgepose build {bundle.path}" in caplog.text
    assert list(cached.rglob(PLAN)) == []
    make(bundle, cached, "fp16")
    caplog.clear()
    assert chosen(bundle) == (FrameEngine, "fp16")
    assert "the fp16 engine of pose runs, not int8" in caplog.text
    make(bundle, cached)
    caplog.clear()
    assert chosen(bundle) == (FrameEngine, "int8")
    assert caplog.text == ""
    make(bundle, cached).keep_default("fp16", {})
    assert chosen(bundle) == (FrameEngine, "fp16")
    assert chosen(bundle, "cpu") == (OnnxRuntimeBackend, "int8")
    gpu.sm = 72
    assert chosen(bundle) == (OnnxRuntimeBackend, "int8")  # those were another board's


LACKING = {"tensorrt": ("tensorrt",), "cuda": ("pycuda.driver", "cuda.bindings.driver")}


@pytest.mark.parametrize(
    ("lack", "level", "said"),
    [
        ("driver", logging.INFO, "cuInit says error 100"),
        ("tensorrt", logging.WARNING, "there is a GPU, but tensorrt cannot be imported"),
        ("cuda", logging.WARNING, "there is a GPU, but pycuda.driver cannot be imported"),
        ("release", logging.WARNING, "there is a GPU, but TensorRT 8.2.1: edgepose is written for 8.5"),
        ("gpu", logging.WARNING, "there is a GPU, but the GPU does not answer as it should"),
    ],
)
def test_auto_runs_on_the_cpu_where_something_lacks(
    lack: str, level: int, said: str, bundle, install, cached, monkeypatch, caplog
) -> None:
    gpu = install("10.3")
    make(bundle, cached)
    caplog.set_level(logging.INFO)
    caplog.clear()
    if lack == "driver":
        gpu.faults.no_driver = True
    if lack == "release":
        monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.2.1")
    gpu.faults.lost = lack == "gpu"
    for name in LACKING.get(lack, ()):
        monkeypatch.setitem(sys.modules, name, None)
    assert chosen(bundle) == (OnnxRuntimeBackend, "int8")
    assert [record.levelno for record in caplog.records if said in record.message] == [level]
    kinds = {"driver": HardwareError, "gpu": DeviceLost, "release": EdgeposeError}
    with pytest.raises(kinds.get(lack, MissingLibrary)):
        chosen(bundle, "gpu")


def test_auto_takes_the_next_safer_of_what_was_built(bundle, install, cached, caplog) -> None:
    gpu = install("10.3")
    for precision in ("int8", "fp16", "fp32"):
        make(bundle, cached, precision)
    gpu.faults.wrong_precisions = {"int8", "fp16"}
    assert chosen(bundle) == (FrameEngine, "fp32")
    assert caplog.text.count("does not reproduce the golden vectors") == 2
    gpu.faults.wrong_precisions |= {"fp32"}
    assert chosen(bundle) == (OnnxRuntimeBackend, "int8")
    for plan in cached.rglob(PLAN):
        plan.write_bytes(b"damaged")
    gpu.faults.wrong_precisions = set()
    caplog.clear()
    assert chosen(bundle) == (OnnxRuntimeBackend, "int8")
    assert "is damaged (its sha256 differs)" in caplog.text


def test_the_stream_takes_the_cuda_library_that_is_there(bundle, install, cached, monkeypatch) -> None:
    install("10.3")
    make(bundle, cached)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert chosen(bundle) == (FrameEngine, "int8")


def test_the_cuda_library_is_the_one_the_engine_was_built_with(bundle, install, cached, monkeypatch) -> None:
    install("10.3")
    make(bundle, cached, cuda="cuda-python").keep_default("int8", {})
    opened: list[str] = []
    original = engines.open_cuda
    monkeypatch.setattr(engines, "open_cuda", lambda library: opened.append(library) or original(library))
    assert chosen(bundle) == (FrameEngine, "int8")
    assert opened == ["cuda-python"]


def changed(task: bytes, **values: float) -> bytes:
    """The Task with other values of `area`, or of `pad` for all channels."""
    fields = list(kernel._LAYOUT.unpack(task))
    fields[AREA] = values.get("area", fields[AREA])
    fields[-3:] = [values.get("pad", value) for value in fields[-3:]]
    return kernel._LAYOUT.pack(*fields)


@pytest.mark.parametrize("fault", [{"area": 0}, {"pad": 0.0}], ids=["samples", "pads"])
def test_a_kernel_is_proven_on_larger_and_on_padded_pictures(
    fault: dict[str, float], bundle, install, cached, monkeypatch, caplog
) -> None:
    gpu = install("10.3")
    gpu.integrated = False
    make(bundle, cached)
    original = frames.letterbox_task

    def wrong(source: Source, spec: Spec) -> Any:
        task, box = original(source, spec)
        return changed(task, **fault), box

    monkeypatch.setattr(frames, "letterbox_task", wrong)
    assert chosen(bundle) == (TensorRtBackend, "int8")
    assert "prepares the golden pictures wrongly" in caplog.text
    assert (gpu.blocks, gpu.pinned) == ({}, {})


@pytest.mark.parametrize("factor", [3, 1], ids=["steps", "border"])
def test_a_kernel_that_cuts_wrongly_is_seen(factor: int, two_graphs, install, cached, monkeypatch) -> None:
    """Crops of pictures three times as large, and such as reach beyond the frame."""
    install("10.3")
    original = frames.crop_task

    def wrong(source: Source, regions: Regions, spec: Spec) -> Any:
        task, inverses = original(source, regions, spec)
        is_identity = np.allclose(inverses, np.eye(2, 3))
        return task, inverses if is_identity or source.width != factor * spec.width else inverses + 1

    monkeypatch.setattr(frames, "crop_task", wrong)
    made = Engines(two_graphs, "coarse", Options(root=cached))
    backend, _ = made.exactly("fp32")
    with made.seeing(backend, "fp32") as seeing:
        assert isinstance(seeing, TensorRtBackend)


@pytest.mark.parametrize("fault", ["no compiler", "another picture"])
def test_a_kernel_that_cannot_be_trusted_leaves_pictures_to_the_cpu(
    fault: str, bundle, install, cached, monkeypatch, caplog
) -> None:
    gpu = install("10.3")
    make(bundle, cached)
    if fault == "no compiler":
        monkeypatch.setattr(nvrtc, "load", lambda: (_ for _ in ()).throw(MissingLibrary("no libnvrtc.so")))
        monkeypatch.setattr(engines, "compiled", nvrtc.compiled)
    else:
        original = frames.letterbox_task
        darker = replace(bundle.spec, mean=(0.9, 0.9, 0.9))
        monkeypatch.setattr(frames, "letterbox_task", lambda source, spec: original(source, darker))
    assert chosen(bundle) == (TensorRtBackend, "int8")
    assert "pictures are prepared on the CPU, which is slower: " in caplog.text
    assert (
        "libnvrtc.so" if fault == "no compiler" else "prepares the golden pictures wrongly"
    ) in caplog.text
    assert (gpu.blocks, gpu.pinned) == ({}, {})


def test_poses_of_a_frame_are_the_cpus(bundle, install, cached) -> None:
    install("10.3")
    make(bundle, cached, "fp32")
    frame = picture(320, 240)
    with (
        choose(bundle, "fp32", "pose", 1, "auto").backend as engine,
        choose(bundle, "fp32", "pose", 1, "cpu").backend as cpu,
    ):
        assert isinstance(engine, FrameBackend)
        assert not isinstance(cpu, FrameBackend)
        found, expected = (Estimator(backend, bundle.spec)(frame) for backend in (engine, cpu))
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=0.5)
    np.testing.assert_allclose(found.scores, expected.scores, atol=5e-3)


@pytest.mark.parametrize("graph", ["coarse", "fine"])
def test_both_looks_cut_people_out_of_the_frame_themselves(graph: str, two_graphs, install, cached) -> None:
    install("10.3")
    made = Engines(two_graphs, graph, Options(Settings((1, 4, 16)), root=cached))
    backend, _ = made.exactly("fp32")
    backend.close()
    made.keep_default("fp32", {})
    frame, regions = picture(64, 48), Regions.around(np.array([[8.0, 8, 20, 30], [30, 2, 9, 40]]), (4, 4))
    crops = crop.prepare(frame, regions, two_graphs.spec)
    with (
        choose(two_graphs, "default", graph, 1, "auto").backend as engine,
        choose(two_graphs, "fp32", graph, 1, "cpu").backend as cpu,
    ):
        assert isinstance(engine, CropBackend)
        assert not isinstance(cpu, CropBackend)
        known = read(two_graphs).known(two_graphs.spec)
        others = {
            name: np.concatenate([one[name] for one in known]) for name in engine.inputs if name != "images"
        }
        found = engine.see_regions(frame, regions, others)
        expected = cpu.run({"images": crops, **others})
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=48 * LIMIT / 255 / 0.2)  # sums of 48 values


def test_engines_for_too_few_people_are_not_taken_for_a_crowd(two_graphs, install, cached) -> None:
    install("10.3")
    made = Engines(two_graphs, "coarse", Options(root=cached))
    made.keep_default("fp32", {})
    with pytest.raises(EdgeposeError, match=r"take 1 people at once, needed are 16: .* --batch 1,4,16"):
        choose(two_graphs, "default", "coarse", 1, "auto")
