"""`edgepose verify` on the shipped weights: its ledger, its gate, and what it says of bad input."""

import errno
import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
import standin_people
import torch
from safetensors.torch import load_file, save_file

from edgepose.calibration.ledger import Ledger
from edgepose.export.verb_export import export
from edgepose.export.verb_verify import verify
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.training.models import build, shipped_weights

FEW = ("--data", "synthetic:count=6,seed=7")


def run(*arguments: object) -> int:
    return guarded(lambda: verify.main([str(a) for a in arguments], standalone_mode=False))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "bundle"
    assert guarded(lambda: export.main(["qrpose_tiny", "--out", str(out)], standalone_mode=False)) == 0
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def test_the_ledger_is_printed_and_put_into_the_bundle(bundle: Path, capsys) -> None:
    assert run(bundle, *FEW, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert Bundle.open(bundle).read("ledger.json", "a ledger") == printed
    ledger = Ledger.from_dict(printed, "stdout")
    assert [row.stage for row in ledger.rows] == ["torch FP32", "ONNX FP32 (CPU)"]
    assert ledger.rows[1].drift.p95_px < 0.05
    assert ledger.rows[1].score.ap == pytest.approx(ledger.rows[0].score.ap, abs=1e-6)
    assert ledger.rows[1].quality is not None
    assert ledger.rows[0].quality is not None
    assert ledger.rows[1].quality.rho == pytest.approx(ledger.rows[0].quality.rho, abs=1e-3)


def test_a_failed_gate_exits_1_and_still_writes_the_ledger(bundle: Path, capsys) -> None:
    assert run(bundle, *FEW, "--min-ap", 100) == 1
    out, err = capsys.readouterr()
    assert "torch FP32" in out
    assert "a gate failed: torch FP32: AP" in err
    assert not Bundle.open(bundle).read("ledger.json", "a ledger")["passed"]


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another bundle: its joints are a tenth of a person aside."""
    folder = tmp_path_factory.mktemp("worse")
    weights = load_file(shipped_weights("qrpose_tiny"))
    weights["looks.1.off.bias"] += 1.5
    save_file(weights, folder / "weights.safetensors")
    command = ["qrpose_tiny", "--weights", folder / "weights.safetensors", "--out", folder / "worse"]
    assert guarded(lambda: export.main([str(a) for a in command], standalone_mode=False)) == 0
    return folder / "worse"


def test_a_bundle_is_held_against_another_and_neither_changes(bundle: Path, worse: Path, capsys) -> None:
    before = {path: path.read_bytes() for folder in (bundle, worse) for path in folder.iterdir()}
    assert run(bundle, *FEW, "--against", worse, "--max-drift", 1000, "--json") == 0
    first, second = Ledger.from_dict(json.loads(capsys.readouterr().out), "stdout").rows
    assert (first.stage, second.stage) == ("worse: ONNX FP32 (CPU)", "ONNX FP32 (CPU)")
    assert second.score.ap > 0.3 > 0.1 > first.score.ap
    assert second.difference.low > 0.1
    assert run(worse, *FEW, "--against", bundle, "--max-drift", 1000) == 1  # the gates say what it may cost
    out, err = capsys.readouterr()
    assert "bundle: ONNX FP32 (CPU)" in out
    assert "loses" in err
    assert before == {path: path.read_bytes() for folder in (bundle, worse) for path in folder.iterdir()}
    for option in (("--on-board",), ("--weights", worse), ("--compressed", worse), ("--blame", worse / "x")):
        assert run(bundle, *FEW, "--against", worse, *option) == 2
        assert "--against compares two bundles" in capsys.readouterr().err


def test_what_cameras_do_to_the_pictures_is_measured(bundle: Path, capsys) -> None:
    data = ("--data", "synthetic:count=12,seed=7,size=256")
    cameras = ("--camera", "nv12", "--camera", "h264:45")
    assert run(bundle, *data, *cameras, "--max-camera-loss", 100, "--max-drift", 50, "--json") == 0
    plain, filmed, coded = Ledger.from_dict(json.loads(capsys.readouterr().out), "stdout").rows[1:]
    assert [row.stage for row in (filmed, coded)] == ["nv12, ONNX FP32 (CPU)", "h264:45, ONNX FP32 (CPU)"]
    assert plain.drift.p50_px < 0.01 < filmed.drift.p50_px < 1 < coded.drift.p50_px
    assert coded.score.ap < filmed.score.ap - 0.1
    assert filmed.size_bytes == plain.size_bytes
    assert run(bundle, *data, *cameras, "--max-drift", 50) == 1
    out, err = capsys.readouterr()
    assert "h264:45, ONNX FP32 (CPU)" in out
    assert re.fullmatch(
        r"edgepose: a gate failed: h264:45, ONNX FP32 \(CPU\): loses [\d.]+ points of AP, 5.00 are allowed\n",
        err,
    )
    for other in (("--against", bundle), ("--blame", bundle.parent / "x")):
        assert run(bundle, *data, *cameras, *other) == 2
        assert "leave out" in capsys.readouterr().err


def test_bad_input_gets_one_sentence_and_exit_code_2(bundle: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.safetensors"
    torch.manual_seed(5)
    save_file(build("qrpose_tiny").state_dict(), other)
    nobody = tmp_path / "nobody.json"
    nobody.write_text('{"images": [], "annotations": [], "categories": []}')
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    content = bytearray((damaged / "pose.fp32.onnx").read_bytes())
    content[1000] ^= 1
    (damaged / "pose.fp32.onnx").write_bytes(content)
    for arguments in (
        (tmp_path / "nowhere", *FEW),
        (damaged, *FEW),
        (bundle, "--data", "synthetic:cuont=6"),
        (bundle, "--data", tmp_path / "nowhere.json"),
        (bundle, "--data", nobody),
        (bundle, *FEW, "--weights", other),
        (bundle, *FEW, "--weights", tmp_path / "nowhere.safetensors"),
        (bundle, *FEW, "--compressed", tmp_path / "nowhere"),
        (bundle, *FEW, "--against", tmp_path / "nowhere"),
        (bundle, *FEW, "--against", damaged),
        (bundle, *FEW, "--min-height", 4000),
        (bundle, *FEW, "--camera", "h265:20"),
        (bundle, *FEW, "--camera", "nv12", "--camera", "h264:"),
    ):
        assert run(*arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("edgepose: ")
        assert len(err.splitlines()) == 1
        assert "Traceback" not in err
    assert run(bundle, "--engines", tmp_path) == 2
    assert "--cuda and --engines are for --on-board" in capsys.readouterr().err
    assert "ledger.json" not in Bundle.open(bundle).files


def test_a_full_disk_and_ctrl_c_leave_the_bundle_as_it_was(bundle: Path, monkeypatch, capsys) -> None:
    before = Bundle.open(bundle).files

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(bundle))

    with monkeypatch.context() as patch:
        patch.setattr("edgepose.runtime.bundle.shutil.copy2", full)
        assert run(bundle, *FEW) == 2
    out, err = capsys.readouterr()
    assert "torch FP32" in out  # what was measured is said all the same
    assert "the disk is full" in err

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgepose.export.verification.ledger_of", interrupted)
        assert run(bundle, *FEW) == 130
    assert Bundle.open(bundle).files == before


def test_blame_ranks_draws_and_goes_on_where_it_was(tmp_path: Path, capsys) -> None:
    blamed, folder = standin_people.bundle(tmp_path), tmp_path / "blame"
    asked = (blamed.path, "--data", "synthetic:count=3,seed=8,size=64", "--blame", folder)
    assert run(*asked, "--max-ap-loss", 100, "--max-drift", 99, "--max-duplicates", 99, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "blame.json").read_text()) == values
    assert len(values["ranking"]) == 11
    assert values["islands"] == []
    assert cv2.imread(str(folder / "frontier.png")) is not None
    answers = {path: path.stat().st_mtime_ns for path in (folder / "answers").iterdir()}
    assert run(*asked, "--max-drift", 0) == 1
    out, err = capsys.readouterr()
    assert "a gate failed: 0 layers float: joints move by" in err
    assert re.search(r"leave \d+ of 11 layers float: \w", out)
    # Only points of the frontier that were not asked for before are new.
    assert all(path.stat().st_mtime_ns == before for path, before in answers.items())
    assert "ledger.json" not in Bundle.open(blamed.path).files


def test_blame_on_what_it_was_calibrated_on_is_refused(bundle: Path, tmp_path: Path, capsys) -> None:
    blamed = standin_people.bundle(tmp_path / "own", calibrated_on="synthetic:count=3,seed=8,size=64")
    few = ("--data", "synthetic:count=5,seed=8,size=64", "--blame", tmp_path / "blame")
    assert run(blamed.path, *few) == 1
    assert "its picture 0 is picture 0 of synthetic:count=3,seed=8" in capsys.readouterr().err
    assert run(bundle, *few) == 2  # FP32 alone
    assert "has no pose.int8.ort.onnx" in capsys.readouterr().err
    assert not (tmp_path / "blame").exists()
