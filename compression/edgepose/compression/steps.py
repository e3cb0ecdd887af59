"""Compression as a recipe of steps: prune, fine-tune, quantize, train in INT8, each measured before the next.

    edgepose compress RECIPE.yaml --out FOLDER

A step is the verbs that a user would type; its row joins the ledger, and one beyond the step's gate ends the
run. What lies in the folder is not made again, so that a killed run goes on where it was, if it starts from
the same weights and recipes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeFloat, PositiveInt
from rich.console import Console

from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.ledger import Gates, Ledger, Row, table
from edgepose.runtime.child import run_verb
from edgepose.runtime.drafts import draft_file, read_json, sha256, write_json
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.training.models import check_name, shipped_weights
from edgepose.training.recipe import checked, keys_of, open_recipe, require_fits
from edgepose.training.sections import Section

SUFFIXES = (".yaml", ".yml")
EXAMPLE = "compression/README.md has an example"
KEPT, START, LEDGER = "recipe.yaml", "start.json", "ledger.json"
FLOAT, PRUNED, TUNED, INT8, TRAINED = "float", "pruned", "fine-tuned", "INT8", "INT8, trained on"
# Of `edgepose verify`, by what a step makes.
FLOAT_ROW, INT8_ROW = "ONNX FP32 (CPU)", "ONNX INT8 (CPU)"
# AP, by each row's own gate, and duplicates: a pruned network moves joints and looks elsewhere.
GATES = Gates(max_median_drift_px=1e6, min_region_overlap=0.0, max_refined_shift=1.0)


class Step(Section):
    """What every step has."""

    max_ap_loss: NonNegativeFloat = 1.0  # points below the network that was given


class Prune(Step):
    """`edgepose prune`."""

    max_ap_loss: NonNegativeFloat = 100.0  # nobody may be found until tune has passed; its gate judges
    speed: Annotated[float, Field(gt=1)] = 1.6
    least: Annotated[float, Field(gt=0, lt=1)] = 0.25  # share of each layer's channels, or heads, that stays
    data: str


class Tune(Step):
    """`edgepose train`, from the pruned weights, with the given ones as the teacher."""

    recipe: str


class Quantize(Step):
    """`edgepose calibrate` and `edgepose compress`."""

    data: str
    count: PositiveInt = 300
    options: tuple[str, ...] = ()  # of `edgepose compress`, such as --keep-float=backbone.stem


class Train(Step):
    """`edgepose qat`."""

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
    recipe = _parse(path)
    check_name(recipe.model)
    if recipe.qat is not None and recipe.quantize is None:
        raise EdgeposeError(f"{path}: qat trains what quantize makes; add the section quantize")
    if recipe.prune and not recipe.tune and "max_ap_loss" not in recipe.prune.model_fields_set:
        raise EdgeposeError(
            f"{path}: tune judges what prune leaves; add the section tune, or prune.max_ap_loss"
        )
    # Else these would be found wrong after all the steps before them.
    for step in (recipe.tune, recipe.qat):
        if step is not None:
            require_fits(open_recipe(step.recipe), recipe.model, step.recipe)
    for source, key in _sources(recipe).items():
        try:
            open_dataset(source)
        except EdgeposeError as error:
            raise EdgeposeError(f"{path}: {key}: {error}") from error
    return recipe


def _parse(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EdgeposeError(f"{path}: no such recipe of steps") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise EdgeposeError(f"{path}: not a recipe ({error})") from error
    return checked(keys_of(text, str(path)), Recipe, str(path), EXAMPLE)


def _sources(recipe: Recipe) -> dict[str, str]:
    """All pictures that the steps will want, and what in the recipe names them first."""
    found = {recipe.data: "data"}
    for name, step in (("prune", recipe.prune), ("quantize", recipe.quantize)):
        if step is not None:
            found.setdefault(step.data, f"{name}.data")
    if recipe.tune is not None:
        data = open_recipe(recipe.tune.recipe).data
        for source in filter(None, (data.train, data.validation)):
            found.setdefault(source, f"{recipe.tune.recipe} of tune")
    if recipe.qat is not None:  # which is scored on the calibration set
        found.setdefault(open_recipe(recipe.qat.recipe).data.train, f"{recipe.qat.recipe} of qat")
    return found


@dataclass(slots=True)
class Run:
    """One run of a recipe in one folder."""

    recipe: Recipe
    out: Path
    rows: list[Row] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)  # --weights FILE of the newest floats, if not shipped
    environment: dict[str, str] = field(default_factory=dict)

    def steps(self) -> Iterator[Ledger]:
        """Do one step after the other; the ledger after each."""
        recipe = self.recipe
        self.weights = ["--weights", recipe.weights] if recipe.weights is not None else []
        self._float(FLOAT, "float")
        yield self._ledger()
        steps: tuple[tuple[Callable[[Any], None], Step | None], ...] = (
            (self._prune, recipe.prune),
            (self._tune, recipe.tune),
            (self._quantize, recipe.quantize),
            (self._train, recipe.qat),
        )
        for do, step in steps:
            if step is not None:
                do(step)
                self.rows[-1] = replace(self.rows[-1], max_ap_loss=step.max_ap_loss / 100)
                yield self._ledger()

    def _float(self, stage: str, name: str) -> None:
        """Export the newest floats as the bundle `name` and measure it."""
        self._make(name, "export", self.recipe.model, *self.weights)
        self._measure(stage, self.out / name, FLOAT_ROW)

    def _prune(self, step: Prune) -> None:
        how = ("--data", step.data, "--speed", step.speed, "--least", step.least)
        self._make("pruned", "prune", self.recipe.model, *self.weights, *how)
        self.weights = ["--weights", str(self.out / "pruned" / "weights.safetensors")]
        self._float(PRUNED, "pruned-bundle")

    def _tune(self, step: Tune) -> None:
        plan = open_recipe(step.recipe).model_dump(mode="json")
        plan["initial"] = self.weights[1] if self.weights else "shipped"
        # The recipe may say how much the teacher counts, but not who it is.
        plan["teacher"] = (plan["teacher"] or {}) | {"weights": self.recipe.weights or "shipped"}
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
            run_verb(verb, *arguments, "--out", self.out / name)

    def _learn(self, name: str, last: str, verb: str, *arguments: object) -> None:
        """Let a verb that can resume fill the folder `name` until `last` is in it."""
        folder = self.out / name
        resume = ("--resume",) if (folder / "checkpoint.safetensors").exists() else ()
        if not (folder / last).exists():
            run_verb(verb, *arguments, "--out", folder, *resume)

    def _measure(self, stage: str, bundle: Path, row: str) -> None:
        """Score a bundle; its `row` joins the ledger as `stage`."""
        place = bundle / LEDGER
        if not place.exists():
            shown = ("--data", self.recipe.data, "--min-height", self.recipe.min_height)
            # Its gates are about the bundle's own floats, ours about the network that was given.
            run_verb("verify", bundle, *shown, *self.weights, may_fail=True)
        ledger = Ledger.from_dict(json.loads(place.read_text(encoding="utf-8")), str(place))
        found = next(each for each in ledger.rows if each.stage == row)
        self.environment = ledger.environment
        drift = found.drift if stage in (INT8, TRAINED) else None  # from the newest floats
        # Times of different runs cannot be compared: `edgepose bench` times the bundles in turns.
        self.rows.append(replace(found, stage=stage, drift=drift, difference=None, latency=None))

    def _ledger(self) -> Ledger:
        """All steps so far, the network that was given first."""
        return Ledger(tuple(self.rows), GATES, self.environment, {"evaluation": self.recipe.data})


def run_steps(recipe: Recipe, out: Path, as_json: bool) -> None:
    """Compress by the recipe into the folder `out`, where a run of the same start goes on.

    Raises GateFailed when a step loses more AP than its gate allows, after it joined the ledger.
    """
    _begin(recipe, out)
    failed: list[str] = []
    for ledger in Run(recipe, out).steps():
        write_json(out / LEDGER, ledger.to_dict())
        if failed := ledger.verdict():
            break
    _show(ledger, as_json)
    if failed:
        raise GateFailed(f"{out}: the run ends here: {'; '.join(failed)}")


def _begin(recipe: Recipe, out: Path) -> None:
    """Keep the recipe and the start of the run in `out`. Raises EdgeposeError when there is another in it."""
    start = _start(recipe)
    if (out / START).exists():
        kept = read_json(out / START, "what a run starts from")
        if other := [name for name, value in start.items() if kept.get(name) != value]:
            raise EdgeposeError(
                f"{out}: holds a run that differs in {', '.join(other)}; choose another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise EdgeposeError(f"{out}: holds other things than such a run; choose another --out")
    write_json(out / START, start)
    with draft_file(out / KEPT) as temporary:
        temporary.write_text(
            yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
        )


def _start(recipe: Recipe) -> dict[str, Any]:
    """What a run starts from: what is in the files that the recipe names, not their names alone."""
    weights = shipped_weights(recipe.model) if recipe.weights is None else Path(recipe.weights)
    if not weights.is_file():
        raise EdgeposeError(f"{weights}: no such file of weights")
    return {
        "edgepose": version("edgepose"),
        "recipe": recipe.model_dump(mode="json"),
        "weights": sha256(weights),
        "the recipe of tune": _content(recipe.tune),
        "the recipe of qat": _content(recipe.qat),
    }


def _content(step: Tune | Train | None) -> str | None:
    """The sha256 of all that the step's recipe says."""
    if step is None:
        return None
    return hashlib.sha256(open_recipe(step.recipe).to_yaml().encode()).hexdigest()


def _show(ledger: Ledger, as_json: bool) -> None:
    if as_json:
        print(json.dumps(ledger.to_dict(), indent=1))
    else:
        Console(file=sys.stdout, width=100).print(table(ledger))
