"""Recipes: what is shipped parses, what is wrong is named with the nearest right key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.families import FAMILIES
from edgepose.training.families.qrpose import QrPoseRecipe
from edgepose.training.models import BUILDERS, family_of
from edgepose.training.recipe import open_recipe, parse_recipe, shipped

SMALL = """
model: qrpose_tiny
data: {train: "synthetic:count=4,seed=1,size=64"}
schedule: {steps: 2}
"""


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_parses_and_survives_its_own_resolved_form(name: str) -> None:
    recipe = open_recipe(name)
    assert parse_recipe(recipe.to_yaml(), name) == recipe


def test_the_resolved_recipe_holds_every_key(tmp_path: Path) -> None:
    parse_recipe(SMALL, "small").save(tmp_path / "recipe.yaml")
    values = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert values.keys() == QrPoseRecipe.model_fields.keys()
    assert values["data"]["augment"]["flip"] == 0.5
    assert open_recipe(str(tmp_path / "recipe.yaml")) == parse_recipe(SMALL, "small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps", "step"), r"small: unknown key 'schedule.step'; did you mean 'steps'\?"),
        (("model:", "modle:"), "unknown key 'modle'; did you mean 'model'"),
        (("train:", "trian:"), "unknown key 'data.trian'; did you mean 'train'"),
        (("qrpose_tiny", "qrpose_tin"), "unknown model 'qrpose_tin'; did you mean 'qrpose_tiny'"),
        (("steps: 2", "steps: 0"), "key 'schedule.steps' is 0: .*greater than 0"),
        (("steps: 2", "steps: many"), "key 'schedule.steps' is 'many': .*valid integer"),
        (("steps: 2", "steps: 2, ema: .nan"), "schedule.ema|valid"),
        (("model:", "size: 250\nmodel:"), "key 'size' is 250: .*multiple of 32"),
        (("model:", "loss: {target: best}\nmodel:"), "key 'loss.target' is 'best'.*'oks'"),
        (("model:", "data: [1\nmodel:"), "small: not a recipe .*while parsing"),
        (("model:", "when: 2026-01-01\nmodel:"), "unknown key 'when'"),
        (("model:", "teacher: {wights: a}\nmodel:"), "unknown key 'teacher.wights'; did you mean 'weights'"),
        (("model:", f"seed: {'9' * 5000}\nmodel:"), "small: not a recipe"),
        (("model:", f"seed: {'x' * 5000}\nmodel:"), "key 'seed' is 'x{99}…: Input should be a valid int"),
        (("model:", "head_pixels: 4097\nmodel:"), "'head_pixels' is 4097: .*the map has 64 x 64 pixels"),
        (("model:", "hint_pixels: 4097\nmodel:"), "'hint_pixels' is 4097: .*the map has 64 x 64 pixels"),
        (("steps: 2", "steps: 2, learning_rate: .inf"), "'schedule.learning_rate' is inf: .*finite"),
        (
            ("{train:", "{augment: {scale: [1.3, 0.5]}, train:"),
            r"scale' is \[1.3, 0.5\]: .*larger than the sec",
        ),
    ],
)
def test_a_wrong_recipe_is_one_clear_sentence(change: tuple[str, str], message: str) -> None:
    with pytest.raises(EdgeposeError, match=message) as caught:
        parse_recipe(SMALL.replace(*change), "small")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "3", 5000 * "[", "x: &self [*self]"])
def test_text_without_keys_is_no_recipe(text: str) -> None:
    with pytest.raises(EdgeposeError, match="not a recipe"):
        parse_recipe(text, "x.yaml")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(
        EdgeposeError, match="no such recipe file and no shipped recipe; did you mean 'qrpose_smoke'"
    ):
        open_recipe("qrpose_smok")
    with pytest.raises(EdgeposeError, match="no such recipe file"):
        open_recipe(str(tmp_path))
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(EdgeposeError, match=r"picture\.yaml: not a recipe"):
        open_recipe(str(tmp_path / "picture.yaml"))


TOP_DOWN = """
model: sharpose_tiny_128x96
data: {train: "synthetic:count=4,seed=1,size=64"}
schedule: {steps: 2}
"""


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (TOP_DOWN, ("data: {", "data: {sigme: 3, "), r"unknown key 'data\.sigme'; did you mean 'sigma'\?"),
        (TOP_DOWN, ("data: {", "data: {changes: {rotations: 3}, "), "did you mean 'rotation'"),
        (TOP_DOWN, ("model:", "rule: reference\nmodel:"), "unknown key 'rule'; did you mean 'rules'"),
        (TOP_DOWN, ("steps: 2", "steps: 2, layer_decay: 0"), "'schedule.layer_decay' is 0: .*greater than 0"),
        (TOP_DOWN, ("data: {", "data: {min_area: 3, "), "unknown key 'data.min_area'"),
        (SMALL, ("steps: 2", "steps: 2, layer_decay: 0.8"), "unknown key 'schedule.layer_decay'"),
        (SMALL, ("data: {", "data: {sigma: 3, "), "unknown key 'data.sigma'"),
        (
            SMALL,
            ("qrpose_tiny", "[qrpose_tiny]"),
            r"key 'model' is \['qrpose_tiny'\]; name one of qrpose_tiny",
        ),
        (SMALL, ("model: qrpose_tiny", "seed: 1"), "key 'model' is missing; add one of qrpose_tiny"),
    ],
)
def test_the_model_s_family_decides_which_keys_there_are(
    text: str, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(EdgeposeError, match=message):
        parse_recipe(text.replace(*change), "mine.yaml")


def test_every_family_that_can_be_built_can_be_trained() -> None:
    assert {family_of(name) for name in BUILDERS} == FAMILIES.keys()
