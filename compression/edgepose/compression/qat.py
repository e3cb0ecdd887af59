"""Quantization-aware training: a quantized network learns on, in the loop that its float one learnt in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgepose.calibration.calibration_set import Manifest
from edgepose.calibration.dataset import Chosen, Dataset, open_dataset
from edgepose.calibration.evaluation import MANIFEST
from edgepose.compression.artefact import Compressed
from edgepose.compression.torch_quantize import rebuild_quantized_torch
from edgepose.compression.trainable import quantizers, with_learning_quantizers
from edgepose.runtime.drafts import read_json, write_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import normalise
from edgepose.runtime.spec import Spec
from edgepose.training.checkpoint import save_tensors
from edgepose.training.families import course_of
from edgepose.training.families.course import Batch, Course, Group
from edgepose.training.loop import CHECKPOINT, RECIPE, Trainer
from edgepose.training.models.sparsity import PATTERN, is_sparse
from edgepose.training.models.weights import read_weights
from edgepose.training.recipe import require_fits
from edgepose.training.sections import PictureRecipe, Recipe, Teacher

BEST, JUDGED = "best.safetensors", "judged.json"
SLOWER = 20  # times slower than from random weights
SCALES = 4.0  # how much faster than the weights the quantizers' scales learn
JUDGEMENTS = 5  # how often the average is scored on the way

B = TypeVar("B", bound=Batch)


class QuantizedCourse(Course[Recipe, B]):
    """The course of a network in floats, followed by its quantized form; the teacher is the former."""

    def __init__(self, inner: Course[Any, B], fresh: Callable[[], nn.Module]) -> None:
        super().__init__(inner.recipe, inner.rank)
        self._inner, self._fresh = inner, fresh

    @property
    def spec(self) -> Spec:
        return self._inner.spec

    def fresh_model(self) -> nn.Module:
        return self._fresh()

    def teacher_model(self) -> nn.Module:
        return self._inner.fresh_model()

    def begin(self, model: nn.Module) -> None:
        """It begins with the weights that were quantized."""

    def groups(self, model: nn.Module) -> list[Group]:
        scales = {id(quantizer.logarithm): quantizer.logarithm for quantizer in quantizers(model).values()}
        weights = [parameter for parameter in model.parameters() if id(parameter) not in scales]
        return [
            Group(params=weights, weight_decay=self.recipe.schedule.weight_decay, scale=1.0, orthogonal=0),
            Group(params=list(scales.values()), weight_decay=0.0, scale=SCALES, orthogonal=0),
        ]

    def batches(self, first: int) -> Iterable[B]:
        return self._inner.batches(first)

    def terms(self, wrapped: nn.Module, batch: B, step: int) -> dict[str, Tensor]:
        self._inner.teacher = self.teacher
        return self._inner.terms(wrapped, batch, step)

    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, Any]:
        return self._inner.score(model, dataset)


def short(recipe: Recipe, steps: int, weights: Path | None = None) -> Recipe:
    """The recipe of a network, cut to a few slow steps with the floats as the teacher.

    `weights` None: those that come with edgepose.
    """
    schedule = recipe.schedule.model_copy(
        update={
            "steps": steps,
            "learning_rate": recipe.schedule.learning_rate / SLOWER,
            "drops": None,
            "ema": 0.98,
            "checkpoint_steps": max(1, steps // JUDGEMENTS),
        }
    )
    teacher = Teacher(weights="shipped" if weights is None else str(weights))
    return recipe.model_copy(update={"schedule": schedule, "initial": None, "teacher": teacher})


def learn(
    found: Compressed, model: nn.Module, recipe: Recipe, out: Path, resume: bool
) -> dict[str, float] | None:
    """Train the quantized form of the float `model` into the folder `out`; keeps the best average of all.

    They are judged on the pictures of the calibration set, the first one being the form as it was. Weights
    that follow the 2:4 pattern go on following it, whether or not the recipe says so. Returns the AP by the
    steps after which it was judged; in processes but the first None. Raises EdgeposeError as `edgepose train`
    does, for a recipe of another model or size, and as `calibrated_on` does.
    """
    require_fits(recipe, found.spec.model, "the recipe")
    _require_size(recipe, found)
    pictures = calibrated_on(found)
    if is_sparse(model):
        recipe = recipe.model_copy(update={"sparsity": PATTERN})
    if not resume and (out / CHECKPOINT).exists():
        raise EdgeposeError(f"{out}: holds a training run already; add --resume, or choose another --out")
    fresh = partial(learning_form, found, model)
    trainer = Trainer(recipe, out, lambda given, rank: QuantizedCourse(course_of(given, rank), fresh))
    if resume:
        trainer.resume()
    elif trainer.first:  # a run that died before its first checkpoint may have left another network's
        for name in (BEST, JUDGED):
            (out / name).unlink(missing_ok=True)
    judge = Judge(trainer.course, pictures, out)
    if trainer.first:
        out.mkdir(parents=True, exist_ok=True)
        recipe.save(out / RECIPE)
        judge(trainer.step, trainer.average.state)
    trainer.run(lambda: judge(trainer.step, trainer.average.state))
    return judge.said if trainer.first else None


def _require_size(recipe: Recipe, found: Compressed) -> None:
    if not isinstance(recipe, PictureRecipe):  # its model has one size
        return
    width, height = found.spec.width, found.spec.height
    if (recipe.size, recipe.size) != (width, height):
        raise EdgeposeError(
            f"the recipe: its size is {recipe.size}, the network of {found.folder} takes "
            f"{width} x {height} pixels; choose a recipe of that size"
        )


def learning_form(found: Compressed, model: nn.Module) -> nn.Module:
    """The quantized form of the float `model`, all of it learning."""
    theirs = rebuild_quantized_torch(found.torch(), model, example_of(found))
    return with_learning_quantizers(theirs).requires_grad_(True)


def example_of(found: Compressed) -> Tensor:
    """One picture (1, 3, height, width) as the network gets it."""
    return torch.from_numpy(normalise(found.frames()[0], found.spec))


def calibrated_on(found: Compressed) -> Dataset:
    """The labelled pictures of the calibration set: those that no evaluation of the result takes.

    Raises EdgeposeError when the set's source is gone or has other pictures now.
    """
    manifest = Manifest.from_dict(found.manifest(), found.folder / MANIFEST)
    source, entries = open_dataset(manifest.source), manifest.images
    for entry in entries:
        if entry.index >= len(source) or source.fingerprint(entry.index) != entry.pixels:
            raise EdgeposeError(
                f"{manifest.source}: its picture {entry.index} is not what {found.folder} was calibrated on; "
                "calibrate and compress again"
            )
    return Chosen(source, [entry.index for entry in entries])


class Judge:
    """Scores averages on labelled pictures and keeps the best one in a folder, over all resumes."""

    def __init__(self, course: Course[Any, Any], dataset: Dataset, folder: Path) -> None:
        self._course, self._dataset, self._folder = course, dataset, folder
        self._model = course.fresh_model()
        place = folder / JUDGED
        self.said: dict[str, float] = read_json(place, "judgements") if place.is_file() else {}

    def __call__(self, step: int, state: dict[str, Tensor]) -> None:
        """Judge the `state` after so many steps, unless that was done."""
        if str(step) in self.said:
            return
        self._model.load_state_dict(state)
        ap = float(self._course.score(self._model, self._dataset)["ap"])
        if ap > max(self.said.values(), default=-1.0):
            save_tensors(self._folder / BEST, state, {"edgepose.step": str(step)})
        self.said[str(step)] = ap
        write_json(self._folder / JUDGED, self.said)


def best_form(found: Compressed, model: nn.Module, out: Path) -> nn.Module:
    """What `learn` kept."""
    best = learning_form(found, model)
    best.load_state_dict(read_weights(out / BEST))
    return best.eval()
