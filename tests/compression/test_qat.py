"""On which pictures `edgepose qat` chooses: those of the calibration set, and no others in their place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepose.calibration.calibration_set import Manifest, make_calibration_set, require_apart
from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.compression import qat
from edgepose.compression.qat import calibrated_on, learn
from edgepose.runtime.drafts import read_json
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.training.recipe import open_recipe

SOURCE = "synthetic:count=20,seed=5,size=64"


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """As much as is asked of what `compress` wrote."""
    apart = open_dataset("synthetic:count=1,seed=9,size=64")
    made = make_calibration_set(open_dataset(SOURCE), apart, 16, tmp_path / "set")
    manifest = read_json(made.folder / "manifest.json", "a manifest")
    return SimpleNamespace(
        folder=tmp_path, manifest=lambda: manifest, spec=SimpleNamespace(model="qrpose_tiny")
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
    monkeypatch.setattr(qat, "Trainer", lambda *_: SimpleNamespace(course=None))
    with pytest.raises(KeyboardInterrupt):
        learn(found, None, open_recipe("qrpose_tiny"), tmp_path / "run", resume=False)
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
