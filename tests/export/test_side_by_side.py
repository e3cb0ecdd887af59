"""Tools side by side: each gives a file that runs, and the table says what is in the files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import standin_people
from click.testing import CliRunner
from rich.console import Console
from standin_people import SPEC, network

from edgepose.calibration.calibration_set import make_calibration_set
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.evaluation import Shown
from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import load_onnx
from edgepose.compression.plan import float_plan
from edgepose.export import side_by_side
from edgepose.export.side_by_side import FP32, TOOLS, Job, contest, int8_layers, table
from edgepose.export.views import cpu_view
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.preprocess import prepare


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("side")
    fp32, _, own = network()
    feeds = [{"images": prepare(own[index].image, SPEC)[0]} for index in range(len(own))]
    files = {FP32: folder / "fp32.onnx"}
    onnx.save(fp32, files[FP32])
    for place, (name, tool) in enumerate(TOOLS.items()):
        files[name] = folder / f"{place}.onnx"
        tool(Job(load_onnx(files[FP32]), feeds, "qrpose", files[name]))
    return files


def test_every_tool_quantizes_and_who_has_the_plan_keeps_it(files: dict[str, Path]) -> None:
    fp32, _, own = network()
    feeds = [{"images": prepare(own[0].image, SPEC)[0]}]
    plan = float_plan(fp32, "qrpose")
    counts = {name: int8_layers(load_onnx(path)) for name, path in files.items()}
    layers = [node for node in fp32.graph.node if node.op_type == "Conv"]
    planned = sum(node.name in plan for node in layers)
    assert counts.pop(FP32) == (0, len(layers))
    assert {name: count for name, count in counts.items() if "plan" in name or "edgepose" in name} == {
        "NNCF, edgepose": (len(layers) - planned, len(layers)),
        "onnxruntime, our float plan": (len(layers) - planned, len(layers)),
    }
    assert counts["onnxruntime"][0] > len(layers) - planned
    for name, path in files.items():
        assert np.isfinite(outputs_of(load_onnx(path), feeds)[0]["keypoints"]).all(), name


def test_the_command_leaves_files_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "TOOLS", {"onnxruntime": TOOLS["onnxruntime"]})
    blamed = standin_people.bundle(tmp_path).path
    data, apart = (open_dataset(f"synthetic:count={n},seed={n},size=64") for n in (16, 2))
    chosen = make_calibration_set(data, apart, 16, tmp_path / "set").folder
    given = [blamed, "--calibration", chosen, "--rounds", 3, "--out", tmp_path / "side", "--data"]
    ran = CliRunner().invoke(side_by_side.main, [*map(str, given), apart.source], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "onnxruntime" in ran.stdout
    values = json.loads((tmp_path / "side" / "side.json").read_text())
    assert [tool["tool"] for tool in values["tools"]] == [FP32, "onnxruntime"]
    assert (tmp_path / "side" / "onnxruntime.onnx").is_file()
    with pytest.raises(GateFailed, match="are also in the evaluation data"):
        side_by_side.main([*map(str, given), data.source], standalone_mode=False)


def test_what_qat_wrote_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own graph as the runtime wants it; one of another network is refused."""
    fp32, int8, _ = network()
    job = Job(fp32, (), "qrpose", tmp_path / "qat.onnx")
    found = SimpleNamespace(spec=SPEC, fp32=lambda _: fp32, quantized=lambda _: int8.model)
    monkeypatch.setattr(side_by_side, "open_compressed", lambda _: found)
    side_by_side._qat(tmp_path, job)
    assert load_onnx(job.path) == cpu_view(int8.model)
    found.fp32 = lambda _: int8.model
    with pytest.raises(EdgeposeError, match="is of another FP32 graph"):
        side_by_side._qat(tmp_path, job)


def test_the_contest_scores_and_times_every_file(files: dict[str, Path], tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, tmp_path, SPEC, {}, {})
    ledger, contenders = contest(bundle, files, Shown(network()[2]), rounds=3)
    assert [each.row.stage for each in contenders] == list(files)
    first, *others = [each.to_dict(ledger) for each in contenders]
    assert (first["ap"], first["drift_px"], first["int8_layers"]) == (pytest.approx(1.0), None, 0)
    assert all(each["ap"] < 1 and each["drift_px"]["p95_px"] > 0 for each in others)
    assert all(each["int8_layers"] + each["float_layers"] == first["float_layers"] for each in others)
    console = Console(width=110, record=True)
    console.print(table(ledger, contenders))
    lines = console.export_text().splitlines()
    assert all(any(line.lstrip().startswith(name) for line in lines) for name in files)
    assert all(len(line) <= 110 for line in lines)
