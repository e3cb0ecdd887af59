"""NNCF's names for layers are those of the modules, in evaluation and in training: all rules find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nncf.torch.function_hook.hook_executor_mode import FunctionHookMode
from nncf.torch.function_hook.hook_storage import HookStorage
from torch import nn

from edgepose.compression.artefact import FORMAT, INDEX, open_compressed
from edgepose.compression.torch_quantize import torch_plan
from edgepose.compression.trt_target import load_nncf
from edgepose.runtime.drafts import write_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.families import course_of
from edgepose.training.models import build
from edgepose.training.recipe import open_recipe

KINDS = (nn.Conv2d, nn.Linear)
# QueryPose with less inside, but with two stages: one alone could not be taken for another.
SMALL: dict[str, Any] = {
    **{"size": (64, 64), "queries": 4, "stages": 2, "channels": 32, "heads": 4, "hidden": 48, "top_k": 2},
    **{"dynamic_channels": 8, "part_channels": 16, "pose_layers": 2, "pose_channels": 24},
}
OPTIONS: dict[str, dict[str, Any]] = {"qrpose_smoke": {"size": (64, 64)}, "querypose_smoke": SMALL}


class Weights(HookStorage):
    """In place of hooks: by the name under which NNCF would look for one, the weight that it would get."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(value): name for name, value in model.named_parameters()}
        self.seen: dict[str, str] = {}

    def execute_pre_function_hooks(self, op_name: str, port_id: int, value: Any) -> Any:
        if port_id == 1 and op_name.split("/")[-2] in ("conv2d", "linear"):
            self.seen[op_name] = self._names[id(value)]
        return value


@pytest.fixture(params=OPTIONS)
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def network(recipe: str) -> nn.Module:
    torch.manual_seed(0)
    return build(open_recipe(recipe).model, **OPTIONS[recipe])


def test_a_layer_has_its_modules_name_whether_it_learns_or_not(recipe: str) -> None:
    load_nncf()
    course, model = course_of(open_recipe(recipe)), network(recipe)
    batch = next(iter(course.batches(0)))
    evaluated, trained = Weights(model), Weights(model)
    with torch.no_grad():
        with FunctionHookMode(model.eval(), evaluated):
            model(torch.randn(1, 3, 64, 64))
        with FunctionHookMode(model.train(), trained):
            course.terms(model, batch, 0)
    assert len(evaluated.seen) > 30
    for name, weight in (evaluated.seen | trained.seen).items():
        assert name.rsplit("/", 2)[0].replace("/", ".") == weight.removesuffix(".weight")
    assert evaluated.seen.items() <= trained.seen.items()  # in training errors flow through more


@pytest.mark.parametrize(
    ("recipe", "keep", "path"),
    [("qrpose_smoke", {"backbone.merges": "asked for"}, "backbone.merges."), ("querypose_smoke", {}, "box_")],
)
def test_patterns_and_scopes_find_what_a_module_list_holds(
    recipe: str, keep: dict[str, str], path: str
) -> None:
    model, image = network(recipe).eval(), torch.randn(1, 3, 64, 64)
    called: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, KINDS) and name.startswith(path):
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    with torch.no_grad():
        model(image)
    family = open_recipe(recipe).model.partition("_")[0]
    plan = {name.rsplit("/", 2)[0].replace("/", ".") for name in torch_plan(model, image, family, keep)}
    assert called
    assert called <= plan


def test_what_was_compressed_with_other_names_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / INDEX, {"format": FORMAT, "version": 1})
    with pytest.raises(
        EdgeposeError, match="version 1, this edgepose reads version 2; run `edgepose compress`"
    ):
        open_compressed(tmp_path)
