"""How QR-Pose learns: which of its parameters are matrices for Muon, and what hints are for."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from edgepose.training.families import course_of
from edgepose.training.families.course import Group
from edgepose.training.families.qrpose import QrPoseCourse, QrPoseRecipe
from edgepose.training.optimizer import Muon
from edgepose.training.recipe import open_recipe


def course(**schedule: float) -> QrPoseCourse:
    recipe = cast(QrPoseRecipe, open_recipe("qrpose_smoke"))
    changed = recipe.schedule.model_copy(update=schedule)
    return cast(QrPoseCourse, course_of(recipe.model_copy(update={"schedule": changed}), 0))


def test_muon_learns_the_kernels_that_are_normalised() -> None:
    """One matrix for each group of a convolution in front of a BatchNorm; all others learn by AdamW."""
    plan = course(muon=4.0, muon_decay=0.7)
    model = plan.fresh_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = [(names[id(p)], group) for group in plan.groups(model) for p in group["params"]]
    assert sorted(name for name, _ in chosen) == sorted(names.values())
    assert {name: group["orthogonal"] for name, group in chosen if group["orthogonal"]} == {
        f"{name}.weight": groups for name, groups in normalised(model).items()
    }
    for _, group in chosen:
        expected = (4.0, 0.7) if group["orthogonal"] else (1.0, plan.recipe.schedule.weight_decay)
        assert (group["scale"], group["weight_decay"]) == expected


def normalised(model: nn.Module) -> dict[str, int]:
    """Convolutions whose length does not matter: twice as long, they give the same training output."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    for layer in model.double().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-30
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    picture = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = answers(model.train(), picture)
        found = {}
        for name, layer in layers.items():
            layer.weight.mul_(2)
            if all(torch.allclose(a, b) for a, b in zip(before, answers(model, picture), strict=True)):
                found[name] = layer.groups
            layer.weight.div_(2)
    return found


def answers(model: nn.Module, picture: Tensor) -> list[Tensor]:
    return [value for value in model(picture) if isinstance(value, Tensor) and value.is_floating_point()]


def test_without_it_all_learn_by_adamw() -> None:
    plan = course()
    (group,) = plan.groups(plan.fresh_model())
    assert (group["orthogonal"], group["scale"]) == (0, 1.0)


def test_without_kqe_there_are_no_hints() -> None:
    """Nothing would read them, and the pose's loss would be spread over poses that nobody can better."""
    plain = cast(QrPoseRecipe, open_recipe("qrpose_smoke"))
    plain = plain.model_copy(update={"network": plain.network.model_copy(update={"kqe": False})})
    terms = []
    for count in (0, 24):
        plan = course_of(plain.model_copy(update={"hint_pixels": count}), 0)
        torch.manual_seed(0)
        model = plan.fresh_model().train()
        batch = next(iter(plan.batches(0)))
        torch.manual_seed(0)
        terms.append({name: float(term.detach()) for name, term in plan.terms(model, batch, 0).items()})
    assert terms[0] == terms[1]


def test_decay_says_how_far_a_step_turns_a_normalised_kernel() -> None:
    """sqrt(2 * rate * decay / 39) of its length, whatever the rate alone."""
    for rate, decay in ((0.05, 0.2), (0.2, 0.05)):
        torch.manual_seed(0)
        layer = nn.Conv2d(8, 8, 3, bias=False)
        norm = nn.BatchNorm2d(8)
        group = Group(params=[layer.weight], weight_decay=decay, scale=1.0, orthogonal=1)
        optimizer = Muon([cast(dict[str, object], group)], rate)
        turned = []
        for step in range(400):
            inputs, weights = torch.randn(2, 8, 5, 5), torch.randn(2, 8, 3, 3)
            optimizer.zero_grad()
            (norm(layer(inputs)) * weights).sum().backward()
            before = layer.weight.detach().clone()
            optimizer.step()
            if step >= 250:
                turned.append(float((layer.weight.detach() - before).norm() / before.norm()))
        assert sum(turned) / len(turned) == pytest.approx(math.sqrt(2 * rate * decay / 39), rel=0.25)
