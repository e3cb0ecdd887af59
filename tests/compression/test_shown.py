"""What a network of crops is calibrated on: people enough, and not always the same one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepose.calibration.boxes import read_detections
from edgepose.calibration.calibration_set import FEWEST
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.sample import Sample
from edgepose.compression.shown import people_shown
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec

SPEC = Spec("sharpose", "standin", 48, 64, graphs=("coarse", "fine"), resize="crop")


class Pictures:
    """A few synthetic ones, in place of a set on disk; each comes so many times."""

    folder = Path("set")

    def __init__(self, count: int, times: int = 1) -> None:
        data = open_dataset(f"synthetic:count={count},seed=3,size=64")
        self._samples = [data[index % count] for index in range(count * times)]

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self) -> Iterator[Sample]:
        return iter(self._samples)


def found(pictures: Any, ids: range, folder: Path) -> list[Any]:
    """The crops of one box in each picture of these ids."""
    box = {"category_id": 1, "bbox": [10, 5, 30, 50], "score": 0.9}
    path = folder / "boxes.json"
    path.write_text(json.dumps([{"image_id": number, **box} for number in ids]))
    return people_shown(pictures, SPEC, read_detections(path))


def test_one_person_in_many_pictures_cannot_calibrate(tmp_path: Path) -> None:
    pictures = Pictures(FEWEST)
    first = next(pictures.samples()).image_id
    assert len(found(pictures, range(first, first + FEWEST), tmp_path)) == FEWEST
    with pytest.raises(
        EdgeposeError, match=r"set: 1 different people are found in its 16 pictures, .* 16 or"
    ):
        found(pictures, range(first, first + 1), tmp_path)


def test_the_same_person_again_and_again_is_one(tmp_path: Path) -> None:
    pictures = Pictures(2, times=FEWEST)
    first = next(pictures.samples()).image_id
    with pytest.raises(EdgeposeError, match="2 different people"):
        found(pictures, range(first, first + 2), tmp_path)
