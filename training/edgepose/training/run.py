"""A whole run: train, publish the averaged weights, score them on the validation data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepose.calibration.dataset import open_dataset
from edgepose.runtime.drafts import write_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.evaluation import require_people
from edgepose.training.loop import CHECKPOINT, RECIPE, WEIGHTS, Trainer
from edgepose.training.models import load_published
from edgepose.training.sections import Recipe

RESULT = "result.json"


def train_and_score(recipe: Recipe, out: Path, resume: bool = False) -> dict[str, Any] | None:
    """Train into the folder `out`; the figures of the run, which are also written to result.json.

    With several processes only the first one has figures, the others get None.

    Raises EdgeposeError when `out` holds another run, or has none to resume, and when nobody can be scored.
    """
    if not resume and (out / CHECKPOINT).exists():
        raise EdgeposeError(f"{out}: holds a training run already; add --resume, or choose another --out")
    validation = None
    if recipe.data.validation:
        validation = open_dataset(recipe.data.validation)
        require_people(validation, recipe.data.validation)  # else found after all the training
    trainer = Trainer(recipe, out)
    if resume:
        trainer.resume()
    if trainer.first:
        out.mkdir(parents=True, exist_ok=True)
        recipe.save(out / RECIPE)
    losses = trainer.run()
    if not trainer.first:
        return None
    score = None
    if validation is not None:
        model = trainer.course.fresh_model()
        load_published(model, out / WEIGHTS)
        score = trainer.course.score(model, validation)
    figures = {
        "model": recipe.model,
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "weights": str(out / WEIGHTS),
        "losses": {name: round(value, 4) for name, value in losses.items()},
        "score": score,
    }
    write_json(out / RESULT, figures)
    return figures
