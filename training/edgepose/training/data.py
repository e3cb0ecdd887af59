"""Training pictures: opened, letterboxed, changed at random in a way that only the step's number decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset as TorchDataset

from edgepose.calibration.dataset import Dataset
from edgepose.calibration.sample import Person
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8, letterbox, pad_colour
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.spec import Spec
from edgepose.training.batch import CORNER, Batch, People
from edgepose.training.models import family_of
from edgepose.training.order import index_at, loader, open_share, random_at, read_all
from edgepose.training.sections import Augment, PictureRecipe

Bools = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float64]
CLOSEUP = (math.log(0.4), math.log(1.0))  # a person's longer side in the tile's, log-uniform
CLOSEUP_SCALES = (0.3, 1.5)
STILL = {"scale": (1.0, 1.0), "rotation_degrees": 0.0, "translation": 0.0, "colour": 0.0}
QUALITIES = (40, 95)  # of JPEG, lowest and highest


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One square picture of the network's size with its P people, in its own pixels."""

    image: U8  # (S, S, 3) BGR
    joints: F32  # (P, K, 2), as the boxes, from the centre of the first pixel
    labelled: Bools  # (P, K)
    area: F32  # (P,) px², of what the picture shows
    boxes: F32  # (P, 4) x0, y0, x1, y1
    crowd: Bools  # (P,)
    ids: tuple[int, ...] = ()  # of the pictures of the data set that it is made of


def spec_of(recipe: PictureRecipe) -> Spec:
    """How the network of a recipe is fed."""
    return Spec(family_of(recipe.model), recipe.model, recipe.size, recipe.size)


def fit(image: U8, people: Sequence[Person], spec: Spec) -> Picture:
    """A sample letterboxed as the camera's frames will be."""
    canvas, box = letterbox(image, spec.width, spec.height, pad_colour(spec))
    shape = (len(people), len(COCO17), 2)
    joints = np.array([p.keypoints for p in people], np.float32).reshape(shape)
    boxes = np.array([p.box for p in people], np.float32).reshape(-1, 4)
    corners = np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) - np.float32(CORNER)
    return Picture(
        canvas,
        box.to_input(joints),
        np.array([p.visibility > 0 for p in people], np.bool_).reshape(shape[:2]),
        np.array([p.area for p in people], np.float32) * np.float32(box.scale_x * box.scale_y),
        box.to_input(corners).reshape(-1, 4),
        np.array([p.crowd for p in people], np.bool_),
    )


def random_affine(rng: np.random.Generator, augment: Augment, side: int) -> tuple[Matrix, bool]:
    """(2, 3) map of pixel to pixel about the picture's centre, and whether it mirrors."""
    low, high = (math.log(value) for value in augment.scale)
    turn, mirrored = _random_turn(rng, augment, math.exp(rng.uniform(low, high)))
    shift = rng.uniform(-1, 1, 2) * augment.translation * side
    centre = np.full(2, (side - 1) / 2)
    return np.column_stack([turn, centre + shift - turn @ centre]), mirrored


def random_closeup(
    rng: np.random.Generator, augment: Augment, picture: Picture, side: int
) -> tuple[Matrix, bool]:
    """(2, 3) map that brings one person of the picture, or all of it, into a square of `side` pixels."""
    whole = picture.image.shape[0]
    centre, height = np.full(2, (whole - 1) / 2), float(whole)
    people = np.flatnonzero(picture.labelled.any(1) & ~picture.crowd)
    if len(people):
        box = picture.boxes[rng.choice(people)].astype(np.float64)
        centre, height = (box[:2] + box[2:]) / 2, float(max(box[2:] - box[:2]))
    factor = float(np.clip(side * math.exp(rng.uniform(*CLOSEUP)) / max(height, 1.0), *CLOSEUP_SCALES))
    turn, mirrored = _random_turn(rng, augment, factor)
    shift = rng.uniform(-1, 1, 2) * augment.translation * side
    return np.column_stack([turn, (side - 1) / 2 + shift - turn @ centre]), mirrored


def _random_turn(rng: np.random.Generator, augment: Augment, factor: float) -> tuple[Matrix, bool]:
    """(2, 2) scaled by `factor`, turned a little, and perhaps mirrored."""
    limit = 2 * augment.rotation_degrees
    angle = math.radians(float(np.clip(rng.normal() * augment.rotation_degrees, -limit, limit)))
    turn = factor * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mirrored = bool(rng.random() < augment.flip)
    return (turn @ np.diag([-1.0, 1.0]) if mirrored else turn), mirrored


def warp(picture: Picture, matrix: Matrix, mirrored: bool, pad: tuple[int, int, int], side: int) -> Picture:
    """The picture and its people under an affine map; left and right joints change places in a mirror."""
    image = cv2.warpAffine(picture.image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=pad)
    order = list(COCO17.mirror) if mirrored else list(range(len(COCO17)))
    joints = _apply(matrix, picture.joints[:, order])
    inside = ((joints > -CORNER) & (joints < side - CORNER)).all(-1)
    boxes, shown = _turned(picture.boxes, matrix, side)
    return Picture(
        np.asarray(image, np.uint8),
        joints,
        picture.labelled[:, order] & inside,
        picture.area * np.float32(abs(np.linalg.det(matrix[:, :2]))) * shown,
        boxes,
        picture.crowd,
        picture.ids,
    )


def mosaic(tiles: Sequence[Picture]) -> Picture:
    """Four square pictures as one of twice their side."""
    side = tiles[0].image.shape[0]
    rows = [np.concatenate([tile.image for tile in tiles[at : at + 2]], 1) for at in (0, 2)]
    places = [np.array([x, y], np.float32) for y in (0, side) for x in (0, side)]
    return Picture(
        np.concatenate(rows),
        np.concatenate([tile.joints + place for tile, place in zip(tiles, places, strict=True)]),
        np.concatenate([tile.labelled for tile in tiles]),
        np.concatenate([tile.area for tile in tiles]),
        np.concatenate([tile.boxes + np.tile(place, 2) for tile, place in zip(tiles, places, strict=True)]),
        np.concatenate([tile.crowd for tile in tiles]),
        tuple(one for tile in tiles for one in tile.ids),
    )


def _turned(boxes: F32, matrix: Matrix, side: int) -> tuple[F32, F32]:
    """Boxes (P, 4) around the mapped ones, cut off at the picture's edges, and what share of each is left."""
    x0, y0, x1, y1 = boxes.T
    corners = _apply(matrix, np.stack([np.stack(p, -1) for p in ((x0, y0), (x1, y0), (x0, y1), (x1, y1))], 1))
    whole = np.concatenate([corners.min(1), corners.max(1)], 1)
    cut = whole.clip(-CORNER, side - CORNER)
    return cut, np.asarray(_sizes(cut) / np.maximum(_sizes(whole), 1e-6), np.float32)


def _sizes(boxes: F32) -> F32:
    """(P,) px²."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1), np.float32)


def _apply(matrix: Matrix, points: F32) -> F32:
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def recolour(image: U8, rng: np.random.Generator, strength: float) -> U8:
    """Random brightness, contrast and colour cast, relative to `strength`."""
    contrast = 1 + rng.uniform(-1, 1) * strength
    brightness = 128 * rng.uniform(-1, 1) * strength
    cast = 1 + rng.uniform(-1, 1, 3) * strength / 3
    values = np.arange(256)[:, None]
    table = ((values - 128) * contrast + 128 + brightness) * cast
    return np.asarray(cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)[None]), np.uint8)


def coded(image: U8, rng: np.random.Generator) -> U8:
    """The picture after JPEG of a random quality: one colour for four pixels, blocks of 8 with less detail.

    It stands for all cameras' codecs: H.264's blocks lose detail likewise, and OpenCV has JPEG built in.
    """
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


class Pictures(TorchDataset[Picture]):
    """Picture number n of an endless stream: which one and how it is changed follows from (seed, n) alone.

    With several processes each has its own share of the data set, and its own stream.
    """

    def __init__(self, recipe: PictureRecipe, rank: int = 0) -> None:
        self._recipe, self._data, self._spec = recipe, recipe.data, spec_of(recipe)
        self._rank = rank
        self._plain = _Plain(*open_share(recipe, rank), self._spec)
        self._kept: list[Picture] | None = None

    def keep(self) -> None:
        """Make or read every picture once, in `workers` processes, and hold them in memory."""
        self._kept = read_all(self._plain, len(self._plain), self._data.workers)

    def __getitem__(self, ordinal: int) -> Picture:
        augment, side = self._data.augment, self._recipe.size
        rng = random_at(ordinal, self._recipe, self._rank)
        schedule = self._recipe.schedule
        left = 1 - ordinal / (
            schedule.steps * schedule.batch
        )  # close-ups become rarer: the camera shows none
        if rng.random() < augment.mosaic * left:
            others = rng.integers(0, len(self._plain), 3)
            tiles = [self._plain_at(int(index)) for index in (self._index(ordinal), *others)]
            changed = mosaic([self._closeup(tile, rng) for tile in tiles])
        else:
            picture = self._plain_at(self._index(ordinal))
            if augment.plain and rng.random() < augment.plain:
                augment = augment.model_copy(update=STILL)
            matrix, mirrored = random_affine(rng, augment, side)
            changed = warp(picture, matrix, mirrored, pad_colour(self._spec), side)
        if augment.colour:
            changed.image[:] = recolour(changed.image, rng, augment.colour)
        if augment.coded and rng.random() < augment.coded:
            changed.image[:] = coded(changed.image, rng)
        return changed

    def _index(self, ordinal: int) -> int:
        return index_at(ordinal, len(self._plain), self._recipe.seed)

    def _plain_at(self, index: int) -> Picture:
        return self._kept[index] if self._kept else self._plain[index]

    def _closeup(self, picture: Picture, rng: np.random.Generator) -> Picture:
        side = self._recipe.size // 2
        matrix, mirrored = random_closeup(rng, self._data.augment, picture, side)
        return warp(picture, matrix, mirrored, pad_colour(self._spec), side)


class _Plain(TorchDataset[Picture]):
    """The chosen pictures of a data set, letterboxed and unchanged."""

    def __init__(self, dataset: Dataset, chosen: range, spec: Spec) -> None:
        self._dataset, self._chosen, self._spec = dataset, chosen, spec

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Picture:
        sample = self._dataset[self._chosen[index]]
        return replace(fit(sample.image, sample.people, self._spec), ids=(sample.image_id,))


def findable(picture: Picture, min_area: float, by_box: bool) -> Bools:
    """(P,) who is to be found: no crowd, nobody tiny; with a labelled joint or, `by_box`, with a box."""
    shown = (picture.boxes[:, 2:] > picture.boxes[:, :2]).all(1) if by_box else picture.labelled.any(1)
    return np.asarray(shown & ~picture.crowd & (picture.area >= min_area), np.bool_)


def collate(pictures: Sequence[Picture], min_area: float, by_box: bool = False) -> Batch:
    """Padded to the most people in one picture (at least one, so that no shape is empty)."""
    most = max(1, *(len(picture.area) for picture in pictures))

    def padded(values: Sequence[npt.NDArray[np.generic]]) -> torch.Tensor:
        full = np.zeros((len(values), most, *values[0].shape[1:]), values[0].dtype)
        for row, value in zip(full, values, strict=True):
            row[: len(value)] = value
        return torch.from_numpy(full)

    found = [findable(picture, min_area, by_box) for picture in pictures]
    return Batch(
        torch.from_numpy(np.stack([picture.image for picture in pictures])),
        People(
            joints=padded([p.joints for p in pictures]),
            labelled=padded([p.labelled for p in pictures]),
            area=padded([np.maximum(p.area, 1) for p in pictures]).clamp(min=1),
            boxes=padded([p.boxes for p in pictures]),
            valid=padded(found),
            ignored=padded([~one for one in found]),
        ),
        tuple(one for picture in pictures for one in picture.ids),
    )


@dataclass(frozen=True, slots=True)
class Collate:
    """`collate` with its rule, in a form that worker processes can be sent."""

    min_area: float
    by_box: bool

    def __call__(self, pictures: Sequence[Picture]) -> Batch:
        return collate(pictures, self.min_area, self.by_box)


def batches(recipe: PictureRecipe, pictures: Pictures, first: int, by_box: bool = False) -> Iterator[Batch]:
    """The batches of steps `first` to the end; `by_box` as of `findable`."""
    return loader(pictures, Collate(recipe.data.min_area, by_box), recipe, first)
