"""`edgepose build` as a user runs it: report, default, exit codes, the trtexec lines."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standin_gpu import Gpu

from edgepose.export import verb_build
from edgepose.runtime.bundle import publish
from edgepose.runtime.trt.engines import Engines, Options


@pytest.mark.parametrize("release", ["8.6", "10.3", "11.4"])
def test_both_are_built_proven_and_timed_and_the_faster_one_is_the_default(
    release: str, bundle, install, run, tmp_path
) -> None:
    install(release)
    code, out, _ = run(bundle.path, "--json", "--batch", "1,2,4")
    whole = json.loads(out)
    report = whole["graphs"]["pose"]
    assert code == 0
    assert whole["board"]["tensorrt"].startswith(release)
    assert whole["settings"]["batches"] == [1, 2, 4]
    assert [(row["precision"], row["problem"]) for row in report["engines"]] == [("int8", ""), ("fp16", "")]
    times = {row["name"]: row["p50_ms"] for row in report["timings"]}
    assert times.keys() == {"int8", "fp16"}
    assert report["default"] == min(times, key=times.__getitem__)
    assert Engines(bundle, "pose", Options(root=tmp_path / "engines")).remembered()[0] == report["default"]
    code, out, _ = run(bundle.path, "--batch", "1,2,4")
    assert code == 0
    assert "INT8/FP16/FP32" in out
    assert "default here: " in out  # timed anew: which one is faster may differ on so small a graph


def test_an_engine_that_answers_wrongly_is_not_the_default_however_fast(bundle, install, run) -> None:
    install("11.4").faults.wrong_precisions = {"int8"}
    code, out, _ = run(bundle.path, "--json")
    report = json.loads(out)["graphs"]["pose"]
    assert (code, report["default"]) == (0, "fp16")
    assert "does not reproduce" in report["engines"][0]["problem"]
    code, out, _ = run(bundle.path)
    assert "no int8 engine (strong): the engine does not reproduce" in " ".join(out.split())


def test_no_engine_at_all_fails_the_gate(bundle, install, run) -> None:
    install("10.3").faults.wrong_precisions = {"int8", "fp16"}
    code, _, err = run(bundle.path)
    assert code == 1
    assert "no engine of pose can be used here" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--max-drift", "0.05"), "joints move by "),
        (("--max-ap-loss", "5"), "loses "),
    ],
)
def test_the_fastest_within_the_gate_is_the_default(
    words, sentence: str, bundle, labelled, install, run, tmp_path, monkeypatch
) -> None:
    """INT8 made the faster one, and outside of the gate: its figures stand in the report all the same."""
    install("10.3")
    make_int8_the_faster(monkeypatch)
    code, out, _ = run(bundle.path, "--json")
    assert json.loads(out)["graphs"]["pose"]["default"] == "int8"
    data = ("--data", labelled) if "--max-ap-loss" in words else ()
    code, out, _ = run(bundle.path, "--json", *words, *data)
    report = json.loads(out)["graphs"]["pose"]
    assert (code, report["default"]) == (0, "fp16")
    drift = report["accuracy"]["int8"]["drift"]["p50_px"]
    sentence = sentence if data else f"{sentence}{drift:.2f} px (median), 0.05 px are allowed"
    assert data or drift > 0.05
    assert sentence in report["accuracy"]["int8"]["failure"]
    assert report["accuracy"]["fp16"]["failure"] == ""
    assert report["accuracy"]["int8"]["drift"]["p50_px"] > report["accuracy"]["fp16"]["drift"]["p50_px"]
    if data:
        assert report["accuracy"]["int8"]["ap_loss"] > 5 > report["accuracy"]["fp16"]["ap_loss"]
    assert Engines(bundle, "pose", Options(root=tmp_path / "engines")).remembered()[0] == "fp16"
    code, out, _ = run(bundle.path, *words, *data)
    assert f"int8 is outside the gate: {sentence}" in out
    assert "default here: fp16, the fastest within the gate" in out


def make_int8_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    original = verb_build.alternate

    def told(candidates: Any, rounds: int) -> Any:
        times = {"int8": 1.0, "fp16": 2.0}
        return [replace(timing, p50_ms=times[timing.name]) for timing in original(candidates, rounds)]

    monkeypatch.setattr(verb_build, "alternate", told)


def test_outside_the_gate_nothing_is_the_default_and_the_cpu_runs(bundle, install, run, tmp_path) -> None:
    install("10.3")
    run(bundle.path)
    code, out, err = run(bundle.path, "--max-drift", "0")
    assert code == 1
    assert "no engine of pose can be used here, or none within the gate" in err
    assert "fp16 is outside the gate" in out
    assert Engines(bundle, "pose", Options(root=tmp_path / "engines")).remembered()[0] == "cpu"


def no_driver(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.faults.no_driver = True


def no_tensorrt(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


def no_pycuda(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)


def old_jetpack(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.2.1.8")  # of JetPack 4.6


def no_jetson(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "11.4.0.106")


def exhausted(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.total = 1000


def no_dla(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.dla_cores = 0


@pytest.mark.parametrize(
    ("lack", "words", "code", "sentence"),
    [
        (no_driver, (), 4, "cuInit says error 100"),
        (no_tensorrt, (), 3, "comes with JetPack"),
        (no_pycuda, (), 3, "pip install pycuda"),
        (old_jetpack, (), 2, "TensorRT 8.2.1.8: edgepose is written for 8.5 up to but not including 12"),
        (no_jetson, (), 4, "TensorRT 11.4.0.106 does not support Jetson boards"),
        (exhausted, (), 1, "no engine of pose can be used here"),
        (no_dla, ("--dla-core", "0"), 4, "--dla-core 0: this board has 0"),
        (None, ("--batch", "2,1"), 2, "--batch 2,1: give one size"),
        (None, ("--batch", "4,2,1"), 2, "smallest, best, largest"),
        (None, ("--graph", "coarse"), 2, "has no coarse.fp32.onnx"),
        (None, ("--precision", "int4"), 2, "int4"),
    ],
)
def test_exit_codes(lack, words, code: int, sentence: str, bundle, install, run, monkeypatch) -> None:
    gpu = install("10.3")
    if lack is not None:
        lack(gpu, monkeypatch)
    found, _, err = run(bundle.path, *words)
    assert found == code
    assert sentence in err
    assert "Traceback" not in err


def test_what_lies_damaged_in_the_cache_is_built_again(bundle, install, run, tmp_path, caplog) -> None:
    install("10.3")
    assert run(bundle.path)[0] == 0
    for path in (tmp_path / "engines").rglob("engine.plan"):
        path.write_bytes(path.read_bytes()[:-9])
    (timings,) = (tmp_path / "engines").glob("timings-*.cache")
    timings.write_bytes(b"damaged")
    code, out, err = run(bundle.path, "--json")
    assert code == 0, err
    assert all(row["problem"] == "" for row in json.loads(out)["graphs"]["pose"]["engines"])
    assert "is damaged (its sha256 differs); building it again" in caplog.text
    assert "timing cache is damaged or of another board; building without it" in caplog.text


def test_exhausted_memory_is_in_the_report(bundle, install, run) -> None:
    install("10.3").total = 1000
    code, out, _ = run(bundle.path, "--json")
    problems = [row["problem"] for row in json.loads(out)["graphs"]["pose"]["engines"]]
    assert code == 1
    assert problems
    assert all("the GPU's memory is exhausted" in problem for problem in problems)


def test_what_is_built_anew_is_built_once_and_is_what_the_gate_saw(
    bundle, labelled, install, run, builds
) -> None:
    install("10.3")
    assert run(bundle.path)[0] == 0
    built = len(builds)
    code, _, err = run(bundle.path, "--rebuild", "--data", labelled, "--max-ap-loss", "100")
    assert code == 0, err
    assert builds[built:] == ["pose.int8.trt-typed.onnx", "pose.fp16.onnx"]


def test_a_missing_bundle_is_a_user_error(install, run, tmp_path: Path) -> None:
    install("10.3")
    code, _, err = run(tmp_path / "nowhere")
    assert code == 2
    assert "no such bundle" in err


def test_trtexec_lines_need_no_board(bundle, run) -> None:
    code, out, _ = run(bundle.path, "--print-trtexec", "10.3", "--batch", "2")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 4  # two precisions, strong and weak
    assert "--minShapes=images:2x3x32x32" in lines[0]


def test_trtexec_lines_are_of_files_that_the_bundle_has(run, two_graphs) -> None:
    code, out, _ = run(two_graphs.path, "--print-trtexec", "10.3", "--precision", "fp16")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == [
        "--onnx=coarse.fp32.onnx",
        "--onnx=fine.fp32.onnx",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--print-trtexec", "10.3"), "has no coarse.int8.trt-typed.onnx or coarse.int8.trt.onnx, which"),
        (("--print-trtexec", ""), "choose one of 8.5"),
        (("--print-calibration-cache", ""), "such as 10.3.0"),
        (("--print-trtexec", "8.6", "--print-calibration-cache", "8.6.1"), "not both"),
        (("--batch", "²"), "--batch ²: give one size"),
        (("--batch", ""), "--batch : give one size"),
        (("--batch", 5000 * "1"), "give one size"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_printed_or_built_is_a_user_error(words, said: str, bundle, run, two_graphs) -> None:
    found = two_graphs if words == ("--print-trtexec", "10.3") else bundle
    code, out, err = run(found.path, *words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_every_graph_of_a_bundle_is_built(install, run, two_graphs) -> None:
    install("10.3")
    code, out, err = run(two_graphs.path, "--json", "--precision", "fp32", "--batch", "1,2,4")
    assert code == 0, err
    found = json.loads(out)["graphs"]
    assert {name: graph["default"] for name, graph in found.items()} == {"coarse": "fp32", "fine": "fp32"}
    code, out, _ = run(two_graphs.path, "--json", "--precision", "fp32", "--graph", "fine")
    assert list(json.loads(out)["graphs"]) == ["fine"]


@pytest.mark.parametrize(
    ("said", "words", "expected", "warned"),
    [
        ({}, (), False, False),
        ({"sparsity": "2:4"}, (), True, False),
        ({"sparsity": "2:4"}, ("--no-sparsity",), False, False),
        ({"sparsity": "2:4"}, ("--sparsity",), True, False),
        ({}, ("--sparsity",), True, True),
    ],
)
def test_sparse_weights_are_used_where_the_bundle_has_them(
    said, words, expected: bool, warned: bool, bundle, install, run, tmp_path: Path, caplog
) -> None:
    install("10.3")
    content = tmp_path / "content"
    shutil.copytree(bundle.folder, content)
    sparse = publish(content, tmp_path / "sparse", bundle.spec, bundle.provenance | said)
    code, out, err = run(sparse.path, "--json", "--precision", "fp32", *words)
    assert code == 0, err
    assert json.loads(out)["settings"]["sparsity"] is expected
    assert ("does not say that its weights follow 2:4" in caplog.text) is warned
