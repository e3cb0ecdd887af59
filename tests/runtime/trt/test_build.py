"""Building on every release: what is asked of TensorRT, and what a user is told when it refuses."""

from __future__ import annotations

import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from trt_surface import RELEASES

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.trt.build import BuildFailed, Built, Settings, build
from edgepose.runtime.trt.cuda import OutOfMemory
from edgepose.runtime.trt.listener import Said
from edgepose.runtime.trt.monitor import Phases, monitor
from edgepose.runtime.trt.precision import LADDER, Attempt, attempts, network_flags, rungs, typings

WAYS = (
    dict.fromkeys(("8.5", "8.6"), ("weak",))
    | dict.fromkeys(("10.3", "10.7", "10.13", "10.16"), ("strong", "weak"))
    | dict.fromkeys(("11.0", "11.4"), ("strong",))
)


def built(bundle: Bundle, attempt: Attempt, settings: Settings | None = None, timings: bytes = b"") -> Built:
    return build(bundle.graph("pose", attempt.view), attempt, settings or Settings(), timings)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that builders were given."""
    seen: list[Any] = []
    from standin_tensorrt.behaviour import Builder

    original = Builder.create_builder_config

    def recorded(self: Any) -> Any:
        seen.append(original(self))
        return seen[-1]

    monkeypatch.setattr(Builder, "create_builder_config", recorded)
    return seen


@pytest.mark.parametrize("release", RELEASES)
def test_every_precision_is_built_by_every_way_of_the_release(release: str, bundle, install) -> None:
    install(release)
    assert typings() == WAYS[release]
    for precision in LADDER:
        for attempt in attempts(precision, typings()):
            made = built(bundle, attempt, Settings(batches=(1, 2, 4)))
            assert len(made.plan) > 1000
            assert made.timing_cache.endswith(b"sm87")
    assert sys.modules["tensorrt"]._plugins  # RoiAlign is one in several releases


@pytest.mark.parametrize(
    ("release", "precision", "flags"),
    [
        ("8.6", "int8", {"INT8", "FP16", "TF32"}),
        ("8.6", "fp16", {"FP16", "TF32"}),
        ("8.6", "fp32", set()),
        ("10.3", "int8", {"TF32"}),
        ("11.4", "fp16", {"TF32"}),
        ("11.4", "fp32", set()),
    ],
)
def test_precision_is_told_by_flags_or_by_types(release, precision, flags, bundle, install, asked) -> None:
    """NVIDIA's rule: a precision flag is an error on a strongly typed network, and all a weak one goes by."""
    install(release)
    built(bundle, attempts(precision, typings())[0])
    assert asked[0]._sim.flags == flags


def test_what_was_chosen_reaches_tensorrt(bundle, install, asked) -> None:
    gpu = install("10.3")
    gpu.dla_cores = 1
    attempt = attempts("fp16", typings())[0]
    built(bundle, attempt, Settings((1, 4, 8), 512, 5, sparsity=True))
    built(bundle, attempt, Settings((4, 4, 4), dla_core=0))
    config, on_dla = asked
    assert config._sim.pools == {"WORKSPACE": 512 << 20}
    assert config.builder_optimization_level == 5
    assert "SPARSE_WEIGHTS" in config._sim.flags
    assert "GPU_FALLBACK" in on_dla._sim.flags
    assert (on_dla.DLA_core, on_dla.default_device_type.name) == (0, "DLA")
    assert config._sim.profiles[0]._sim.shapes == {"images": [(1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32)]}
    assert config.profiling_verbosity.name == "DETAILED"


def test_network_flags_follow_the_names(install) -> None:
    install("8.6")
    assert network_flags("weak") == 1
    install("10.3")
    assert (network_flags("weak"), network_flags("strong")) == (1, 3)
    install("11.4")
    assert network_flags("strong") == 1  # STRONGLY_TYPED is number 0 there


def test_the_ladder_goes_down() -> None:
    assert rungs("int8") == ("int8", "fp16", "fp32")
    assert rungs("fp32") == ("fp32",)
    with pytest.raises(EdgeposeError, match="'int4': choose one of int8, fp16, fp32"):
        rungs("int4")


def test_timings_are_used_again_and_foreign_or_damaged_ones_are_not(bundle, install, caplog) -> None:
    gpu = install("10.3")
    attempt = attempts("fp32", typings())[0]
    first = built(bundle, attempt).timing_cache
    assert built(bundle, attempt, timings=first).timing_cache == first
    assert not caplog.records
    gpu.sm = 72
    assert built(bundle, attempt, timings=first).timing_cache != first
    assert "damaged or of another board" in caplog.text
    caplog.clear()
    built(bundle, attempt, timings=b"\x00garbage")
    assert "damaged or of another board" in caplog.text


REFUSALS = {
    "workspace": (Settings(workspace_mib=0), "larger --workspace than 0"),
    "level on 8.5": (Settings(level=5), "has no levels"),
    "no DLA": (Settings(dla_core=0), "has 0 for TensorRT"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_board_cannot_do_is_said(case: str, bundle, install) -> None:
    install("8.5")
    settings, sentence = REFUSALS[case]
    with pytest.raises(EdgeposeError, match=sentence):
        built(bundle, attempts("fp16", typings())[0], settings)


def test_the_dla_takes_no_pairs(bundle, install) -> None:
    install("10.3").dla_cores = 2
    with pytest.raises(BuildFailed, match="build with --precision fp16"):
        built(bundle, attempts("int8", typings())[0], Settings(dla_core=1))


def test_exhausted_memory_is_a_hardware_error(bundle, install) -> None:
    install("10.3").total = 1000
    with pytest.raises(OutOfMemory, match="memory is exhausted") as caught:
        built(bundle, attempts("fp16", typings())[0])
    assert isinstance(caught.value, HardwareError)


@pytest.mark.parametrize("batches", [(0, 1, 1), (2, 1, 4), (1, 4, 2)])
def test_batches_out_of_order_are_refused(batches) -> None:
    with pytest.raises(EdgeposeError, match="smallest, best, largest"):
        Settings(batches)


def one_node(path: Path, kind: str, *, opset: int = 17, shape: Any = (1, 4, 4), **constants: Any) -> Path:
    value = helper.make_tensor_value_info
    node = helper.make_node(kind, ["x", *constants], ["y"], kind, domain="")
    ends = [value(name, TensorProto.FLOAT, list(shape)) for name in ("x", "y")]
    tensors = [onnx.numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in constants.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


FP32 = Attempt("fp32", "weak", "fp32")


@pytest.mark.parametrize(
    ("release", "kind", "opset", "sentence"),
    [
        ("8.5", "LayerNormalization", 17, "LayerNormalization needs TensorRT 8.6 or newer"),
        ("8.6", "Gelu", 20, "Gelu needs TensorRT 10.1 or newer"),
        ("8.6", "Relu", 19, "opset 19 needs TensorRT 10.1 or newer .* opset 19 is newer than 17"),
        ("10.3", "DynamicQuantizeLinear", 17, "No importer registered for op: DynamicQuantizeLinear"),
    ],
)
def test_a_refused_graph_is_explained(release, kind, opset, sentence, tmp_path, install, monkeypatch) -> None:
    install(release)
    monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)  # the shapes do not matter here
    constants = {"scale": np.ones(4)} if kind == "LayerNormalization" else {}
    path = one_node(tmp_path / "g.onnx", kind, opset=opset, **constants)
    with pytest.raises(BuildFailed, match=sentence):
        build(path, FP32, Settings())


def test_a_newer_release_takes_it(tmp_path, install) -> None:
    install("10.3")
    assert build(one_node(tmp_path / "g.onnx", "Gelu", opset=20), FP32, Settings()).plan


def test_a_file_that_is_no_graph_is_refused(tmp_path, install) -> None:
    install("10.3")
    (tmp_path / "g.onnx").write_bytes(b"hello")
    with pytest.raises(BuildFailed, match=r"g\.onnx: TensorRT 10\.3\.0 cannot read it: Failed to parse"):
        build(tmp_path / "g.onnx", FP32, Settings())


def test_shapes_must_be_open_in_the_batch_only(tmp_path, install) -> None:
    install("10.3")
    with pytest.raises(EdgeposeError, match="open beyond the batch"):
        build(one_node(tmp_path / "g.onnx", "Relu", shape=("n", "m", 4)), FP32, Settings())
    with pytest.raises(EdgeposeError, match="fixed at 1; build with --batch 1"):
        build(one_node(tmp_path / "g.onnx", "Relu"), FP32, Settings(batches=(2, 2, 2)))
    assert build(one_node(tmp_path / "g.onnx", "Relu"), FP32, Settings()).plan


def test_the_dla_takes_one_batch_size(bundle, install) -> None:
    """NVIDIA's manual: with an open one its layers run on the GPU, which only the log says."""
    install("10.3").dla_cores = 2
    with pytest.raises(EdgeposeError, match=r"the DLA takes one batch size; add --batch 1"):
        built(bundle, attempts("fp16", typings())[0], Settings((1, 4, 16), dla_core=1))


@pytest.mark.parametrize(
    ("release", "kind", "name"),
    [
        *((release, Said, "add") for release in ("8.6", "10.3", "11.4")),
        *((release, Phases, "step") for release in ("10.3", "11.4")),  # 8.6 has no progress monitor
    ],
)
def test_ctrl_c_in_a_callback_ends_the_build(release, kind, name, bundle, install, monkeypatch) -> None:
    """NVIDIA's bindings print what a callback raises; a cancelled build is no refusal of the network."""
    install(release)
    monkeypatch.setattr(kind, name, lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        built(bundle, attempts("fp32", typings())[0])


def test_what_tensorrt_says_is_kept_but_not_for_ever() -> None:
    said = Said()
    for number in range(10_000):
        said.add("WARNING", f"warning {number}")
    said.add("ERROR", "[defaultAllocator.cpp] Cuda error: out of memory")
    assert said.lines[0] != "WARNING: warning 0"
    assert len(said.lines) < 100
    assert said.why() == "[defaultAllocator.cpp] Cuda error: out of memory"
    assert said.out_of_memory()


def test_a_reason_is_given_once_however_often_tensorrt_gives_it(tmp_path, install, monkeypatch) -> None:
    install("8.6")
    monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)
    value = helper.make_tensor_value_info
    names = ["x", *(f"t{index}" for index in range(30)), "y"]
    nodes = [helper.make_node("Gelu", [a], [b]) for a, b in pairwise(names)]
    ends = [value(name, TensorProto.FLOAT, [1, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildFailed) as caught:
        build(tmp_path / "g.onnx", FP32, Settings())
    assert str(caught.value).count("No importer registered") == 1


class Bar:
    """Records what a rich progress bar is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def record(*args: Any, **kwargs: Any) -> int:
            self.calls.append((name, *args, *kwargs.values()))
            return len(self.calls)

        return record


@pytest.mark.parametrize("release", ["8.6", "10.3"])
def test_progress_is_shown_where_the_release_tells_it(release, bundle, install, monkeypatch) -> None:
    install(release)
    bar = Bar()
    told = monitor(Phases(bar), ())  # type: ignore[arg-type]
    assert (told is None) == (release == "8.6")
    monkeypatch.setattr("edgepose.runtime.trt.build.monitor", lambda phases, signals: told)
    built(bundle, attempts("fp32", typings())[0])
    names = [call[0] for call in bar.calls]
    expected = ["add_task"] * 2 + ["update", "remove_task"] * 2
    assert names == ([] if release == "8.6" else expected)


def test_the_parser_lives_as_long_as_its_weights_are_needed(bundle, install) -> None:
    """The stand-in tells when the parser is gone before the build, as at the end of a function."""
    from standin_tensorrt import WouldCrash

    install("10.3")
    trt = sys.modules["tensorrt"]

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            pass

    def parsed(network: Any) -> None:
        assert trt.OnnxParser(network, logger).parse(bundle.graph("pose", "fp32").read_bytes())

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parsed(network)
    with pytest.raises(WouldCrash, match="parser"):
        builder.build_serialized_network(network, builder.create_builder_config())
