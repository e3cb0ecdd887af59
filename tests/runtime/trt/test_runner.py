"""Running an engine on every release: ONNX Runtime's numbers, one thread at a time, nothing leaked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from packaging.version import Version
from standin_tensorrt.execution import ACTIVATIONS
from standin_tensorrt.onnx_rules import Graph
from trt_surface import RELEASES

from edgepose.compression.execution import rounding
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary
from edgepose.runtime.trt import board, driver
from edgepose.runtime.trt.build import Settings, build
from edgepose.runtime.trt.cuda import DeviceLost, OutOfMemory, open_cuda
from edgepose.runtime.trt.precision import Attempt, attempts, typings
from edgepose.runtime.trt.runner import EngineRefused, TensorRtBackend

BATCHES = Settings(batches=(1, 2, 4))
CUDA = os.environ.get("EDGEPOSE_TEST_CUDA", "pycuda")  # test_real_cuda.py runs this file with the real ones


def plan(bundle: Bundle, precision: str = "int8") -> tuple[bytes, Attempt]:
    attempt = attempts(precision, typings())[0]
    return build(bundle.graph("pose", attempt.view), attempt, BATCHES).plan, attempt


def opened(made: bytes, *, mapped: bool = False) -> TensorRtBackend:
    return TensorRtBackend(made, open_cuda(CUDA), mapped=mapped)


def images(batch: int, seed: int = 1) -> dict[str, Any]:
    return {"images": np.random.default_rng(seed).standard_normal((batch, 3, 32, 32), np.float32)}


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("release", RELEASES)
def test_every_batch_answers_as_onnx_runtime_does(release: str, mapped: bool, bundle, install) -> None:
    gpu = install(release)
    made, attempt = plan(bundle)
    sys.modules["tensorrt"]._plugins = False  # as in a process that only loads the engine
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1  # the order of its sums
    model = onnx.load(bundle.graph("pose", attempt.view))
    if Version(onnxruntime.__version__) < Version("1.30"):  # it cuts half quotients off
        model = rounding(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    with opened(made, mapped=mapped) as backend:
        assert sys.modules["tensorrt"]._plugins  # an engine with a plugin in it is not loaded without
        kept = []
        for batch in (3, 1, 4, 2):
            feeds = images(batch, batch)
            answers = backend.run(feeds)
            expected = session.run(list(answers), feeds)
            for found, wanted in zip(answers.values(), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
            kept.append((answers, {name: array.copy() for name, array in answers.items()}))
    for answers, copies in kept:  # arrays of their own: later runs and the end left them alone
        for name, array in answers.items():
            np.testing.assert_array_equal(array, copies[name])
    assert gpu.blocks == {}
    assert gpu.pinned == {}
    assert not gpu.has_context()


def test_inputs_lie_in_memory_that_a_jetsons_gpu_caches(bundle, install) -> None:
    gpu = install("10.3")
    places = []
    with opened(plan(bundle)[0], mapped=True) as backend, backend.owned():
        backend.run_written("images", (1, 3, 32, 32), places.append, "written", {})
        assert places[0].address in gpu.blocks
        assert len(gpu.mapped()) == 4  # the outputs


def test_integers_of_64_bits_come_back_as_the_release_has_them(tmp_path, install) -> None:
    """8.x narrows them to 32 bits, 10.x does not: the buffers follow the engine, not the file."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 9])],
        [value("y", TensorProto.INT64, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "g.onnx")
    array = np.random.default_rng(0).standard_normal((2, 9), np.float32)
    for release, kind in (("8.6", np.int32), ("10.3", np.int64)):
        install(release)
        made = build(tmp_path / "g.onnx", attempts("fp32", typings())[0], Settings(batches=(2, 2, 2))).plan
        with opened(made) as backend:
            found = backend.run({"x": array})["y"]
        assert found.dtype == kind
        np.testing.assert_array_equal(found, array.argmax(1))


def test_what_the_engine_does_not_take_is_said_and_harms_nothing(bundle, install) -> None:
    install("10.3")
    with opened(plan(bundle)[0]) as backend:
        wrong = {
            "shape": ({"images": np.zeros((5, 3, 32, 32), np.float32)}, r"takes \(1, 3, 32, 32\) to \(4, 3"),
            "type": ({"images": np.zeros((1, 3, 32, 32))}, "takes float32, given was float64"),
            "name": ({"image": np.zeros((1, 3, 32, 32), np.float32)}, "takes images; given were image"),
        }
        for feeds, sentence in wrong.values():
            with pytest.raises(EdgeposeError, match=sentence):
                backend.run(feeds)
        assert backend.run(images(2))["scores"].shape == (2, 4)


def test_all_is_freed_inside_the_context_even_while_an_error_holds_its_traceback(bundle, install) -> None:
    """An execution context that outlives its CUDA context takes the process down when it goes."""
    gpu = install("10.3")
    with pytest.raises(EdgeposeError) as caught, opened(plan(bundle)[0]) as backend:
        backend.run({"images": np.zeros((5, 3, 32, 32), np.float32)})
    assert caught.value.__traceback__ is not None
    assert (gpu.blocks, gpu.pinned) == ({}, {})


@pytest.mark.parametrize("kind", ["garbage", "cut", "empty", "other board", "other release"])
def test_a_plan_that_does_not_belong_here_is_never_run(kind: str, bundle, install) -> None:
    gpu = install("10.3")
    made = plan(bundle)[0]
    made = {"garbage": b"no engine" * 99, "cut": made[:-40], "empty": b""}.get(kind, made)
    if kind == "other board":
        gpu.sm = 72
    if kind == "other release":
        gpu = install("10.7")
    with pytest.raises(EngineRefused, match=r"cannot be loaded here .* build it again: edgepose build"):
        opened(made)
    assert (gpu.blocks, gpu.pinned, gpu.has_context()) == ({}, {}, False)


@pytest.mark.parametrize(
    "left", [-1000, 1000, ACTIVATIONS + 1000], ids=["for the weights", "for a context", "for the buffers"]
)
def test_memory_that_does_not_suffice_is_a_hardware_error(left: int, bundle, install) -> None:
    gpu = install("10.3")
    made, attempt = plan(bundle)
    gpu.total = Graph(bundle.graph("pose", attempt.view).read_bytes()).bytes_of_weights() + left
    with pytest.raises(OutOfMemory, match="no memory left for this engine") as caught:
        opened(made)
    assert isinstance(caught.value, HardwareError)
    assert (gpu.blocks, gpu.pinned) == ({}, {})


def test_a_lost_gpu_is_said_once_and_for_ever_and_closing_does_not_fail(bundle, install) -> None:
    gpu = install("10.3")
    backend = opened(plan(bundle)[0])
    backend.run(images(1))
    gpu.faults.lost = True
    with pytest.raises(DeviceLost, match="engine is lost"):
        backend.run(images(1))
    gpu.faults.lost = False
    with pytest.raises(DeviceLost, match="engine is lost"):  # what it computes now cannot be trusted
        backend.run(images(1))
    gpu.faults.lost = True
    backend.close()
    backend.close()


def test_threads_may_take_turns_but_not_run_at_once(bundle, install, monkeypatch) -> None:
    install("10.3")
    with opened(plan(bundle)[0]) as backend:
        answers: list[Any] = []
        worker = threading.Thread(target=lambda: answers.append(backend.run(images(1))))
        worker.start()
        worker.join()
        np.testing.assert_array_equal(answers[0]["scores"], backend.run(images(1))["scores"])

        inside, leave = threading.Event(), threading.Event()

        def slow(*_: Any) -> dict[str, Any]:
            inside.set()
            leave.wait()
            return {}

        monkeypatch.setattr(backend, "_run", slow)
        worker = threading.Thread(target=lambda: backend.run(images(1)))
        worker.start()
        inside.wait()
        with pytest.raises(RuntimeError, match="two threads"):
            backend.run(images(1))
        leave.set()
        worker.join()


def test_the_driver_is_asked_before_tensorrt_is_touched(install, monkeypatch) -> None:
    gpu = install("10.16")
    gpu.faults.no_driver = True
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # it would say MissingLibrary if it came first
    with pytest.raises(HardwareError, match="cuInit says error 100"):
        board.require_board()


def test_a_machine_without_the_driver_or_without_tensorrt_is_told_so(install, monkeypatch) -> None:
    install("10.3")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingLibrary, match="comes with JetPack"):
        board.require_board()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingLibrary, match="pip install pycuda"):
        open_cuda()
    with pytest.raises(MissingLibrary, match="pip install 'cuda-bindings"):
        open_cuda("cuda-python")
    with pytest.raises(EdgeposeError, match="'cupy': choose one of pycuda, cuda-python"):
        open_cuda("cupy")
    monkeypatch.setattr(driver, "load", lambda: (_ for _ in ()).throw(OSError("no such file")))
    with pytest.raises(HardwareError, match=r"libcuda\.so\.1 cannot be loaded"):
        board.require_board()


@pytest.mark.parametrize(
    ("version", "l4t", "sentence"),
    [
        ("8.2.1", "35.1", "written for 8.5 up to"),
        ("12.0.0", "none", "written for 8.5 up to"),
        ("11.4.0.106", "39.2", "does not support Jetson"),
        ("11.0.0.114", "39.2", "does not support Jetson"),
        ("11.4.1.5", "39.2", ""),
        ("11.4.0.106", "none", ""),
        ("8.5.2.2", "35.3.1", ""),
    ],
)
def test_releases_that_do_not_fit_the_board_are_refused(version, l4t, sentence, install, monkeypatch) -> None:
    install("10.3")
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", version)
    monkeypatch.setattr(board, "jetson_linux", lambda: None if l4t == "none" else l4t)
    if not sentence:
        assert board.require_board().l4t == l4t
        return
    with pytest.raises(EdgeposeError, match=sentence):
        board.require_board()


def test_the_board_is_known_by_what_ties_engines(install) -> None:
    gpu = install("10.3")
    gpu.sm, gpu.integrated = 72, False
    assert board.require_board() == board.Board("10.3.0", 72, "36.4.3", "Orin", False)


def test_importing_the_modules_loads_no_library() -> None:
    """In a process of its own: this one has everything loaded."""
    program = (
        "import sys, pkgutil, importlib, edgepose.runtime.trt as trt\n"
        "for m in pkgutil.iter_modules(trt.__path__): importlib.import_module(trt.__name__ + '.' + m.name)\n"
        "print(sorted({'tensorrt', 'pycuda', 'cuda', 'onnxruntime'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
