"""export, compress and export --compressed through the command line, on the real network, random weights."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save
from torch import nn

from edgepose.calibration.calibration_set import make_calibration_set
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.onboard import ap_losses
from edgepose.compression.artefact import open_compressed
from edgepose.compression.graph import load_onnx
from edgepose.compression.qat import learn, short
from edgepose.compression.quantize import Quantized
from edgepose.compression.source_model import load_model
from edgepose.compression.torch_quantize import load_quantized_torch
from edgepose.compression.verb_compress import _report, compress
from edgepose.export.verb_export import export
from edgepose.export.verb_qat import qat
from edgepose.export.verb_verify import verify
from edgepose.runtime.backend import open_backend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.drafts import sha256
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.estimator import Estimator
from edgepose.training.loop import Trainer
from edgepose.training.models import build
from edgepose.training.recipe import open_recipe

MODEL = "qrpose_tiny"


def run(command: Any, *arguments: object) -> int:
    """A verb's exit code, as the console script gives it."""
    torch.set_num_threads(1)
    return guarded(lambda: command.main([str(a) for a in arguments], standalone_mode=False))


def run_json(command: Any, *arguments: object) -> Any:
    """What a verb that must succeed prints with --json."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(command, *arguments, "--json") == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build(MODEL)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.state_dict()["running_var"].uniform_(0.5, 1.5)
            module.state_dict()["running_mean"].normal_(0, 0.2)
        if name in ("score0", "score"):
            nn.init.normal_(module.weight, std=1.0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    path.write_bytes(save({name: value.contiguous() for name, value in model.state_dict().items()}))
    return path


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibration") / "set"
    data, apart = open_dataset("synthetic:count=16,seed=5"), open_dataset("synthetic:count=2,seed=9")
    return make_calibration_set(data, apart, 16, out).folder


@pytest.fixture(scope="session")
def fp32(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp32") / "bundle"
    assert run(export, MODEL, "--weights", weights, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def compressed(
    fp32: Path, weights: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """The folder, and what the verb said."""
    out = tmp_path_factory.mktemp("compressed") / "c"
    given = (fp32, "--calibration", calibration, "--weights", weights, "--keep-float", "inst.1", "--out", out)
    lax = ("--auto", "synthetic:count=2,seed=9", "--max-ap-loss", 100, "--max-drift", 999)
    return out, run_json(compress, *given, *lax)


@pytest.fixture(scope="session")
def full(compressed: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The bundle, and what the verb said."""
    out = tmp_path_factory.mktemp("full") / "bundle"
    return out, run_json(export, MODEL, "--compressed", compressed[0], "--out", out)


def test_the_whole_chain_ends_in_a_bundle_that_runs(full: tuple[Path, Any], fp32: Path) -> None:
    bundle = Bundle.open(full[0])
    assert sum(name.endswith(".onnx") for name in bundle.files) == 5
    frame = open_dataset("synthetic:count=1,seed=3,size=320x240")[0].image
    for precision in ("fp32", "int8"):
        with open_backend(bundle, precision, threads=1) as backend:
            poses = Estimator(backend, bundle.spec)(frame)
            assert np.isfinite(poses.keypoints).all()
    assert (
        bundle.files["pose.fp32.onnx"] == Bundle.open(fp32).files["pose.fp32.onnx"]
    )  # the very same FP32 graph


def test_the_bundle_says_where_it_came_from(full: tuple[Path, Any], weights: Path, calibration: Path) -> None:
    bundle = Bundle.open(full[0])
    assert bundle.provenance["weights_sha256"] == sha256(weights)
    assert bundle.provenance["calibration_sha256"] == sha256(calibration / "manifest.json")
    assert {"edgepose", "torch", "onnx", "nncf", "onnxruntime"} <= bundle.provenance["versions"].keys()
    assert bundle.read("calibration.json", "a manifest") == json.loads(
        (calibration / "manifest.json").read_text()
    )
    assert bundle.provenance["float"]["pose"]["score0"]


def test_int8_weighs_less(full: tuple[Path, Any]) -> None:
    size = {path.name: path.stat().st_size for path in full[0].iterdir()}
    assert size["pose.int8.ort.onnx"] < 0.4 * size["pose.fp32.onnx"]
    assert size["pose.fp16.onnx"] < 0.6 * size["pose.fp32.onnx"]


def test_what_was_asked_to_stay_float_does_and_gates_that_hold_ask_for_no_more(
    compressed: tuple[Path, Any],
) -> None:
    folder, said = compressed
    found = open_compressed(folder)
    assert {name for name, why in found.plan["pose"].items() if why == "--keep-float"} == {"inst.1.0"}
    assert "inst.1.0" in said["graphs"]["pose"]["float_layers"]
    assert (said["auto"]["floats"], said["auto"]["failures"]) == (0, [])
    answers = folder.with_name("c.blame")
    assert len(list(answers.glob("*.npz"))) == 2  # all INT8 and all float


def test_auto_on_calibration_pictures_or_with_a_pattern_for_nothing_is_refused(
    fp32: Path, calibration: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (fp32, "--calibration", calibration, "--weights", weights, "--out", tmp_path / "c")
    assert run(compress, *given, "--auto", "synthetic:count=20,seed=5") == 1
    assert "16 of 16 calibration pictures are also in the evaluation data" in capsys.readouterr().err
    assert run(compress, *given, "--keep-float", "ints.1") == 2
    assert "--keep-float ints.1: matches no layer; the nearest are inst.1.0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_scored_on_pictures_that_int8_was_calibrated_on(
    full: tuple[Path, Any], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Bundle.open(full[0]).files
    overlapping = (full[0], "--data", "synthetic:count=2,seed=5")
    for more in (("--weights", weights), ("--on-board",), ("--blame", full[0].with_name("blame"))):
        assert run(verify, *overlapping, *more) == 1, more
        assert "which INT8 was calibrated on" in capsys.readouterr().err
    with pytest.raises(GateFailed, match="its picture 0 is picture 0 of synthetic:count=16,seed=5"):
        ap_losses(Bundle.open(full[0]), {}, ["int8"], overlapping[2])
    assert Bundle.open(full[0]).files == before


def test_the_quantized_torch_row_is_of_what_the_bundle_was_exported_from(
    fp32: Path,
    compressed: tuple[Path, Any],
    full: tuple[Path, Any],
    weights: Path,
    calibration: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other, bundle = tmp_path / "other", Path(shutil.copytree(full[0], tmp_path / "bundle"))
    given = (fp32, "--calibration", calibration, "--weights", weights, "--out", other)
    assert run(compress, *given, "--keep-float", "inst.0") == 0
    asked = (bundle, "--data", "synthetic:count=1,seed=9", "--weights", weights, "--compressed")
    capsys.readouterr()
    assert run(verify, *asked, other) == 2
    assert f"{other}: not the folder that {bundle} says it was exported from" in capsys.readouterr().err
    assert "ledger.json" not in Bundle.open(bundle).files
    assert run(verify, *asked, compressed[0]) in (0, 1)
    stages = [row["stage"] for row in Bundle.open(bundle).read("ledger.json", "a ledger")["rows"]]
    assert "torch INT8 (NNCF)" in stages


def test_the_quantized_torch_model_comes_back(compressed: tuple[Path, Any], weights: Path) -> None:
    found = open_compressed(compressed[0])
    model, _ = load_model(MODEL, weights)
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    quantized = load_quantized_torch(found.torch(), model, image)
    with torch.no_grad():
        outputs = quantized(image)
    assert outputs["keypoints"].shape == (1, 20, 17, 2)
    assert all(torch.isfinite(value).all() for value in outputs.values())


def test_json_of_each_verb(compressed: tuple[Path, Any], full: tuple[Path, Any]) -> None:
    counts = compressed[1]["graphs"]["pose"]
    assert counts["int8"] + len(counts["float_layers"]) == counts["weighted"]
    assert set(counts["float_layers"]) <= compressed[1]["float"]["pose"].keys()
    assert full[1]["files"].keys() == Bundle.open(full[0]).files.keys()
    assert run_json(export, "--lint", full[0] / "pose.int8.trt.onnx", "--trt", "8.6")["findings"] == []


def test_people_are_told_what_stays_float_and_why(
    quantized: Quantized, capfd: pytest.CaptureFixture[str]
) -> None:
    _report(Path("out"), {"pose": quantized}, None, as_json=False)
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("pose: 11 of 18 weighted layers in INT8")
    assert any(line.startswith("  float: score0") and "score logits" in line for line in lines)
    assert lines[-1] == "written to out"


def test_linting_a_bad_file_exits_1_and_names_rules(
    full: tuple[Path, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(export, "--lint", full[0] / "pose.int8.ort.onnx") == 1
    captured = capfd.readouterr()
    assert "error Q01" in captured.out
    assert "rules Q01" in captured.err
    assert run(export, "--lint", full[0] / "pose.int8.ort.onnx", "--json") == 1
    assert json.loads(capfd.readouterr().out)["errors"] > 10


def test_a_bad_file_is_mended_or_refused(
    full: tuple[Path, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, mended = full[0] / "pose.int8.ort.onnx", tmp_path / "mended.onnx"
    assert run_json(export, "--lint", bad, "--mend", mended)["mended"]
    assert run_json(export, "--lint", mended)["findings"] == []
    model = load_onnx(bad)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Own", "org.example"
    model.opset_import.add(domain="org.example", version=1)
    (tmp_path / "own.onnx").write_bytes(model.SerializeToString())
    assert run(export, "--lint", tmp_path / "own.onnx", "--mend", tmp_path / "none.onnx") == 2
    assert "org.example::Own is no standard operator (rule Q10)" in capfd.readouterr().err
    assert not (tmp_path / "none.onnx").exists()


def test_a_file_that_cannot_be_mended_is_named_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.onnx"
    assert run(export, "--lint", path, "--mend", tmp_path / "mended.onnx") == 2
    assert capfd.readouterr().err.count(str(path)) == 1


def test_what_is_wrong_is_said_in_one_sentence(
    fp32: Path,
    compressed: tuple[Path, Any],
    weights: Path,
    calibration: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    (tmp_path / "foreign.onnx").write_bytes(b"\x89PNG\r\n\x1a\n")
    other = tmp_path / "other"
    shutil.copytree(compressed[0], other)
    index = json.loads((other / "compression.json").read_text())
    index["spec"]["model"] = "qrpose_large"
    (other / "compression.json").write_text(json.dumps(index))
    damaged = tmp_path / "damaged"
    shutil.copytree(compressed[0], damaged)
    graph = bytearray((damaged / "pose.qdq.onnx").read_bytes())
    graph[99] ^= 1
    (damaged / "pose.qdq.onnx").write_bytes(graph)
    newer = tmp_path / "newer"
    shutil.copytree(compressed[0], newer)
    (newer / "compression.json").write_text(json.dumps({**index, "version": 99}))
    full_calibration = ("--calibration", calibration, "--out", out)
    cases: list[tuple[Any, tuple[object, ...], str]] = [
        (export, ("qrpose_tinny", "--out", out), "did you mean 'qrpose_tiny'"),
        (export, (MODEL, "--weights", tmp_path / "none.safetensors", "--out", out), "no such file"),
        (export, (MODEL, "--weights", tmp_path / "foreign.onnx", "--out", out), "foreign.onnx"),
        (export, (MODEL, "--compressed", fp32, "--out", out), "compression.json"),
        (export, (MODEL, "--compressed", other, "--out", out), "qrpose_large"),
        (export, (MODEL, "--compressed", damaged, "--out", out), "pose.qdq.onnx is missing or damaged"),
        (export, (MODEL, "--compressed", newer, "--out", out), "version 99"),
        (export, ("--lint", tmp_path / "foreign.onnx"), "not an ONNX model"),
        (export, ("--lint", tmp_path / "none.onnx"), "no such file"),
        (export, (), "give MODEL and --out"),
        (export, (MODEL, "--out", out, "--mend", out), "what --lint FILE reads"),
        (export, (MODEL, "--out", out, "--trt", "8.6"), "what --lint FILE reads"),
        (export, (MODEL, "--lint", tmp_path / "none.onnx"), "leave out MODEL"),
        (export, ("--lint", tmp_path / "none.onnx", "--weights", weights), "leave out MODEL and its options"),
        (export, ("--deepstream", fp32, "--out", out, "--option", "head=dense"), "takes --json alone"),
        (export, ("--deepstream", tmp_path / "none", "--out", fp32), "exists already"),
        (export, (MODEL, "--weights", tmp_path / "none.safetensors", "--out", newer), "is not a bundle"),
        (
            export,
            (MODEL, "--weights", weights, "--compressed", compressed[0], "--out", out),
            "leave out --weights",
        ),
        (compress, (tmp_path / "none", *full_calibration), "no such bundle"),
        (
            compress,
            (fp32, "--calibration", tmp_path / "none", "--weights", weights, "--out", out),
            "manifest",
        ),
        (
            compress,
            (fp32, "--calibration", calibration, "--weights", weights, "--out", tmp_path),
            "exists already",
        ),
    ]
    for command, arguments, said in cases:
        capfd.readouterr()
        assert run(command, *arguments) == 2, arguments
        captured = capfd.readouterr()
        assert said in captured.err, (arguments, captured.err)
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert not out.exists()


def test_other_weights_than_the_bundles_are_refused(
    fp32: Path, calibration: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    other.write_bytes(save({name: v.contiguous() for name, v in build(MODEL).state_dict().items()}))
    arguments = (fp32, "--calibration", calibration, "--weights", other, "--out", tmp_path / "c")
    assert run(compress, *arguments) == 2
    assert "not the weights of" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 2)]
)
@pytest.mark.parametrize("where", ["quantize_torch", "write"])
def test_interrupted_or_full_compression_leaves_nothing(
    fp32: Path,
    weights: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    where: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("edgepose.compression.verb_compress.quantize", lambda *_: None)
    monkeypatch.setattr("edgepose.compression.verb_compress.quantize_torch", lambda *_: None)
    monkeypatch.setattr("edgepose.compression.verb_compress.save_quantized_torch", lambda *_: None)
    monkeypatch.setattr(f"edgepose.compression.verb_compress.{where}", fail)
    out = tmp_path / "c"
    assert run(compress, fp32, "--calibration", calibration, "--weights", weights, "--out", out) == code
    assert not list(tmp_path.iterdir())


def test_a_model_that_onnx_gets_wrong_is_not_exported(
    fp32: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    graph = load_onnx(fp32 / "pose.fp32.onnx")
    name = next(node.input[2] for node in graph.graph.node if node.name == "score")
    bias = next(t for t in graph.graph.initializer if t.name == name)
    shifted = numpy_helper.to_array(bias) + np.float32(0.01)  # of a logit: 0.001 of a score
    bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))
    monkeypatch.setattr("edgepose.export.verb_export.trace", lambda *_: {"pose": graph})
    assert run(export, MODEL, "--weights", weights, "--out", tmp_path / "b") == 1
    assert "is not the PyTorch model" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compressed_folder_knows_its_files(compressed: tuple[Path, Any]) -> None:
    found = open_compressed(compressed[0])
    assert found.frames().shape == (4, 256, 256, 3)
    assert found.calibration["images"] == 16
    assert len(found.manifest()["images"]) == 16
    with pytest.raises(EdgeposeError, match="edgepose compress"):
        open_compressed(compressed[0].parent)


QAT_RECIPE = """
model: qrpose_tiny
seed: 1
threads: 1
precision: 32-true
data:
  {train: "synthetic:count=4,seed=5", validation: "synthetic:count=2,seed=9", workers: 0, min_area: 200}
schedule: {steps: 100, batch: 2, learning_rate: 0.1}
"""


@pytest.fixture(scope="session")
def trained_on(
    compressed: tuple[Path, Any], weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Any]:
    """The recipe, the folder of a run of two steps, and what the verb said."""
    folder = tmp_path_factory.mktemp("qat")
    recipe, out = folder / "recipe.yaml", folder / "run"
    recipe.write_text(QAT_RECIPE)
    options = ("--recipe", recipe, "--weights", weights, "--steps", 2, "--out", out)
    return recipe, out, run_json(qat, compressed[0], *options)


def test_qat_keeps_the_best_and_writes_what_compress_writes(
    trained_on: tuple[Path, Path, Any], compressed: tuple[Path, Any], weights: Path
) -> None:
    _, out, said = trained_on
    assert said["ap"].keys() == {"0", "1", "2"}
    before, after = open_compressed(compressed[0]), open_compressed(Path(said["out"]))
    assert after.settings == {**before.settings, "qat_steps": 2}
    assert (after.plan, after.spec, after.calibration) == (before.plan, before.spec, before.calibration)
    model, _ = load_model(MODEL, weights)
    kept = torch.from_numpy(before.frames()[:1].transpose(0, 3, 1, 2).astype(np.float32) / 255)
    load_quantized_torch(after.torch(), model, kept)  # is whole
    best = load_file(out / "best.safetensors")
    assert set(best) == set(load_file(out / "weights.safetensors"))


def test_qat_resumes_to_the_same_weights(
    trained_on: tuple[Path, Path, Any],
    compressed: tuple[Path, Any],
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, whole, said = trained_on
    found, (model, _), recipe = (
        open_compressed(compressed[0]),
        load_model(MODEL, weights),
        open_recipe(str(file)),
    )
    go = Trainer.learn

    def killed(trainer: Trainer, batch: Any) -> dict[str, float]:
        if trainer.step == 1:
            raise KeyboardInterrupt
        return go(trainer, batch)

    monkeypatch.setattr(Trainer, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(found, model, short(recipe, 2, weights), tmp_path, resume=False)
    monkeypatch.setattr(Trainer, "learn", go)
    with pytest.raises(EdgeposeError, match="holds a training run already; add --resume"):
        learn(found, model, short(recipe, 2, weights), tmp_path, resume=False)
    assert learn(found, model, short(recipe, 2, weights), tmp_path, resume=True) == said["ap"]
    for name in ("weights.safetensors", "best.safetensors"):
        one, other = load_file(whole / name), load_file(tmp_path / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_qat_refuses_another_recipe(
    compressed: tuple[Path, Any], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(QAT_RECIPE.replace("qrpose_tiny", "qrpose_edge"))
    options = ("--recipe", recipe, "--weights", weights, "--out", tmp_path / "run")
    assert run(qat, compressed[0], *options) == 2
    assert "the recipe: trains qrpose_edge; choose a recipe of qrpose_tiny" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
