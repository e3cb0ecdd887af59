"""From a bundle to a running engine: proven before it goes live, else loudly given up for a safer one."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from standin_gpu import Gpu
from trt_surface import RELEASES

from edgepose.runtime.backend import open_backend
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary
from edgepose.runtime.topdown.twostage import ORDER
from edgepose.runtime.trt import engines as module
from edgepose.runtime.trt.build import Settings
from edgepose.runtime.trt.cache import PLAN
from edgepose.runtime.trt.cuda import DeviceLost, OutOfMemory
from edgepose.runtime.trt.engines import Engines, Options, Step
from edgepose.runtime.trt.frames import FrameEngine
from edgepose.runtime.trt.runner import TensorRtBackend

ENGINES = (TensorRtBackend, FrameEngine)  # the latter where there is a C++ compiler for the kernel


def engines(bundle: Bundle, root: Path, **choices: Any) -> Engines:
    return Engines(bundle, "pose", Options(root=root, **choices))


def way(step: Step) -> tuple[str, str, bool]:
    return step.precision, step.typing, not step.problem


def live(bundle: Bundle, root: Path, precision: str = "int8", **choices: Any) -> tuple[Any, list[Step]]:
    backend, steps = engines(bundle, root, **choices).live(precision)
    if backend is not None:
        backend.close()
    return backend, steps


@pytest.mark.parametrize("release", RELEASES)
def test_int8_goes_live_when_nothing_is_wrong(release: str, bundle, install, tmp_path) -> None:
    install(release)
    backend, steps = live(bundle, tmp_path)
    typing = "weak" if release.startswith("8.") else "strong"
    assert isinstance(backend, ENGINES)
    assert [way(step) for step in steps] == [("int8", typing, True)]
    report = steps[0].report
    assert report["golden"]["keypoint_px"] < 0.01  # the stand-in computes what was recorded
    assert report["layers"]["by_precision"].keys() == {"int8"}
    assert report["bytes"] > 1000


LADDERS: dict[str, tuple[str, dict[str, Any], list[tuple[str, str, bool]]]] = {
    "strong INT8 fails, weak works": (
        "10.16",
        {"strong_int8_fails": True},
        [("int8", "strong", False), ("int8", "weak", True)],
    ),
    "no INT8 on 10.3": (
        "10.3",
        {"unbuildable": {"int8"}},
        [("int8", "strong", False), ("int8", "weak", False), ("fp16", "strong", True)],
    ),
    "no INT8 on 11.4": (
        "11.4",
        {"unbuildable": {"int8"}},
        [("int8", "strong", False), ("fp16", "strong", True)],
    ),
    "wrong INT8 on 8.6": (
        "8.6",
        {"wrong_precisions": {"int8"}},
        [("int8", "weak", False), ("fp16", "weak", True)],
    ),
    "wrong INT8 and FP16": (
        "11.0",
        {"wrong_precisions": {"int8", "fp16"}},
        [("int8", "strong", False), ("fp16", "strong", False), ("fp32", "strong", True)],
    ),
    "all wrong": (
        "8.5",
        {"wrong_precisions": {"int8", "fp16", "fp32"}},
        [("int8", "weak", False), ("fp16", "weak", False), ("fp32", "weak", False)],
    ),
}


def broken(gpu: Gpu, faults: dict[str, Any]) -> None:
    for name, value in faults.items():
        setattr(gpu.faults, name, value)


@pytest.mark.parametrize("case", LADDERS)
def test_an_engine_that_fails_gives_way_loudly(case: str, bundle, install, tmp_path, caplog) -> None:
    release, faults, expected = LADDERS[case]
    gpu = install(release)
    broken(gpu, faults)
    backend, steps = live(bundle, tmp_path)
    assert [way(step) for step in steps] == expected
    assert (backend is not None) == expected[-1][2]
    for step in steps:
        if step.problem:
            assert f"no {step.precision} engine ({step.typing} typing): {step.problem}" in caplog.text
    wrong = [step for step in steps if step.precision in faults.get("wrong_precisions", ())]
    assert all("does not reproduce the golden vectors" in step.problem for step in wrong)
    assert (gpu.blocks, gpu.pinned) == ({}, {})


def test_after_the_last_rung_onnx_runtime_runs(bundle, install, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path))
    install("10.3").faults.wrong_precisions = {"int8", "fp16", "fp32"}
    feeds = {"images": np.zeros((1, 3, 32, 32), np.float32)}
    with (
        open_backend(bundle, "int8", device="gpu", threads=1) as backend,
        open_backend(bundle, "int8", threads=1) as cpu,
    ):
        assert isinstance(backend, OnnxRuntimeBackend)
        assert "ONNX Runtime runs the int8 model" in caplog.text
        np.testing.assert_array_equal(backend.run(feeds)["scores"], cpu.run(feeds)["scores"])


def test_open_backend_opens_an_engine_and_refuses_other_devices(
    bundle, install, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path))
    install("10.3")
    with open_backend(bundle, "default", device="gpu") as backend:
        assert isinstance(backend, ENGINES)
    with pytest.raises(EdgeposeError, match="'tpu': choose one of auto, cpu, gpu"):
        open_backend(bundle, "int8", device="tpu")
    with pytest.raises(EdgeposeError, match="'int4': choose one of int8, fp16, fp32"):
        open_backend(bundle, "int4", device="gpu")


def test_what_the_machine_lacks_is_no_reason_to_go_on(bundle, install, tmp_path) -> None:
    install("10.3").faults.no_driver = True
    with pytest.raises(HardwareError, match="does not answer"):
        engines(bundle, tmp_path)


def test_a_lost_gpu_ends_the_ladder(bundle, install, tmp_path, monkeypatch) -> None:
    install("10.3")

    def lost(*_: Any) -> Any:
        raise DeviceLost("gone")

    monkeypatch.setattr(TensorRtBackend, "run", lost)
    with pytest.raises(DeviceLost):
        live(bundle, tmp_path)


def test_nothing_is_built_twice_unless_asked(bundle, install, tmp_path, builds) -> None:
    gpu = install("10.3")
    live(bundle, tmp_path)
    _, steps = live(bundle, tmp_path)
    assert builds == ["pose.int8.trt-typed.onnx"]
    assert steps[0].report["layers"]["total"] > 5  # the report of the build
    live(bundle, tmp_path, rebuild=True)
    live(bundle, tmp_path, settings=Settings((1, 1, 2)))
    gpu.sm = 72
    live(bundle, tmp_path)
    assert builds == ["pose.int8.trt-typed.onnx"] * 4


def test_a_failed_build_is_not_tried_again_unless_asked(bundle, install, tmp_path, builds) -> None:
    gpu = install("11.4")
    gpu.faults.unbuildable = {"int8"}
    live(bundle, tmp_path)
    gpu.faults.unbuildable = set()
    _, steps = live(bundle, tmp_path)
    assert "remembered from its build; try again" in steps[0].problem
    assert builds == ["pose.int8.trt-typed.onnx", "pose.fp16.onnx"]
    _, steps = live(bundle, tmp_path, rebuild=True)
    assert [way(step) for step in steps] == [("int8", "strong", True)]


def test_an_engine_that_finds_no_memory_is_no_foreign_one(bundle, install, tmp_path, builds) -> None:
    """It is not built again, and lies there for better times."""
    gpu = install("11.4")
    live(bundle, tmp_path, "fp32")
    room, gpu.total = gpu.total, 1000
    _, steps = live(bundle, tmp_path, "fp32")
    assert "no memory left for this engine" in steps[0].problem
    assert "OutOfMemory" in steps[0].problem
    gpu.total = room
    assert live(bundle, tmp_path, "fp32")[0] is not None
    assert builds == ["pose.fp32.onnx"]


def test_a_build_that_fails_costs_no_engine_that_was_there(bundle, install, tmp_path, builds) -> None:
    gpu = install("11.4")
    live(bundle, tmp_path, "fp32")
    gpu.faults.unbuildable = {"fp32"}
    _, steps = live(bundle, tmp_path, "fp32", rebuild=True)
    assert "Could not find any implementation" in steps[0].problem
    assert live(bundle, tmp_path, "fp32")[0] is not None
    assert builds == ["pose.fp32.onnx"] * 2


def test_no_minutes_are_spent_before_the_cuda_library_is_asked_for(
    bundle, install, tmp_path, builds, monkeypatch
) -> None:
    install("11.4")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingLibrary, match="pip install pycuda"):
        live(bundle, tmp_path)
    assert builds == []


@pytest.mark.parametrize("failing", ["count_layers", "TensorRtBackend"])
def test_what_was_built_is_kept_before_it_is_looked_into(
    failing: str, bundle, install, tmp_path, builds, monkeypatch
) -> None:
    install("11.4")

    def exhausted(*_: Any, **__: Any) -> Any:
        raise OutOfMemory("nothing left")

    with monkeypatch.context() as patch:
        patch.setattr(module, failing, exhausted)
        _, steps = live(bundle, tmp_path, "fp32")
    assert steps[0].problem == "nothing left"
    _, steps = live(bundle, tmp_path, "fp32")
    assert steps[0].report["layers"]["total"] > 5
    assert builds == ["pose.fp32.onnx"]


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_engine_is_built_again(damage: str, bundle, install, tmp_path, builds, caplog) -> None:
    """`foreign`: whole by its hash, but refused by TensorRT."""
    install("10.3")
    live(bundle, tmp_path)
    plan = next(tmp_path.rglob(PLAN))
    if damage == "cut":
        plan.write_bytes(plan.read_bytes()[:-1])
    else:
        record = plan.with_name("engine.json")
        values = json.loads(record.read_text())
        plan.write_bytes(b"of a TensorRT with another magic")
        values["plan_sha256"] = hashlib.sha256(plan.read_bytes()).hexdigest()
        record.write_text(json.dumps(values))
    backend, steps = live(bundle, tmp_path)
    assert isinstance(backend, ENGINES)
    assert [way(step) for step in steps] == [("int8", "strong", True)]
    assert len(builds) == 2
    assert ("damaged" if damage == "cut" else "cannot be loaded here") in caplog.text


def test_golden_vectors_are_asked_at_every_start_not_only_after_the_build(bundle, install, tmp_path) -> None:
    gpu = install("11.4")
    live(bundle, tmp_path)
    gpu.faults.wrong_precisions = {"int8"}
    _, steps = live(bundle, tmp_path)
    assert [way(step) for step in steps] == [("int8", "strong", False), ("fp16", "strong", True)]


def without(bundle: Bundle, folder: Path, *names: str) -> Bundle:
    content = folder / "content"
    content.mkdir()
    for name in bundle.files:
        if name not in names:
            (content / name).write_bytes((bundle.folder / name).read_bytes())
    return publish(content, folder / "smaller", bundle.spec, {})


def test_bundles_that_lack_something(bundle, install, tmp_path) -> None:
    install("11.4")
    no_int8 = without(bundle, tmp_path, "pose.int8.trt-typed.onnx")
    with pytest.raises(EdgeposeError, match=r"has no pose\.int8\.trt-typed\.onnx"):
        live(no_int8, tmp_path / "engines")
    (tmp_path / "b").mkdir()
    no_golden = without(bundle, tmp_path / "b", "golden.npz")
    with pytest.raises(EdgeposeError, match=r"has no golden\.npz; export it again"):
        live(no_golden, tmp_path / "engines")


def test_a_view_that_only_the_second_way_needs_may_be_missing(bundle, install, tmp_path) -> None:
    install("10.3").faults.strong_int8_fails = True
    smaller = without(bundle, tmp_path, "pose.int8.trt.onnx")
    _, steps = live(smaller, tmp_path / "engines")
    assert [way(step) for step in steps] == [
        ("int8", "strong", False),
        ("int8", "weak", False),
        ("fp16", "strong", True),
    ]
    assert "has no pose.int8.trt.onnx" in steps[1].problem


def test_the_best_precision_is_remembered_for_this_graph_and_board(bundle, install, tmp_path) -> None:
    gpu = install("10.3")
    made = engines(bundle, tmp_path, settings=Settings((1, 2, 4), sparsity=True))
    assert made.remembered() == ("int8", made)
    made.keep_default("fp16", {})
    best, others = engines(bundle, tmp_path).remembered()
    assert (best, others.settings) == ("fp16", made.settings)
    gpu.sm = 72
    assert engines(bundle, tmp_path).remembered()[0] == "int8"


@pytest.mark.parametrize(
    ("file", "is_another"),
    [("pose.int8.trt-typed.onnx", True), ("pose.scales.json", True), ("golden.npz", False)],
)
def test_what_was_chosen_holds_for_no_other_files(
    file: str, is_another: bool, bundle, install, tmp_path
) -> None:
    """INT8 made anew is asked anew: the graph in full precision is the same."""
    install("10.3")
    engines(bundle, tmp_path).keep_default("cpu", {"settings": asdict(Settings()), "cuda": "pycuda"})
    content = Path(shutil.copytree(bundle.folder, tmp_path / "content"))
    if file.endswith(".onnx"):
        model = onnx.load(content / file)
        model.doc_string = "calibrated again"
        onnx.save(model, content / file)
    else:
        (content / file).write_bytes((content / file).read_bytes() + b" ")
    others = engines(publish(content, tmp_path / "again", bundle.spec, {}), tmp_path)
    assert others.remembered()[0] == ("int8" if is_another else "cpu")


def test_open_backend_takes_the_batches_that_were_built_for(bundle, install, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path))
    install("10.3")
    made = engines(bundle, tmp_path, settings=Settings((2, 3, 4)))
    made.keep_default("fp16", {})
    for precision in ("default", "int8"):
        with open_backend(bundle, precision, device="gpu") as backend:
            answers = backend.run({"images": np.zeros((4, 3, 32, 32), np.float32)})
    assert answers["scores"].shape == (4, 4)


def test_engines_that_take_no_single_picture_are_proven_too(bundle, install, tmp_path) -> None:
    install("11.4")
    _, steps = live(bundle, tmp_path, settings=Settings((4, 4, 4)))
    assert [way(step) for step in steps] == [("int8", "strong", True)]


def test_a_folder_that_cannot_be_written_is_said(bundle, install, tmp_path) -> None:
    install("10.3")
    (tmp_path / "file").touch()
    with pytest.raises(EdgeposeError, match=r"engines cannot be kept there .* EDGEPOSE_ENGINES"):
        live(bundle, tmp_path / "file")


def _live_in_a_process(bundle: Bundle, root: Path, answers: Any) -> None:
    backend, steps = live(bundle, root)
    answers.put((backend is not None, [way(step) for step in steps]))


def test_two_processes_starting_at_once_build_one_engine(bundle, install, tmp_path, caplog) -> None:
    install("10.3")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_live_in_a_process, args=(bundle, tmp_path, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [(True, [("int8", "strong", True)])] * 2
    assert len(list(tmp_path.rglob(PLAN))) == 1


def test_weak_fp16_is_proven_against_the_half_precision_answers(bundle, install, tmp_path) -> None:
    """It is made of the float32 file, whose tolerance no FP16 engine could meet."""
    install("8.6")
    _, steps = live(bundle, tmp_path, "fp16")
    assert (steps[0].view, steps[0].problem) == ("fp32", "")
    # The stand-in computes in float32: that far the recorded half precision is from it.
    assert 0.001 < steps[0].report["golden"]["keypoint_px"] < 1


@pytest.mark.parametrize("graph", ["coarse", "fine"])
def test_a_graph_that_reads_anothers_outputs_is_proven_on_them(
    graph: str, two_graphs, install, tmp_path
) -> None:
    gpu = install("10.3")
    made = Engines(two_graphs, graph, Options(root=tmp_path / "engines"))
    backend, steps = made.live("fp32")
    assert backend is not None
    assert set(backend.inputs) == {"coarse": {"images"}, "fine": {"images", "tokens", ORDER}}[graph]
    backend.close()
    gpu.faults.wrong_precisions = {"fp32"}
    backend, steps = made.live("fp32")
    assert backend is None
    assert "context" in steps[0].problem


@pytest.mark.parametrize("release", ["10.3", "10.16"])
def test_a_build_is_heard_beside_a_running_engine(release, bundle, install, tmp_path) -> None:
    """TensorRT heeds one logger a process; what was short of memory once is tried again."""
    gpu = install(release)
    first, _ = engines(bundle, tmp_path).exactly("fp16")
    room, gpu.total = gpu.total, gpu.total - gpu.free() + 1000
    assert engines(bundle, tmp_path).exactly("fp32")[0] is None
    problem = engines(bundle, tmp_path).exactly("fp32")[1][0].problem
    gpu.total = room
    again, _ = engines(bundle, tmp_path).exactly("fp32")
    for backend in (first, again):
        assert backend is not None
        backend.close()
    assert "the GPU's memory is exhausted" in problem


def test_what_was_short_of_memory_in_warnings_alone_is_tried_again(bundle, install, tmp_path) -> None:
    """As on a Jetson whose browser is open: tactics are skipped, and then there is none."""
    gpu = install("10.3")
    gpu.faults.skips_tactics = True
    backend, steps = engines(bundle, tmp_path).exactly("fp32")
    assert backend is None
    assert "the GPU's memory is exhausted" in steps[0].problem
    assert "smaller --workspace" in steps[0].problem
    gpu.faults.skips_tactics = False
    backend, _ = engines(bundle, tmp_path).exactly("fp32")
    assert backend is not None
    backend.close()
