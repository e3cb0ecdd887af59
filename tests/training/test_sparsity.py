"""The 2:4 pattern: by brute force, by property, and through training."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgepose.training.loop import CHECKPOINT, WEIGHTS, Trainer
from edgepose.training.models import build, load_published
from edgepose.training.models.sparsity import follows_2_4, is_sparse, keep, mask_2_4, masks_of, sparse_layers
from edgepose.training.models.weights import read_weights
from edgepose.training.recipe import open_recipe
from edgepose.training.run import train_and_score
from edgepose.training.sections import Recipe

SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 3).map(lambda n: 4 * n), st.integers(1, 2), st.integers(1, 2)
)
WEIGHTS_4D = SHAPES.flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=st.integers(-3, 3).map(float))
)


def fours(weight: np.ndarray[Any, Any]) -> list[list[float]]:
    """Every group of four, written out: at one output and one place of the kernel."""
    outputs, inputs, height, width = weight.shape
    return [
        [float(weight[o, i + n, y, x]) for n in range(4)]
        for o, i, y, x in product(range(outputs), range(0, inputs, 4), range(height), range(width))
    ]


@given(WEIGHTS_4D)
def test_the_mask_keeps_the_two_largest_of_every_four(weight: np.ndarray[Any, Any]) -> None:
    mask = mask_2_4(torch.from_numpy(weight)).numpy()
    for values, kept in zip(fours(weight), fours(mask), strict=True):
        assert sum(kept) == 2
        inside = sorted(abs(value) for value, keeps in zip(values, kept, strict=True) if keeps)
        assert inside == sorted(map(abs, values))[2:]
    assert follows_2_4(torch.from_numpy(weight * mask))
    again = mask_2_4(torch.from_numpy(weight * mask)).numpy()
    assert np.array_equal(weight * mask * again, weight * mask)


@given(WEIGHTS_4D)
def test_the_checker_counts_as_brute_force_does(weight: np.ndarray[Any, Any]) -> None:
    expected = all(sum(value != 0 for value in values) <= 2 for values in fours(weight))
    assert follows_2_4(torch.from_numpy(weight)) is expected


def test_the_pattern_runs_along_inputs_alone() -> None:
    """Zeros in two of four outputs, or of four places of the kernel, are no pattern."""
    by_output = torch.ones(4, 4, 1, 4)
    by_output[:2] = 0
    by_place = torch.ones(4, 4, 1, 4)
    by_place[..., :2] = 0
    by_input = torch.ones(4, 4, 1, 4)
    by_input[:, 1:3] = 0
    assert [follows_2_4(weight) for weight in (by_output, by_place, by_input)] == [False, False, True]
    assert not follows_2_4(torch.zeros(4, 6))


def test_which_layers_are_to_follow() -> None:
    layers = sparse_layers(build("qrpose_tiny"))
    assert {"backbone.merges.2.0", "kpt.0.0", "looks.0.body.0"} <= layers.keys()
    # 3 inputs, 16 outputs, a branch for each joint, 1 output
    assert not {"backbone.stem.0", "backbone.stage4.first.0", "kpt.1.0", "score"} & layers.keys()
    assert "backbone.blocks.0.attn.qkv" in sparse_layers(build("sharpose_tiny_128x96"))


@pytest.mark.parametrize("name", ["qrpose_smoke", "sharpose_smoke"])
def test_training_keeps_the_mask_and_resume_is_exact(
    name: str, tmp_path: Path, killed_run: Callable[[Recipe, Path, int], None]
) -> None:
    recipe = open_recipe(name)
    schedule = recipe.schedule.model_copy(update={"steps": 3, "checkpoint_steps": 2, "batch": 2})
    data = recipe.data.model_copy(update={"validation": None})
    recipe = recipe.model_copy(update={"sparsity": "2:4", "schedule": schedule, "data": data})
    dense = Trainer(recipe.model_copy(update={"sparsity": None}), tmp_path)
    expected = {n: mask_2_4(layer.weight) for n, layer in sparse_layers(dense.model).items()}
    train_and_score(recipe, tmp_path / "whole")
    for file, prefix in ((WEIGHTS, ""), (CHECKPOINT, "model/"), (CHECKPOINT, "ema/")):
        weights = read_weights(tmp_path / "whole" / file)
        for layer, mask in expected.items():  # the zeros of the start, and no others
            assert torch.equal(weights[f"{prefix}{layer}.weight"] != 0, mask), (file, layer)
    model = build(recipe.model)
    load_published(model, tmp_path / "whole" / WEIGHTS)
    assert is_sparse(model)

    killed_run(recipe, tmp_path / "run", 2)
    train_and_score(recipe, tmp_path / "run", resume=True)
    one, other = (read_weights(tmp_path / run / CHECKPOINT) for run in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_one_layer_too_dense_and_the_network_is_not_sparse() -> None:
    model = build("qrpose_tiny")
    assert not is_sparse(model)
    keep(model, masks_of(model))
    assert is_sparse(model)
    with torch.no_grad():
        model.get_parameter("kpt.0.0.weight")[0] = 1
    assert not is_sparse(model)
