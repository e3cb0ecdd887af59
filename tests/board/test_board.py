"""What must hold on a real board: `make test-board` there. The stand-in is held to the same in every gate."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgepose.calibration.dataset import open_dataset
from edgepose.runtime.agreement import Array
from edgepose.runtime.backend import CPU_VIEWS, CropBackend, FrameBackend, choose
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import edgepose, guarded
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.golden import apart, limit, read
from edgepose.runtime.preprocess import Letterbox, prepare
from edgepose.runtime.topdown import crop
from edgepose.runtime.topdown.crop import Regions
from edgepose.runtime.trt import engines as trt_engines
from edgepose.runtime.trt.board import require_board
from edgepose.runtime.trt.build import Settings
from edgepose.runtime.trt.cuda import open_cuda
from edgepose.runtime.trt.engines import Engines, Options
from edgepose.runtime.trt.kernel import SOURCE
from edgepose.runtime.trt.kernel_bench import shares
from edgepose.runtime.trt.precision import ANSWERS, LADDER
from edgepose.runtime.trt.runner import EngineRefused, TensorRtBackend

PICTURES = [(640, 480), (1280, 720), (333, 217)]


def engines(place: Any, graph: str) -> Engines:
    settings = Settings(place.batches)
    return Engines(place.bundle, graph, Options(settings, place.library, place.root))


def opened(place: Any, graph: str, precision: str) -> TensorRtBackend:
    backend, steps = engines(place, graph).exactly(precision)
    assert backend is not None, [step.problem for step in steps]
    return backend


def feeds(place: Any, backend: TensorRtBackend, batch: int) -> dict[str, Array]:
    """Golden pictures, one after the other, for so large a batch."""
    known = read(place.bundle).known(place.bundle.spec)
    chosen = [known[index % len(known)] for index in range(batch)]
    return {name: np.concatenate([one[name] for one in chosen]) for name in backend.inputs}


def picture(width: int, height: int) -> Any:
    small = np.random.default_rng(width).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("precision", LADDER)
def test_engines_of_every_precision_reproduce_the_golden_vectors(precision: str, place) -> None:
    for graph in place.bundle.spec.graphs:
        backend, steps = engines(place, graph).exactly(precision)
        assert backend is not None, [step.problem for step in steps]
        backend.close()
        report = steps[-1].report
        assert report["bytes"] > 1000
        assert report["layers"]["total"] > 0, "the inspector's JSON has another form than was expected"
        assert report["layers"]["by_precision"].get(precision, 0) > 0


@pytest.mark.parametrize("precision", LADDER)
def test_every_batch_answers_as_onnx_runtime_does(precision: str, place) -> None:
    """Each picture of a batch by itself, for ONNX Runtime of the same precision, FP32 for FP16."""
    spec, view = place.bundle.spec, CPU_VIEWS.get(precision, "fp32")
    for graph in spec.graphs:
        allowed = limit(f"{graph}.{ANSWERS[precision]}", spec)
        with (
            opened(place, graph, precision) as backend,
            OnnxRuntimeBackend(place.bundle.graph(graph, view), threads=1) as cpu,
        ):
            for batch in (*range(place.batches[0], place.batches[2] + 1), place.batches[0]):
                given = feeds(place, backend, batch)
                answers = backend.run(given)
                for index in range(batch):
                    mine = {name: array[[index]] for name, array in answers.items()}
                    expected = cpu.run({name: array[[index]] for name, array in given.items()})
                    assert apart([expected], [mine], spec).within(allowed), (batch, index)


def test_the_same_work_many_times_gives_the_same_answers(place) -> None:
    """From the second time on as a CUDA graph, where the library has them."""
    graph = place.bundle.spec.graphs[0]
    with opened(place, graph, "fp32") as backend:
        given = feeds(place, backend, place.batches[1])
        first = backend.run(given)
        for _ in range(20):
            again = backend.run(given)
            for name, array in first.items():
                np.testing.assert_array_equal(array, again[name])


def test_threads_take_turns(place) -> None:
    with opened(place, place.bundle.spec.graphs[0], "fp32") as backend:
        given, answers = feeds(place, backend, place.batches[0]), []
        for _ in range(2):
            worker = threading.Thread(target=lambda: answers.append(backend.run(given)))
            worker.start()
            worker.join()
        here = backend.run(given)
    for answer in answers:
        for name, array in here.items():
            np.testing.assert_array_equal(array, answer[name])


def test_a_plan_that_is_none_is_refused(place) -> None:
    for plan in (b"no engine" * 99, b""):
        with pytest.raises(EngineRefused, match="cannot be loaded here"):
            TensorRtBackend(plan, open_cuda(place.library), mapped=False)


def test_a_damaged_timing_cache_is_no_hindrance(place, tmp_path: Path) -> None:
    options = Options(Settings(place.batches), place.library, tmp_path / "other")
    made = Engines(place.bundle, place.bundle.spec.graphs[0], options)
    timings = tmp_path / "other" / f"timings-{made.board.tensorrt}-sm{made.board.sm}.cache"
    timings.parent.mkdir()
    timings.write_bytes(b"no timings" * 50)
    backend, steps = made.exactly("fp32")
    assert backend is not None, [step.problem for step in steps]
    backend.close()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", PICTURES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_kernel_prepares_pictures_as_the_cpu_does(size: tuple[int, int], place) -> None:
    spec = place.bundle.spec
    if spec.resize != "letterbox":
        pytest.skip("this network is shown crops: see the next test")
    made = engines(place, spec.graphs[0])
    backend, _ = made.exactly("fp32")
    assert backend is not None
    with made.seeing(backend, "fp32") as seeing:
        assert isinstance(seeing, FrameBackend), "the kernel was not trusted; see the log"
        frame = picture(*size)
        for _ in range(3):
            answers, box = seeing.see(frame)
        images, expected_box = prepare(frame, spec)
        expected = seeing.run({"images": images})
    assert box == expected_box
    allowed = limit(f"{spec.graphs[0]}.fp16", spec)  # a pixel may be 1.5 of 255 away
    assert apart([expected], [answers], spec).within(allowed)


@pytest.mark.usefixtures("kernel")
def test_the_kernel_cuts_people_as_the_cpu_does(place_of_crops) -> None:
    """Three of them, one over the border, for each look; what else a look reads is a golden picture's."""
    place = place_of_crops
    spec, size = place.bundle.spec, (place.bundle.spec.width, place.bundle.spec.height)
    frame = picture(640, 480)
    regions = Regions.around(np.array([[40.0, 60, 90, 200], [-30, 100, 120, 150], [400, 20, 60, 90]]), size)
    for graph in spec.graphs:
        made = engines(place, graph)
        backend, _ = made.exactly("fp32")
        assert backend is not None
        with made.seeing(backend, "fp32") as seeing:
            assert isinstance(seeing, CropBackend), "the kernel was not trusted; see the log"
            others = feeds(place, backend, len(regions))
            others.pop("images")
            for _ in range(3):
                answers = seeing.see_regions(frame, regions, others)
            expected = seeing.run({"images": crop.prepare(frame, regions, spec), **others})
        assert apart([expected], [answers], spec).within(limit(f"{graph}.fp16", spec))


@pytest.mark.usefixtures("kernel")
def test_the_kernel_is_timed_beside_a_copy(place) -> None:
    """How fast it is, is for `python -m edgepose.runtime.trt.kernel_bench` to say, at a larger picture."""
    cubin = trt_engines.compiled(SOURCE.read_bytes(), require_board().sm)
    cuda = open_cuda(place.library)
    try:
        found = shares(cuda, cubin, place.bundle.spec, (64, 48), 3)
    finally:
        cuda.close()
    assert [share.format for share in found] == ["NV12", "RGBA", "BGR"]
    assert all(0 < share.low <= share.of_copy <= share.high for share in found)


def test_a_stream_gets_an_engine_whose_poses_are_the_cpus(place) -> None:
    """Of everybody in labelled pictures of whom the CPU is sure."""
    spec, pictures, people = place.bundle.spec, open_dataset(place.data), 0
    if spec.family not in DECODERS:
        pytest.skip("this network does not find people by itself")
    allowed = limit(f"{spec.graphs[0]}.fp16", spec)  # a pixel may be 1.5 of 255 away
    with (
        choose(place.bundle, "fp32", spec.graphs[0], 1, "gpu").backend as engine,
        choose(place.bundle, "fp32", spec.graphs[0], 1, "cpu").backend as cpu,
    ):
        assert not isinstance(engine, OnnxRuntimeBackend)
        for index in range(len(pictures)):
            frame = pictures[index].image
            found, expected = (Estimator(backend, spec)(frame) for backend in (engine, cpu))
            sure = expected.above(spec.score_threshold)
            if not len(sure):
                continue
            apart_px = np.abs(sure.keypoints[:, None] - found.keypoints[None]).max((2, 3))  # (P, N)
            scale = Letterbox.fit(pictures.size(index), (spec.width, spec.height)).scale_x
            assert (scale * apart_px.min(1) <= allowed.keypoint_px).all()
            assert (np.abs(sure.scores - found.scores[apart_px.argmin(1)]) <= allowed.score).all()
            people += len(sure)
    assert people, "the network is sure of nobody, so nothing was compared"


def run(*words: object) -> int:
    return guarded(lambda: edgepose.main([str(word) for word in words], standalone_mode=False))


def test_the_board_verifies_its_engines_and_enters_them(place, tmp_path: Path, capsys) -> None:
    """FP16 and FP32 must pass; what INT8 costs is for the ledger to say."""
    copy = shutil.copytree(place.bundle.folder, tmp_path / "bundle")
    gates = ("--max-ap-loss", 5, "--max-drift", 2, "--max-duplicates", 20)
    words = ("verify", copy, "--on-board", "--cuda", place.library, "--data", place.data, *gates, "--json")
    assert run(*words) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    stages = [row["stage"] for row in found["ledger"]["rows"]]
    assert {"engine INT8", "engine FP16", "engine FP32"} <= set(stages)
    assert not [line for line in found["ledger"]["verdict"] if "FP16" in line or "FP32" in line]
    entered = Bundle.open(copy).read("ledger.json", "a ledger")
    assert [row for row in entered["rows"] if row["board"] == found["board"]]


def test_the_stream_runs_an_engine(place, tmp_path: Path) -> None:
    if importlib.util.find_spec("gi") is None:
        pytest.skip("no GStreamer bindings (python3-gi)")
    if place.bundle.spec.family not in DECODERS:
        pytest.skip("this network does not find people by itself")
    poses = tmp_path / "poses.jsonl"
    source = "synthetic:seed=3,size=640x480,fps=10"
    words = (
        "stream",
        "--source",
        source,
        "--bundle",
        place.bundle.path,
        "--rtsp",
        ":0/pose",
        "--poses",
        poses,
    )
    assert run(*words, "--device", "gpu", "--duration", 2) == 0
    assert len(poses.read_text().splitlines()) >= 5
