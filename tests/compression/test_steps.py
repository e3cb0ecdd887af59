"""A recipe of steps: their order, what they are told, gates, going on after a kill, and wrong recipes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgepose.calibration.ledger import Gates, Ledger, Row
from edgepose.calibration.sample import Person
from edgepose.calibration.score import evaluate
from edgepose.compression import steps
from edgepose.compression.steps import open_steps, run_steps
from edgepose.compression.verb_compress import compress
from edgepose.runtime.cli import guarded
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.poses import Poses
from edgepose.runtime.skeleton import COCO17
from edgepose.training.recipe import open_recipe

WHOLE = {
    "model": "qrpose_tiny",
    "data": "synthetic:count=2,seed=7",
    "prune": {"data": "synthetic:count=2,seed=3", "max_ap_loss": 10},
    "tune": {"recipe": "qrpose_smoke", "max_ap_loss": 3},
    "quantize": {"data": "synthetic:count=40,seed=11", "count": 16, "options": ["--keep-float=kpt"]},
    "qat": {"recipe": "qrpose_tiny", "steps": 2},
}


JOINTS = np.array([[10.0 + place, 20.0 + place] for place in range(17)], np.float32)
SOMEBODY = Person(JOINTS, np.full(17, 2, np.uint8), (10.0, 20.0, 16.0, 16.0), 100.0)
SCORE = evaluate([(SOMEBODY,)], [Poses.empty()], COCO17)


def row(stage: str, ap: float) -> Row:
    return Row(stage, replace(SCORE, ap=ap))


class Verbs:
    """Stands in for the verbs: notes the commands, writes what they would, scores as it is told."""

    def __init__(self, aps: dict[str, float], killed_at: str = "") -> None:
        self.aps, self.killed_at = aps, killed_at
        self.lines: list[str] = []

    def __call__(self, *words: object, may_fail: bool = False) -> None:
        assert may_fail == (words[0] == "verify")
        line = [str(word) for word in words]
        self.lines.append(" ".join(line))
        if self.killed_at and self.killed_at in self.lines[-1]:
            raise KeyboardInterrupt
        if line[0] == "verify":
            self._verify(Path(line[1]))
            return
        out = Path(line[line.index("--out") + 1])
        out.mkdir()
        if line[0] == "train":
            (out / "result.json").touch()
        if line[0] == "qat":
            (out / "compressed").mkdir()

    def _verify(self, bundle: Path) -> None:
        ap = self.aps[bundle.name]
        ledger = Ledger((row("torch FP32", ap), row(steps.FLOAT_ROW, ap), row(steps.INT8_ROW, ap)), Gates())
        (bundle / "ledger.json").write_text(json.dumps(ledger.to_dict()))


GATES = ("--max-ap-loss", "--max-drift", "--min-height")
APS = {"float": 0.5, "pruned-bundle": 0.42, "tuned-bundle": 0.49, "int8": 0.495, "trained": 0.498}


def recipe(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "steps.yaml"
    kept = {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(kept))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def stages(out: Path) -> list[str]:
    return [each["stage"] for each in json.loads((out / "ledger.json").read_text())["rows"]]


def test_the_steps_follow_one_another_and_end_in_one_ledger(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs = Verbs(APS)
    monkeypatch.setattr(steps, "run_verb", verbs)
    run_steps(open_steps(recipe(tmp_path)), out, as_json=False)
    assert " ".join(line.split()[0] for line in verbs.lines) == (
        "export verify prune export verify train export verify "
        "calibrate compress export verify qat export verify"
    )
    pruned, tuned = (f"--weights {out}/{name}/weights.safetensors" for name in ("pruned", "tuned"))
    assert verbs.lines[2].endswith("--speed 1.6 --least 0.25 --out " + str(out / "pruned"))
    assert pruned in verbs.lines[3]
    plan = yaml.safe_load((out / "tune.yaml").read_text())
    assert plan["initial"] == str(out / "pruned" / "weights.safetensors")
    assert plan["teacher"]["weights"] == "shipped"
    compressing = next(line for line in verbs.lines if line.startswith("compress"))
    assert compressing.startswith(
        f"compress {out}/tuned-bundle --calibration {out}/calibration {tuned} --keep"
    )
    assert f"qat {out}/compressed --recipe qrpose_tiny --steps 2 {tuned}" in verbs.lines[-3]
    assert stages(out) == ["float", "pruned", "fine-tuned", "INT8", "INT8, trained on"]
    assert "fine-tuned" in capsys.readouterr().out


def test_steps_are_optional(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verbs = Verbs(APS)
    monkeypatch.setattr(steps, "run_verb", verbs)
    run_steps(open_steps(recipe(tmp_path, prune=None, tune=None, qat=None)), out, as_json=True)
    assert stages(out) == ["float", "INT8"]
    compressing = next(line for line in verbs.lines if line.startswith("compress"))
    assert compressing.startswith(f"compress {out}/float --calibration")
    assert "--weights" not in compressing


def test_a_gate_ends_the_run_after_its_row(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "run_verb", Verbs({**APS, "tuned-bundle": 0.46}))
    words = "fine-tuned: loses 4.00 points of AP, 3.00 are allowed"
    with pytest.raises(GateFailed, match=f"the run ends here: {words}$"):
        run_steps(open_steps(recipe(tmp_path)), out, as_json=True)
    assert stages(out) == ["float", "pruned", "fine-tuned"]
    ledger = json.loads((out / "ledger.json").read_text())
    assert (ledger["passed"], ledger["verdict"]) == (False, [words])


def test_each_step_has_a_gate_of_its_own(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One point, where the recipe says nothing; what prune leaves is judged by the gate of tune."""
    monkeypatch.setattr(steps, "run_verb", Verbs({**APS, "pruned-bundle": 0.0, "tuned-bundle": 0.491}))
    changes = {"prune": {"data": "synthetic:count=2"}, "tune": {"recipe": "qrpose_smoke"}}
    run_steps(open_steps(recipe(tmp_path, **changes)), out, as_json=True)
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["passed"]
    assert [each["max_ap_loss"] for each in ledger["rows"]] == [None, 1.0, 0.01, 0.01, 0.01]
    monkeypatch.setattr(steps, "run_verb", Verbs({**APS, "tuned-bundle": 0.48}))
    with pytest.raises(GateFailed, match=r"fine-tuned: loses 2.00 points of AP, 1.00 are allowed"):
        run_steps(open_steps(recipe(tmp_path, **changes)), tmp_path / "other", as_json=True)


@pytest.mark.parametrize("place", ["prune ", "train ", "compress ", "qat ", "verify {out}/int8"])
def test_a_killed_run_goes_on_where_it_was(
    place: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe(tmp_path)
    killed = Verbs(APS, place.format(out=out))
    monkeypatch.setattr(steps, "run_verb", killed)
    with pytest.raises(KeyboardInterrupt):
        run_steps(open_steps(file), out, as_json=True)
    again = Verbs(APS)
    monkeypatch.setattr(steps, "run_verb", again)
    run_steps(open_steps(file), out, as_json=True)
    whole = Verbs(APS)
    monkeypatch.setattr(steps, "run_verb", whole)
    run_steps(open_steps(file), tmp_path / "whole", as_json=True)
    assert [line.split()[0] for line in (*killed.lines[:-1], *again.lines)] == [
        line.split()[0] for line in whole.lines
    ]
    assert stages(out) == stages(tmp_path / "whole")


def test_training_that_was_stopped_is_resumed(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe(tmp_path, prune=None)
    monkeypatch.setattr(steps, "run_verb", Verbs(APS, "train "))
    with pytest.raises(KeyboardInterrupt):
        run_steps(open_steps(file), out, as_json=True)
    (out / "tuned").mkdir()
    (out / "tuned" / "checkpoint.safetensors").touch()
    again = Verbs(APS, "train ")
    monkeypatch.setattr(steps, "run_verb", again)
    with pytest.raises(KeyboardInterrupt):
        run_steps(open_steps(file), out, as_json=True)
    assert again.lines[-1].endswith("--resume")


def test_other_recipes_and_other_things_are_not_overwritten(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "run_verb", Verbs(APS))
    run_steps(open_steps(recipe(tmp_path)), out, as_json=True)
    with pytest.raises(EdgeposeError, match="holds a run that differs in recipe; choose another --out"):
        run_steps(open_steps(recipe(tmp_path, min_height=48)), out, as_json=True)
    with pytest.raises(EdgeposeError, match="holds other things than such a run"):
        run_steps(open_steps(recipe(tmp_path)), tmp_path, as_json=True)


@pytest.mark.parametrize("changed", ["weights", "the recipe of tune", "the recipe of qat", "edgepose"])
def test_a_run_does_not_go_on_from_another_start(
    changed: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of steps says the same, but not what lies behind the names in it."""
    files = {name: tmp_path / name for name in ("weights", "the recipe of tune", "the recipe of qat")}
    files["weights"].write_bytes(b"1")
    for name, shipped in (("the recipe of tune", "qrpose_smoke"), ("the recipe of qat", "qrpose_tiny")):
        open_recipe(shipped).save(files[name])
    steps_of = {name: {"recipe": str(files[f"the recipe of {name}"])} for name in ("tune", "qat")}
    plan = recipe(tmp_path, weights=str(files["weights"]), **steps_of)
    monkeypatch.setattr(steps, "run_verb", Verbs({**APS, "tuned-bundle": 0.5}))
    run_steps(open_steps(plan), out, as_json=True)
    run_steps(open_steps(plan), out, as_json=True)
    if changed == "weights":
        files[changed].write_bytes(b"2")
    elif changed == "edgepose":
        monkeypatch.setattr(steps, "version", lambda _: "0.0.1")
    else:
        files[changed].write_text(files[changed].read_text().replace("seed: ", "seed: 1"))
    with pytest.raises(EdgeposeError, match=f"holds a run that differs in {changed}; choose another --out"):
        run_steps(open_steps(plan), out, as_json=True)


def test_weights_that_are_not_there_are_missed_before_the_first_step(tmp_path: Path, out: Path) -> None:
    with pytest.raises(EdgeposeError, match=r"none.safetensors: no such file of weights"):
        run_steps(open_steps(recipe(tmp_path, weights="none.safetensors")), out, as_json=True)
    assert not out.exists()


def test_the_recipe_of_the_readme_opens(tmp_path: Path) -> None:
    readme = Path(__file__).parents[2] / "compression" / "README.md"
    (tmp_path / "steps.yaml").write_text(readme.read_text().split("```yaml\n")[1].split("```")[0])
    found = open_steps(tmp_path / "steps.yaml")
    assert all((found.prune, found.tune, found.quantize, found.qat))


def own(tmp_path: Path, section: str, changes: dict[str, Any]) -> dict[str, str]:
    """A step by the shipped smoke recipe with values of our own in one section."""
    values = open_recipe("qrpose_smoke").model_dump(mode="json")
    values[section] = {**(values[section] or {}), **changes}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    return {"recipe": str(tmp_path / "own.yaml")}


@pytest.mark.parametrize(("step", "key"), [("tune", "train"), ("tune", "validation"), ("qat", "train")])
def test_pictures_of_a_later_recipe_are_missed_before_the_first_step(
    step: str, key: str, tmp_path: Path
) -> None:
    found = own(tmp_path, "data", {key: "nowhere.json"})
    with pytest.raises(EdgeposeError, match=rf"own\.yaml of {step}: nowhere\.json: no such file"):
        open_steps(recipe(tmp_path, **{step: found}))


def test_the_recipe_of_tune_says_how_much_the_teacher_counts(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = own(tmp_path, "teacher", {"weights": "other.safetensors", "weight": 0.3})
    monkeypatch.setattr(steps, "run_verb", Verbs(APS, "train "))
    with pytest.raises(KeyboardInterrupt):
        run_steps(open_steps(recipe(tmp_path, prune=None, tune=found)), out, as_json=True)
    teacher = yaml.safe_load((out / "tune.yaml").read_text())["teacher"]
    assert teacher == {"weights": "shipped", "weight": 0.3}


TINY, FEW = "model: qrpose_tiny\ndata", "synthetic:count=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not a recipe"),
        ("x: " + 5000 * "9", "not a recipe"),
        ("x: &self [*self]", "not a recipe"),
        (5000 * "[", "not a recipe"),
        ("model: 2026-01-01\ndata: y", "unknown model '2026-01-01'"),
        ("", "not a recipe: expected keys"),
        ("- prune", "not a recipe: expected keys"),
        ("model: qrpose_tiny", r"key 'data' is missing; add it \(compression/README.md has an example\)"),
        ("model: qrpose_tny\ndata: y", "unknown model 'qrpose_tny'; did you mean 'qrpose_tiny'"),
        ("model: x\ndata: y\nquantise: {data: z}", "unknown key 'quantise'; did you mean 'quantize'"),
        ("model: x\ndata: y\nprune: {sped: 2}", "unknown key 'prune.sped'; did you mean 'speed'"),
        ("model: x\ndata: y\nprune: 3", "key 'prune' is 3: Input should be an object"),
        ("model: x\ndata: y\nprune: {data: z, speed: -1}", "key 'prune.speed' is -1: Input should be gre"),
        (f"{TINY}: y\nqat: {{recipe: z}}", "qat trains what quantize makes; add the section quantize"),
        (f"{TINY}: y\nprune: {{data: z}}", "tune judges what prune leaves; add the section tune"),
        (f"{TINY}: y", r"steps\.yaml: data: y: no such file"),
        (f"{TINY}: {FEW}\nquantize: {{data: synthetic:cuont=3}}", r"quantize\.data: .*unknown key 'cuont'"),
        (f"{TINY}: {FEW}\nprune: {{data: z, max_ap_loss: 9}}", r"prune\.data: z: no such file"),
        (
            "model: qrpose_edge\ndata: y\ntune: {recipe: qrpose_smoke}",
            "qrpose_smoke: trains qrpose_tiny; choose",
        ),
        (
            "model: qrpose_edge\ndata: y\nquantize: {data: z}\nqat: {recipe: qrpose_smoke}",
            "qrpose_smoke: trains qrpose_tiny; choose",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_wrong_recipes_are_refused_with_the_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "steps.yaml"
    path.write_text(text)
    with pytest.raises(EdgeposeError, match=message):
        open_steps(path)


def test_the_verb_refuses_what_does_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> int:
        return guarded(lambda: compress.main([str(word) for word in words], standalone_mode=False))

    assert run(tmp_path / "no.yaml", "--out", tmp_path / "out") == 2
    assert "no such recipe of steps" in capsys.readouterr().err
    for option, value in (("--auto", "synthetic:count=2"), *((gate, 0.2) for gate in GATES)):
        assert run(recipe(tmp_path), option, value, "--out", tmp_path / "out") == 2
        assert "a recipe of steps says all itself" in capsys.readouterr().err
    for gate in GATES:
        assert run(tmp_path / "bundle", gate, 0.2, "--out", tmp_path / "out") == 2
        assert "are for --auto; give it, too" in capsys.readouterr().err
    assert run(tmp_path / "bundle", "--out", tmp_path / "out") == 2
    assert "Missing option '--calibration'" in capsys.readouterr().err
