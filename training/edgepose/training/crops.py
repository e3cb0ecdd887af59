"""Training crops: which person each step sees, and how they are changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset

from edgepose.calibration.boxes import size_of
from edgepose.calibration.sample import Person, Sample
from edgepose.runtime.topdown.crop import F64
from edgepose.training.data import coded, recolour
from edgepose.training.order import index_at, open_share, random_at, read_all
from edgepose.training.sections import Data, Fraction, NonNegative, Recipe
from edgepose.training.topdown_data import (
    Changes,
    Example,
    Size,
    croppable,
    example,
    mirror,
    vary,
)


class CropData(Data):
    """Pictures of which each labelled person is cropped."""

    changes: Changes = Changes()
    colour: NonNegative = 0.0  # relative change of brightness, contrast and single channels
    coded: Fraction = 0.0  # share of crops that go through a camera's codec


class CropRecipe(Recipe):
    """A run of a family that sees one person at a time."""

    data: CropData


class CropBatch(NamedTuple):
    """Crops (B, H, W, 3) uint8 BGR and who is to be seen in them."""

    images: Tensor
    joints: Tensor  # (B, K, 2) x, y in crop pixels
    labelled: Tensor  # (B, K) bool
    sides: Tensor  # (B, 2) width and height in picture pixels of what was cropped
    ids: tuple[int, ...]  # (B,) of the pictures that they are cut from


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A person who can be cropped, and where."""

    picture: int  # index among the process's pictures
    box: F64  # (4,) x, y, width, height in picture pixels
    person: Person


class Crops(TorchDataset[tuple[Example, int]]):
    """Crop number n of an endless stream, with its picture's id: who it shows and how follows from (seed, n).

    With several processes each has its own share of the pictures, and its own stream.
    """

    def __init__(self, recipe: CropRecipe, size: Size, rank: int = 0) -> None:
        """`size` is (width, height) of a crop. All pictures are read here if the recipe caches them."""
        self._recipe, self._size, self._rank = recipe, size, rank
        dataset, chosen = open_share(recipe, rank)
        self._pictures: Sequence[Sample] | Subset[Sample] = Subset(dataset, chosen)  # type: ignore[arg-type]
        labels = ((dataset.people(index), dataset.size(index)) for index in chosen)
        if recipe.data.cache:
            self._pictures = kept = read_all(self._pictures, len(chosen), recipe.data.workers)
            labels = ((sample.people, size_of(sample)) for sample in kept)
        self._subjects = [
            Subject(picture, box, person)
            for picture, (people, frame) in enumerate(labels)
            for box, person in croppable(people, frame)
        ]

    def __len__(self) -> int:
        """How many different people there are."""
        return len(self._subjects)

    def __getitem__(self, ordinal: int) -> tuple[Example, int]:
        data, rng = self._recipe.data, random_at(ordinal, self._recipe, self._rank)
        subject = self._subjects[index_at(ordinal, len(self), self._recipe.seed)]
        sample = self._pictures[subject.picture]
        region, mirrored = vary(rng, subject.box, subject.person, self._size, data.changes)
        seen = example(sample.image, subject.person, region, self._size)
        if data.colour:
            seen.image[:] = recolour(seen.image, rng, data.colour)
        if data.coded and rng.random() < data.coded:
            seen.image[:] = coded(seen.image, rng)
        return (mirror(seen) if mirrored else seen), sample.image_id


def collate(crops: Sequence[tuple[Example, int]]) -> CropBatch:
    """Crops, and the pictures that they are cut from, to a batch."""
    examples, ids = zip(*crops, strict=True)
    return CropBatch(
        torch.from_numpy(np.stack([one.image for one in examples])),
        torch.from_numpy(np.stack([one.joints for one in examples])),
        torch.from_numpy(np.stack([one.labelled for one in examples])),
        torch.from_numpy(np.stack([one.sides for one in examples])),
        ids,
    )
