"""How QR-Pose learns: which of its parameters are matrices for Muon."""

from __future__ import annotations

from torch import nn

from edgepose.training.families import course_of
from edgepose.training.recipe import open_recipe


def test_muon_learns_the_kernels_inside() -> None:
    """One matrix for each group of a convolution; what speaks to the outside, and vectors, learn by AdamW."""
    recipe = open_recipe("qrpose_smoke")
    recipe = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"muon": 4.0})})
    course = course_of(recipe, 0)
    model = course.fresh_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = [(names[id(p)], group) for group in course.groups(model) for p in group["params"]]
    assert sorted(name for name, _ in chosen) == sorted(names.values())
    outside = ("score0", "score", "heatmap", "off1", "conf", "looks.0.off", "looks.1.off")
    inside = {
        f"{name}.weight": layer.groups
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and name not in outside
    }
    assert {name: group["orthogonal"] for name, group in chosen if group["orthogonal"]} == inside
    assert inside["looks.0.mix.0.weight"] == inside["kpt.1.0.weight"] == 17
    assert all(group["scale"] == (4.0 if name in inside else 1.0) for name, group in chosen)


def test_without_it_all_learn_by_adamw() -> None:
    course = course_of(open_recipe("qrpose_smoke"), 0)
    (group,) = course.groups(course.fresh_model())
    assert (group["orthogonal"], group["scale"]) == (0, 1.0)
