"""`edgepose verify --on-board`: engines proven, scored and entered in the ledger; what fails gives way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepose.calibration import onboard
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates, Ledger, Row
from edgepose.calibration.onboard import differences
from edgepose.calibration.score import evaluate
from edgepose.export.verb_verify import verify
from edgepose.runtime.backend import choose
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.golden import read
from edgepose.runtime.poses import Poses
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.trt import board as boards
from edgepose.runtime.trt.engines import Engines, Options
from edgepose.runtime.trt.selftest import examine, moved

ROWS = ["ONNX FP32 (CPU)", "ONNX INT8 (CPU)", "engine INT8", "engine FP16", "engine FP32"]


@pytest.fixture
def own(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle to write into, and a folder of engines of its own."""
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path / "engines"))
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


@pytest.fixture
def run(own: Path, labelled: Path, capsys: pytest.CaptureFixture[str]):
    def command(*words: object, data: object = labelled) -> tuple[int, str, str]:
        # The generous gates: what is tested is not the small network's INT8.
        arguments = [own, "--on-board", "--data", data, "--max-ap-loss", 60, "--max-drift", 9, *words]
        arguments += [] if "--max-duplicates" in words else ["--max-duplicates", 100]
        code = guarded(lambda: verify.main([str(a) for a in arguments], standalone_mode=False))
        return (code, *capsys.readouterr())

    return command


def test_every_engine_is_proven_scored_and_entered_with_its_board(run, own, install) -> None:
    install("10.3")
    code, out, err = run("--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["board"]["tensorrt"] == "10.3.0"
    assert found["board"]["jetson_linux"] == "36.4.3"
    assert found["live"] == "int8"
    ledger = Ledger.from_dict(Bundle.open(own).read("ledger.json", "a ledger"), "bundle")
    assert [row.stage for row in ledger.rows] == ROWS
    assert all(row.board == found["board"] for row in ledger.rows)
    rows = {row.stage: row for row in ledger.rows}
    assert rows["ONNX FP32 (CPU)"].score.ap == pytest.approx(1)  # the labels are its answers
    assert rows["engine FP32"].score.ap > 0.97  # the kernel's pictures are not OpenCV's to the last bit
    assert rows["engine FP32"].drift.p95_px < 0.05
    assert rows["engine INT8"].score.ap < 0.95
    tests = found["engines"]["pose"]
    assert tests["fp32"]["onnx_runtime"]["keypoint_px"] < 0.01
    assert tests["fp32"]["drift"]["most_px"] < 0.01
    assert tests["int8"]["drift"]["p50_px"] > 0.01
    assert tests["int8"]["golden"]["keypoint_px"] < 0.01


def test_a_second_run_takes_the_place_of_the_first_and_another_board_stands_beside(run, own, install) -> None:
    gpu = install("10.3")
    run()
    run()
    assert len(Bundle.open(own).read("ledger.json", "a ledger")["rows"]) == 5
    gpu.sm = 72
    run()
    rows = Bundle.open(own).read("ledger.json", "a ledger")["rows"]
    assert [(row["stage"], row["board"]["sm"]) for row in rows] == [
        (stage, sm) for sm in ("87", "72") for stage in ROWS
    ]


def test_the_best_engine_is_scored_behind_cameras_too(run, own, install) -> None:
    install("10.3")
    code, out, err = run("--camera", "nv12", "--max-camera-loss", 100, "--json")
    assert code == 0, err
    rows = Ledger.from_dict(Bundle.open(own).read("ledger.json", "a ledger"), "bundle").rows
    assert [(row.stage, row.camera) for row in rows] == [
        *((stage, None) for stage in ROWS),
        ("nv12, engine INT8", "nv12"),
    ]
    assert rows[-1].board == rows[0].board
    assert json.loads(out)["live"] == "int8"


def test_a_ledger_of_other_pictures_is_left_alone(run, own, install, caplog) -> None:
    install("10.3")
    run(data="synthetic:count=2,seed=3,size=64x48")
    before = (own / "ledger.json").read_bytes()
    code, out, _ = run()
    assert code == 0
    assert "engine INT8" in out
    assert "its ledger is over evaluation synthetic:count=2,seed=3,size=64x48 (here " in caplog.text
    assert (own / "ledger.json").read_bytes() == before


def test_people_as_high_as_the_ledgers_count_unless_others_are_asked_for(run, own, install, caplog) -> None:
    gpu = install("10.3")
    run("--min-height", 20)
    gpu.sm = 72
    code, _, err = run()
    assert code == 0, err
    rows = Ledger.from_dict(Bundle.open(own).read("ledger.json", "a ledger"), "bundle").rows
    assert [(row.board["sm"], row.score.min_height_px) for row in rows] == [("87", 20)] * 5 + [("72", 20)] * 5
    before = (own / "ledger.json").read_bytes()
    run("--min-height", 0)
    assert "its ledger is over min_height_px 20.0 (here 0.0), so this board's rows are" in caplog.text
    assert (own / "ledger.json").read_bytes() == before


def test_rows_of_people_found_otherwise_do_not_stand_together(run, own, install) -> None:
    install("10.3")
    run()
    ledger = Ledger.from_dict(Bundle.open(own).read("ledger.json", "a ledger"), "bundle")
    truth, found = (replace(ledger, data={**ledger.data, "boxes": boxes}) for boxes in ("truth", "x"))
    assert differences(found, truth) == ["boxes x (here truth)"]
    assert differences(found, ledger) == ["boxes x (here None)"]
    calibrated = replace(truth, data={**truth.data, "calibration": "set"})
    assert differences(calibrated, truth) == []


def test_without_data_the_ledgers_pictures_are_shown(run, own, install, capsys) -> None:
    install("10.3")
    run(data="synthetic:count=2,seed=3,size=64x48")
    assert guarded(lambda: verify.main([str(own), "--on-board", "--json"], standalone_mode=False)) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["ledger"]["data"]["evaluation"] == "synthetic:count=2,seed=3,size=64x48"


@pytest.mark.parametrize(
    ("words", "live"),
    [(("--max-drift", "0.05"), "fp16"), (("--max-ap-loss", "5"), "fp16"), (("--max-drift", "0"), "cpu")],
)
def test_an_engine_that_fails_a_gate_gives_way_and_stays_away(words, live: str, run, own, install) -> None:
    install("10.3")
    code, out, err = run(*words, "--json")
    assert code == 1
    assert "a gate failed: " in err
    assert "engine INT8: " in err
    assert json.loads(out)["live"] == live
    assert Ledger.from_dict(Bundle.open(own).read("ledger.json", "a ledger"), "x").verdict()
    found = choose(Bundle.open(own), "default", "pose", 1, "auto")
    found.backend.close()
    assert isinstance(found.backend, OnnxRuntimeBackend) == (live == "cpu")
    assert found.precision == ("int8" if live == "cpu" else live)
    code, out, _ = run("--json")
    assert (code, json.loads(out)["live"]) == (0, "int8" if live == "cpu" else live)  # FP16 is not left again


def test_what_runs_from_now_on_runs_in_every_graph(two_graphs, install, tmp_path, monkeypatch) -> None:
    """One graph was given up for the CPU before; what the engines answer is not the question here."""
    install("10.3")
    options = Options(root=tmp_path / "engines")
    for graph, precision in {"coarse": "fp32", "fine": "cpu"}.items():
        Engines(two_graphs, graph, options).keep_default(precision, {})
    shown = Shown(open_dataset("synthetic:count=1,seed=3,size=64x48"))
    score = evaluate([shown.pictures.people(0)], [Poses.empty()], COCO17)
    rows = tuple(Row(stage, score) for stage in ("ONNX FP32 (CPU)", "engine FP32"))
    monkeypatch.setattr(onboard, "run_all", lambda *_: [])
    monkeypatch.setattr(onboard, "ledger_of", lambda *_: Ledger(rows))
    found = onboard.verified(two_graphs, shown, onboard.Settings(options, Gates()))
    remembered = [Engines(two_graphs, graph, options).remembered()[0] for graph in two_graphs.spec.graphs]
    assert remembered == [found.live] * 2 == ["fp32"] * 2


def test_an_engine_that_answers_wrongly_has_no_row_and_fails(run, own, install) -> None:
    install("11.4").faults.wrong_precisions = {"int8"}
    code, out, err = run("--json")
    assert code == 1
    assert "pose int8: the engine does not reproduce the golden vectors" in err
    found = json.loads(out)
    assert [row["stage"] for row in found["ledger"]["rows"]] == [*ROWS[:2], *ROWS[3:]]
    assert found["live"] == "fp16"


def test_the_tables_are_for_the_terminal(run, install) -> None:
    install("8.6")
    code, out, _ = run()
    text = " ".join(out.split())
    assert code == 0
    assert "tensorrt 8.6" in text
    assert "pose int8: from golden score" in text
    assert "runs from now on: int8" in text


@pytest.mark.slow
def test_a_network_that_sees_people_one_by_one_is_verified_and_built_too(
    install, tmp_path, monkeypatch, capsys, caplog
) -> None:
    """SHaRPose's two graphs as engines for up to 16 people, by the labels' boxes and by the dataset's AP."""
    import torch
    from safetensors.torch import save_file

    from edgepose.export.verb_build import build
    from edgepose.export.verb_export import export
    from edgepose.training import models

    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path / "engines"))
    name, bundle, weights = "sharpose_tiny_128x96", str(tmp_path / "bundle"), str(tmp_path / "w.safetensors")
    torch.manual_seed(3)
    state = {
        key: value + 0.05 * torch.randn(value.shape) for key, value in models.build(name).state_dict().items()
    }
    save_file(state, weights)
    arguments = [name, "--weights", weights, "--out", bundle]
    assert guarded(lambda: export.main(arguments, standalone_mode=False)) == 0
    install("10.3")
    data = ["--data", "synthetic:count=4,seed=7", "--json"]
    capsys.readouterr()
    assert guarded(lambda: verify.main([bundle, "--on-board", *data], standalone_mode=False)) == 0
    found = json.loads(capsys.readouterr().out)
    opened = Bundle.open(bundle)
    before = opened.read("ledger.json", "a ledger")
    by_others = {**before, "data": {**before["data"], "boxes": "x"}}
    opened.with_files({"ledger.json": json.dumps(by_others).encode()})
    assert guarded(lambda: verify.main([bundle, "--on-board"], standalone_mode=False)) == 2
    assert "x: no such file" in capsys.readouterr().err
    guarded(lambda: verify.main([bundle, "--on-board", "--boxes", "truth"], standalone_mode=False))
    assert "its ledger is over boxes x (here truth)" in caplog.text
    assert Bundle.open(bundle).read("ledger.json", "a ledger") == by_others
    capsys.readouterr()
    assert [row["stage"] for row in found["ledger"]["rows"]] == ["ONNX FP32 (CPU)", "engine FP32"]
    assert found["ledger"]["rows"][1]["looks"]["overlap"] == pytest.approx(1)
    assert found["live"] == "fp32"
    words = [bundle, "--precision", "fp32", "--rounds", "3", *data]
    assert guarded(lambda: build.main(words, standalone_mode=False)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["batches"] == [1, 4, 16]
    assert [graph["default"] for graph in report["graphs"].values()] == ["fp32", "fp32"]
    assert report["graphs"]["coarse"]["accuracy"]["fp32"]["ap_loss"] == pytest.approx(0)


def test_the_joints_are_printed_where_they_are_asked_for(run, install) -> None:
    install("10.3")
    assert "left_ankle" not in run()[1]
    code, out, err = run("--per-joint")
    assert code == 0, err
    assert "left_ankle" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--weights", "x"), "leave out --weights and --compressed"),
        (("--boxes", "truth"), "leave out --boxes"),
        (("--blame", "x"), "give one of them"),
        (("--blame", "x", "--per-joint"), "leave out --per-joint"),
    ],
)
def test_what_does_not_belong_on_a_board_is_refused(words, sentence: str, run, install) -> None:
    install("10.3")
    code, _, err = run(*words)
    assert code == 2
    assert sentence in err


def test_no_torch_is_needed(run, install, monkeypatch) -> None:
    """The whole verb where torch cannot be imported; its modules must be asked for anew."""
    install("10.3")
    for name in ("torch", "nncf", "pycocotools"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in list(sys.modules):
        if name.startswith(("edgepose.export", "edgepose.training", "edgepose.compression")):
            monkeypatch.delitem(sys.modules, name)
    code, _, err = run()
    assert code == 0, err


BARE = """
import sys
for name in ("torch", "nncf", "onnx", "scipy", "pydantic", "yaml", "gi", "pycocotools", "lightning_fabric"):
    sys.modules[name] = None
from edgepose.runtime.cli import guarded, edgepose
sys.exit(guarded(lambda: edgepose.main(["verify", sys.argv[1], "--on-board"], standalone_mode=False)))
"""


def test_a_board_without_the_workstations_libraries_is_asked_for_its_gpu(bundle, monkeypatch) -> None:
    done = subprocess.run([sys.executable, "-c", BARE, bundle.path], capture_output=True, text=True)
    if done.returncode != 4:
        pytest.skip("this machine has a GPU")
    assert "CUDA driver" in done.stderr
    assert "Traceback" not in done.stderr


def test_conditions_are_read_where_jetson_linux_has_them(install, tmp_path, monkeypatch) -> None:
    install("10.3")
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1728000\n",
        "bin/nvpmodel": "#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setattr(boards, "ROOT", tmp_path)
    assert boards.conditions(boards.require_board()) == {
        "board": "NVIDIA Jetson Orin Nano",
        "gpu": "Orin",
        "sm": "87",
        "tensorrt": "10.3.0",
        "jetson_linux": "36.4.3",
        "power_mode": "MAXN_SUPER",
        "gpu_mhz": "612/1020",
        "cpu_mhz": "730/1728",
    }
    monkeypatch.setattr(boards, "ROOT", tmp_path / "elsewhere")
    monkeypatch.setenv("PATH", "/nowhere")
    found = boards.conditions(boards.require_board())
    assert found.keys() == {"gpu", "sm", "tensorrt", "jetson_linux"}


def test_drift_is_the_distance_that_joints_were_moved(bundle) -> None:
    """A closed form: every joint 3 to the right and 4 down is 5 pixels away."""
    golden = read(bundle)
    answers = [dict(one) for one in golden.expected["pose.fp32"]]
    assert moved(golden, "pose", answers, bundle.spec).most_px == 0
    for one in answers:
        one["keypoints"] = one["keypoints"] + np.array([3, 4], np.float32)
    found = moved(golden, "pose", answers, bundle.spec)
    assert (found.p50_px, found.p95_px, found.most_px) == pytest.approx((5, 5, 5), abs=1e-4)
    people = sum(int((one["scores"] >= bundle.spec.score_threshold).sum()) for one in answers)
    assert found.joints == 17 * people


def test_drift_of_heatmaps_is_in_pixels_of_the_input() -> None:
    """One pixel of a heatmap of 24 x 32 is (96 - 1) / (24 - 1) pixels of the crop."""
    from edgepose.runtime.agreement import look_drift
    from edgepose.runtime.spec import Spec

    y, x = np.mgrid[0:32, 0:24]
    hill = lambda cx: np.exp(-((x - cx) ** 2 + (y - 15) ** 2) / 8).astype(np.float32)[None, None]  # noqa: E731
    low = 0.1 * hill(5)  # nobody's joint
    spec = Spec("sharpose", "tiny", 96, 128, graphs=("coarse", "fine"), resize="crop")
    expected = {"heatmaps": np.concatenate([hill(10), low], 1)}
    actual = {"heatmaps": np.concatenate([hill(11), hill(20)], 1)}
    assert look_drift(expected, actual, spec) == pytest.approx([95 / 23], abs=1e-3)
    assert len(look_drift({"quality": np.ones(1)}, {"quality": np.ones(1)}, spec)) == 0


def test_graphs_that_read_anothers_outputs_are_examined_too(two_graphs, install, tmp_path) -> None:
    install("10.3")
    made = Engines(two_graphs, "fine", Options(root=tmp_path / "engines"))
    backend, steps = made.exactly("fp32")
    assert backend is not None
    with backend:
        found: Any = examine(backend, two_graphs, "fine", "fp32", 1)
    assert found.onnx_runtime.heatmaps < 1e-6
    assert steps[-1].report["golden"]["heatmaps"] < 1e-6
