"""What `edgepose qat` chooses on, the calibration set's pictures, and what it keeps: the 2:4 zeros."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgepose.calibration.calibration_set import Manifest, make_calibration_set, require_apart
from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.compression import qat
from edgepose.compression.qat import BEST, JUDGED, calibrated_on, learn
from edgepose.compression.torch_quantize import quantize_torch
from edgepose.compression.trainable import with_learning_quantizers
from edgepose.runtime.drafts import read_json, write_json
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.poses import F32
from edgepose.training.checkpoint import save_tensors
from edgepose.training.models.sparsity import follows_2_4, is_sparse, keep, masks_of
from edgepose.training.models.weights import read_weights
from edgepose.training.recipe import open_recipe
from edgepose.training.sections import Data, Recipe, Schedule

SOURCE = "synthetic:count=20,seed=5,size=64"


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """As much as is asked of what `compress` wrote."""
    apart = open_dataset("synthetic:count=1,seed=9,size=64")
    made = make_calibration_set(open_dataset(SOURCE), apart, 16, tmp_path / "set")
    manifest = read_json(made.folder / "manifest.json", "a manifest")
    return SimpleNamespace(
        folder=tmp_path,
        manifest=lambda: manifest,
        spec=SimpleNamespace(model="qrpose_tiny", width=256, height=256),
    )


def test_it_chooses_on_pictures_that_evaluation_refuses(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the recipe is validated on, which is what networks are evaluated on."""
    judged: list[Dataset] = []

    def judge(_: Any, pictures: Dataset, __: Path) -> None:
        judged.append(pictures)
        raise KeyboardInterrupt

    monkeypatch.setattr(qat, "Judge", judge)
    monkeypatch.setattr(qat, "Trainer", lambda *_: SimpleNamespace(course=None, first=True))
    with pytest.raises(KeyboardInterrupt):
        learn(found, nn.Identity(), open_recipe("qrpose_tiny"), tmp_path / "run", resume=False)
    (pictures,) = judged
    manifest = Manifest.from_dict(found.manifest(), tmp_path)
    assert [pictures.fingerprint(i) for i in range(len(pictures))] == [e.pixels for e in manifest.images]
    assert [len(pictures.people(i)) for i in range(len(pictures))] == [e.people for e in manifest.images]
    assert (pictures[0].image.shape, pictures.size(0)) == ((64, 64, 3), (64, 64))
    with pytest.raises(GateFailed):
        require_apart(manifest, pictures)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("synthetic:count=20,seed=6,size=64", "is not what .* was calibrated on; calibrate and compress"),
        ("synthetic:count=2,seed=5,size=64", "is not what .* was calibrated on; calibrate and compress"),
        ("nowhere.json", "nowhere.json: no such file"),
    ],
)
def test_other_pictures_in_their_place_are_refused(found: Any, source: str, message: str) -> None:
    found.manifest()["source"] = source
    with pytest.raises(EdgeposeError, match=message):
        calibrated_on(found)


def test_a_recipe_of_another_size_is_refused(found: Any, tmp_path: Path) -> None:
    with pytest.raises(
        EdgeposeError, match=r"its size is 64, the network of .* takes 256 x 256 pixels; choose"
    ):
        learn(found, nn.Identity(), open_recipe("qrpose_smoke"), tmp_path / "run", resume=False)


def test_what_another_run_left_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was judged better, and died before its first checkpoint."""
    save_tensors(tmp_path / BEST, {"weight": torch.zeros(1)}, {})
    write_json(tmp_path / JUDGED, {"0": 0.9})
    course = SimpleNamespace(
        fresh_model=lambda: nn.Linear(1, 1, bias=False),
        score=lambda model, _: {"ap": float(model.weight.detach())},
    )
    state = {"weight": torch.full((1, 1), 0.5)}
    trainer = SimpleNamespace(course=course, first=True, step=0, average=SimpleNamespace(state=state))
    trainer.run = lambda saved: saved()
    monkeypatch.setattr(qat, "Trainer", lambda *_: trainer)
    monkeypatch.setattr(qat, "calibrated_on", lambda found: None)
    recipe = Recipe(model="any", data=Data(train="none"), schedule=Schedule(steps=1))
    found: Any = SimpleNamespace(spec=SimpleNamespace(model="any"))
    assert learn(found, nn.Identity(), recipe, tmp_path, resume=False) == {"0": 0.5}
    assert read_weights(tmp_path / BEST)["weight"] == 0.5


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
    monkeypatch.setattr(qat, "calibrated_on", lambda found: None)
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
