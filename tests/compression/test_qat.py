"""Training in INT8 keeps what the float network was trained for: its 2:4 zeros."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgepose.compression import qat
from edgepose.compression.qat import BEST, learn
from edgepose.compression.torch_quantize import quantize_torch
from edgepose.compression.trainable import with_learning_quantizers
from edgepose.runtime.poses import F32
from edgepose.training.models.sparsity import follows_2_4, is_sparse, keep, masks_of
from edgepose.training.models.weights import read_weights
from edgepose.training.sections import Data, Recipe, Schedule


class Wide(nn.Module):
    """A layer wide enough for the pattern between two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = nn.Conv2d(3, 32, 3, 2), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.wide(torch.relu(self.first(images)))))


class Zero:
    """In place of a family's course: the answer to one picture should be 0."""

    rank = 0

    def __init__(self, recipe: Recipe, image: Tensor) -> None:
        self.recipe, self._image = recipe, image

    def batches(self, first: int) -> Iterator[Any]:
        return iter([SimpleNamespace(ids=(0,))] * (self.recipe.schedule.steps - first))

    def terms(self, wrapped: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        return {"zero": wrapped(self._image).square().mean()}

    def score(self, model: nn.Module, dataset: Any) -> dict[str, Any]:
        return {"ap": float(1 / (1 + model(self._image).detach().square().mean()))}


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_weights_stay_sparse(
    sparse: bool, images: list[F32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model = Wide().eval()
    keep(model, masks_of(model) if sparse else {})
    assert is_sparse(model) == sparse
    form = with_learning_quantizers(quantize_torch(model, images[:2], "qrpose")).requires_grad_(True)
    image = torch.from_numpy(images[0])
    monkeypatch.setattr(qat, "learning_form", lambda found, model: copy.deepcopy(form))
    monkeypatch.setattr(qat, "course_of", lambda recipe, rank: Zero(recipe, image))
    monkeypatch.setattr(qat, "open_dataset", lambda source: None)
    schedule = Schedule(steps=3, learning_rate=1e-2, rise=0.0, ema=0.0, checkpoint_steps=3)
    data = Data(train="none", validation="none")
    recipe = Recipe(model="wide", threads=1, precision="32-true", data=data, schedule=schedule)
    found: Any = SimpleNamespace(spec=SimpleNamespace(model="wide"))
    said = learn(found, model, recipe, tmp_path / "run", resume=False)
    assert said is not None
    assert said["3"] > said["0"]
    learnt = read_weights(tmp_path / "run" / BEST)["wide.weight"]
    assert not torch.equal(learnt, form.get_parameter("wide.weight"))
    assert follows_2_4(learnt) == sparse
