"""Compression as a recipe of steps: prune, fine-tune, quantize, train in INT8, each measured before the next.

    edgepose compress RECIPE.yaml --out FOLDER

A step is the verbs that a user would type; its row joins the ledger, and one beyond the step's gate ends the
run. What lies in the folder is not made again, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError
from rich.console import Console

from edgepose.calibration.ledger import Gates, Ledger, Row, table
from edgepose.runtime.drafts import draft_file, write_json
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.training.recipe import open_recipe, require_fits
from edgepose.training.sections import Section

log = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml")
KEPT, LEDGER = "recipe.yaml", "ledger.json"
FLOAT, PRUNED, TUNED, INT8, TRAINED = "float", "pruned", "fine-tuned", "INT8", "INT8, trained on"
# Of `edgepose verify`, by what a step makes.
FLOAT_ROW, INT8_ROW = "ONNX FP32 (CPU)", "ONNX INT8 (CPU)"


class Step(Section):
    """What every step has."""

    max_ap_loss: NonNegativeFloat = 100.0  # points below the network that was given


class Prune(Step):
    """`edgepose prune`."""

    speed: Annotated[float, Field(gt=1)] = 1.6
    data: str


class Tune(Step):
    """`edgepose train`, from the pruned weights, with the given ones as the teacher."""

    recipe: str


class Quantize(Step):
    """`edgepose calibrate` and `edgepose compress`."""

    max_ap_loss: NonNegativeFloat = 1.0
    data: str
    count: PositiveInt = 300
    options: tuple[str, ...] = ()  # of `edgepose compress`, such as --keep-float=backbone.stem


class Train(Step):
    """`edgepose qat`."""

    max_ap_loss: NonNegativeFloat = 1.0
    recipe: str
    steps: PositiveInt = 300


class Recipe(Section):
    """A whole compression; a step that is not named is left out."""

    model: str
    weights: str | None = None  # null: those that come with edgepose
    data: str  # evaluation pictures
    min_height: NonNegativeFloat = 0.0  # pixels; people lower than this do not count
    prune: Prune | None = None
    tune: Tune | None = None
    quantize: Quantize | None = None
    qat: Train | None = None


def open_steps(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises EdgeposeError naming the file, the key and what is wrong."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EdgeposeError(f"{path}: no such recipe of steps") from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise EdgeposeError(f"{path}: not a recipe of steps ({' '.join(str(error).split())})") from error
    try:
        recipe = Recipe.model_validate_json(json.dumps(values))
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        key = ".".join(map(str, first["loc"]))
        raise EdgeposeError(f"{path}: key {key!r}: {first['msg']}") from error
    if recipe.qat is not None and recipe.quantize is None:
        raise EdgeposeError(f"{path}: qat trains what quantize makes; add the section quantize")
    # Else they would be found wrong after all the steps before them.
    for step in (recipe.tune, recipe.qat):
        if step is not None:
            require_fits(open_recipe(step.recipe), recipe.model, step.recipe)
    return recipe


@dataclass(slots=True)
class Run:
    """One run of a recipe in one folder."""

    recipe: Recipe
    out: Path
    rows: list[Row] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)  # --weights FILE of the newest floats, if not shipped
    environment: dict[str, str] = field(default_factory=dict)

    def steps(self) -> Iterator[tuple[str, float]]:
        """Do one step after the other; the name of each one done and the points of AP that it may lose."""
        recipe = self.recipe
        self.weights = ["--weights", recipe.weights] if recipe.weights is not None else []
        self._float(FLOAT, "float")
        yield FLOAT, 0.0
        steps: tuple[tuple[str, Callable[[Any], None], Step | None], ...] = (
            (PRUNED, self._prune, recipe.prune),
            (TUNED, self._tune, recipe.tune),
            (INT8, self._quantize, recipe.quantize),
            (TRAINED, self._train, recipe.qat),
        )
        for stage, do, step in steps:
            if step is not None:
                do(step)
                yield stage, step.max_ap_loss

    def _float(self, stage: str, name: str) -> None:
        """Export the newest floats as the bundle `name` and measure it."""
        self._make(name, "export", self.recipe.model, *self.weights)
        self._measure(stage, self.out / name, FLOAT_ROW)

    def _prune(self, step: Prune) -> None:
        self._make(
            "pruned", "prune", self.recipe.model, *self.weights, "--data", step.data, "--speed", step.speed
        )
        self.weights = ["--weights", str(self.out / "pruned" / "weights.safetensors")]
        self._float(PRUNED, "pruned-bundle")

    def _tune(self, step: Tune) -> None:
        teacher = {"weights": self.recipe.weights or "shipped"}
        initial = self.weights[1] if self.weights else "shipped"
        plan = open_recipe(step.recipe).model_dump(mode="json") | {"initial": initial, "teacher": teacher}
        with draft_file(self.out / "tune.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        self._learn("tuned", "result.json", "train", self.out / "tune.yaml")
        self.weights = ["--weights", str(self.out / "tuned" / "weights.safetensors")]
        self._float(TUNED, "tuned-bundle")

    def _quantize(self, step: Quantize) -> None:
        chosen = ("--data", step.data, "--exclude", self.recipe.data, "--count", step.count)
        self._make("calibration", "calibrate", *chosen)
        calibration = ("--calibration", self.out / "calibration")
        self._make("compressed", "compress", self._newest(), *calibration, *self.weights, *step.options)
        self._make("int8", "export", self.recipe.model, "--compressed", self.out / "compressed")
        self._measure(INT8, self.out / "int8", INT8_ROW)

    def _train(self, step: Train) -> None:
        told = ("--recipe", step.recipe, "--steps", step.steps, *self.weights)
        self._learn("qat", "compressed", "qat", self.out / "compressed", *told)
        self._make("trained", "export", self.recipe.model, "--compressed", self.out / "qat" / "compressed")
        self._measure(TRAINED, self.out / "trained", INT8_ROW)

    def _newest(self) -> Path:
        """The float bundle that was made last."""
        names = ("tuned-bundle", "pruned-bundle", "float")
        return next(self.out / name for name in names if (self.out / name).exists())

    def _make(self, name: str, verb: str, *arguments: object) -> None:
        """Let a verb write the folder `name`, unless it is there: verbs leave none that is not whole."""
        if not (self.out / name).exists():
            _edgepose(verb, *arguments, "--out", self.out / name)

    def _learn(self, name: str, last: str, verb: str, *arguments: object) -> None:
        """Let a verb that can resume fill the folder `name` until `last` is in it."""
        folder = self.out / name
        resume = ("--resume",) if (folder / "checkpoint.safetensors").exists() else ()
        if not (folder / last).exists():
            _edgepose(verb, *arguments, "--out", folder, *resume)

    def _measure(self, stage: str, bundle: Path, row: str) -> None:
        """Score a bundle; its `row` joins the ledger as `stage`."""
        place = bundle / LEDGER
        if not place.exists():
            shown = ("--data", self.recipe.data, "--min-height", self.recipe.min_height)
            # Its gates are about the bundle's own floats, ours about the network that was given.
            _edgepose("verify", bundle, *shown, *self.weights, may_fail=True)
        ledger = Ledger.from_dict(json.loads(place.read_text(encoding="utf-8")), str(place))
        found = next(each for each in ledger.rows if each.stage == row)
        self.environment = ledger.environment
        drift = found.drift if stage in (INT8, TRAINED) else None  # from the newest floats
        # Times of different runs cannot be compared: `edgepose bench` times the bundles in turns.
        self.rows.append(replace(found, stage=stage, drift=drift, difference=None, latency=None))

    def ledger(self) -> Ledger:
        """All steps so far, the network that was given first."""
        return Ledger(tuple(self.rows), Gates(1.0, 1e6), self.environment, {"evaluation": self.recipe.data})


def run_steps(recipe: Recipe, out: Path, as_json: bool) -> None:
    """Compress by the recipe into the folder `out`, where a run of the same recipe goes on.

    Raises GateFailed when a step loses more AP than its gate allows, after it joined the ledger.
    """
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    kept = out / KEPT
    if kept.exists() and kept.read_text(encoding="utf-8") != text:
        raise EdgeposeError(f"{out}: holds a run of another recipe; choose another --out")
    if out.exists() and not kept.exists() and any(out.iterdir()):
        raise EdgeposeError(f"{out}: holds other things than such a run; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with draft_file(kept) as temporary:
        temporary.write_text(text, encoding="utf-8")
    run, failure = Run(recipe, out), ""
    for stage, allowed in run.steps():
        ledger = run.ledger()
        write_json(out / LEDGER, ledger.to_dict())
        lost = 100 * ledger.ap_loss(ledger.rows[-1])
        if lost > allowed:
            failure = f"{stage} loses {lost:.2f} points of AP, {allowed:.2f} are allowed"
            break
    _show(run.ledger(), as_json)
    if failure:
        raise GateFailed(f"{out}: the run ends here: {failure}")


def _show(ledger: Ledger, as_json: bool) -> None:
    if as_json:
        print(json.dumps(ledger.to_dict(), indent=1))
    else:
        Console(file=sys.stdout, width=100).print(table(ledger))


def _edgepose(*words: object, may_fail: bool = False) -> None:
    """Run a verb as a user would; its bars and words go where ours do. `may_fail`: at a gate of its own."""
    line = [str(word) for word in words]
    log.info("edgepose %s", " ".join(line))
    command = [sys.executable, "-m", "edgepose.runtime.cli", *line]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode not in ((0, 1) if may_fail else (0,)):
        raise EdgeposeError(f"`edgepose {line[0]}` failed (exit code {done.returncode}); see above")
