"""Learning from a teacher: nothing to learn from itself, exact resume, errors in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.batch import normalised
from edgepose.training.loop import CHECKPOINT, WEIGHTS, Trainer
from edgepose.training.models.teaching import divergence, missed
from edgepose.training.models.weights import read_weights
from edgepose.training.recipe import open_recipe
from edgepose.training.run import train_and_score
from edgepose.training.sections import Recipe, Teacher

FAMILIES = ("qrpose_smoke", "querypose_smoke", "sharpose_smoke")


@pytest.fixture(scope="module", params=FAMILIES)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run whose teacher is the network that the run starts from."""
    recipe = open_recipe(request.param)
    schedule = recipe.schedule.model_copy(update={"steps": 3, "checkpoint_steps": 2, "batch": 2})
    recipe = recipe.model_copy(update={"schedule": schedule})
    out = tmp_path_factory.mktemp("teacher") / "run"
    trainer = Trainer(recipe, out)
    trainer.save()
    weights = str(out / WEIGHTS)
    return recipe.model_copy(update={"initial": weights, "teacher": Teacher(weights=weights, weight=2.0)})


def terms(trainer: Trainer) -> dict[str, float]:
    """Of the first batch, with the network's own forward in training and its layers in evaluation.

    In double precision: QueryPose pools in another order of sums when it learns.
    """
    for network in (trainer.model, trainer.course.teacher):
        if network is not None:
            network.double()
    family = sys.modules[type(trainer.course).__module__]
    trainer.model.eval()
    trainer.model.training = True
    batch = next(iter(trainer.course.batches(0)))
    torch.manual_seed(0)
    doubled = mock.patch.object(family, "normalised", lambda *of: normalised(*of).double())
    with torch.no_grad(), doubled:
        return {k: float(v) for k, v in trainer.course.terms(trainer.model, batch, 0).items()}


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(recipe: Recipe, tmp_path: Path) -> None:
    if recipe.model.startswith("sharpose"):  # stochastic depth, of whole branches, is no layer's own
        recipe = recipe.model_copy(
            update={"network": recipe.network.model_copy(update={"drop_path": 0.0})}  # type: ignore[attr-defined]
        )
    trainer = Trainer(recipe, tmp_path)
    same = terms(trainer)
    taught = {name: value for name, value in same.items() if name.startswith("taught_")}
    assert len(taught) >= 2
    assert all(value == pytest.approx(0, abs=1e-5) for value in taught.values()), taught
    plain = terms(Trainer(recipe.model_copy(update={"teacher": None}), tmp_path))
    assert {k: v for k, v in same.items() if k not in taught} == pytest.approx(plain)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other = terms(trainer)
    assert all(other[name] > 1e-5 for name in taught), other
    trainer.course.recipe = recipe.model_copy(update={"teacher": Teacher(weights="", weight=4.0)})
    doubled = terms(trainer)
    assert all(doubled[name] == pytest.approx(2 * other[name]) for name in taught)


def test_the_teacher_stays_as_it_is_and_resume_is_exact(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 3, after the checkpoint of step 2: bit for bit the same in the end."""
    before = read_weights(Path(str(recipe.initial)))
    train_and_score(recipe.model_copy(update={"data": unscored(recipe)}), tmp_path / "whole")
    learn = Trainer.learn

    def dies(self: Trainer, batch: Any) -> dict[str, float]:
        if self.step == 2:
            raise KeyError
        return learn(self, batch)

    run = recipe.model_copy(update={"data": unscored(recipe)})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", dies)
        with pytest.raises(KeyError):
            train_and_score(run, tmp_path / "run")
    train_and_score(run, tmp_path / "run", resume=True)
    for name in (WEIGHTS, CHECKPOINT):
        one, other = read_weights(tmp_path / "whole" / name), read_weights(tmp_path / "run" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    trainer = Trainer(run, tmp_path / "run")
    trainer.resume()
    assert trainer.course.teacher is not None
    held = trainer.course.teacher.state_dict()
    assert all(torch.equal(held[key], before[key]) for key in before)
    assert not any(parameter.requires_grad for parameter in trainer.course.teacher.parameters())


def unscored(recipe: Recipe) -> Any:
    return recipe.data.model_copy(update={"validation": None})


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = open_recipe("qrpose_smoke").model_copy(update={"teacher": Teacher(weights="nobody.safetensors")})
    with pytest.raises(EdgeposeError, match=r"nobody\.safetensors: no such file of weights"):
        Trainer(recipe, tmp_path)


logits = st.lists(st.floats(-8, 8), min_size=3, max_size=3).map(torch.tensor)


@given(logits, logits)
def test_divergence_is_the_kl_of_chances(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Against torch's own distributions, in float64."""
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(
        bernoulli(logits=teacher.double()), bernoulli(logits=student.double())
    ).sum()
    assert float(divergence(student.double(), teacher.double())) == pytest.approx(float(expected), abs=1e-9)
    assert float(divergence(teacher, teacher)) == 0


def test_what_is_missed_is_a_share_of_the_energy() -> None:
    known = torch.tensor([3.0, 4.0])
    assert float(missed(torch.zeros(2), known)) == 1.0
    assert float(missed(torch.tensor([3.0, 0.0]), known)) == pytest.approx(16 / 25)
