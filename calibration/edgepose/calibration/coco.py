"""COCO keypoint annotations, read with a sentence for everything that can be wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepose.calibration.sample import FAR, Person
from edgepose.runtime.drafts import read_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import SKELETONS, Skeleton

WHAT = "COCO keypoint annotations"
LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One picture of an annotation file, with its people. Sizes are of the picture as stored, in pixels."""

    image_id: int
    file_name: str
    width: int
    height: int
    people: tuple[Person, ...]


@dataclass(frozen=True, slots=True)
class Coco:
    """An annotation file: its pictures in the order of their ids, as COCO's evaluator walks them."""

    path: Path
    skeleton: Skeleton
    images: tuple[CocoImage, ...]


def read_coco(path: Path) -> Coco:
    """Raises EdgeposeError when the file is missing, foreign, contradicts itself or has nobody in it."""
    content = read_json(path, WHAT)
    lists = content if isinstance(content, dict) else {}
    missing = [key for key in LISTS if not isinstance(lists.get(key), list)]
    if missing:
        raise EdgeposeError(f"{path}: not {WHAT}: it has no list of {', '.join(missing)}")
    category, skeleton = _person_category(path, content["categories"])
    images = _images_by_id(path, content["images"])
    people: dict[int, list[Person]] = {image_id: [] for image_id in images}
    for annotation in content["annotations"]:
        if _field(path, annotation, "annotation", "category_id") == category:
            image_id = _image_of(path, annotation, images)
            people[image_id].append(_person(path, annotation, skeleton))
    if not any(person.visibility.any() for group in people.values() for person in group):
        raise EdgeposeError(
            f"{path}: a dataset without people: no person has a labelled joint; choose other data"
        )
    return Coco(path, skeleton, tuple(_image(path, images[key], people[key]) for key in sorted(images)))


def _field(path: Path, item: Any, kind: str, key: str) -> Any:
    """item[key], or the sentence naming the item that lacks it."""
    if not isinstance(item, dict) or key not in item:
        name = item.get("id", "without id") if isinstance(item, dict) else repr(item)[:40]
        raise EdgeposeError(f"{path}: {kind} {name} has no {key!r}; it is not {WHAT}")
    return item[key]


def _person_category(path: Path, categories: list[Any]) -> tuple[Any, Skeleton]:
    """The id of the category `person` and the skeleton its joints follow."""
    person = next((c for c in categories if isinstance(c, dict) and c.get("name") == "person"), None)
    if person is None:
        raise EdgeposeError(f"{path}: no category is named 'person'; a dataset of people was expected")
    category = _field(path, person, "category", "id")
    names = _field(path, person, "category", "keypoints")
    if not isinstance(names, list):
        raise EdgeposeError(f"{path}: the keypoints of 'person' are {names!r}; a list of names was expected")
    for skeleton in SKELETONS.values():
        if tuple(names) == skeleton.joints:
            return category, skeleton
    known = ", ".join(f"{name} ({len(skeleton)} joints)" for name, skeleton in SKELETONS.items())
    raise EdgeposeError(
        f"{path}: the {len(names)} joints of 'person' are those of no skeleton known here ({known}); "
        "rename and order them like one of these"
    )


def _images_by_id(path: Path, images: list[Any]) -> dict[int, Any]:
    """image id -> entry, each id a whole number that occurs once."""
    ids = [_field(path, image, "image", "id") for image in images]
    wrong = next((i for i in ids if type(i) is not int), None)
    if wrong is not None:
        raise EdgeposeError(f"{path}: image id {wrong!r} is not a whole number")
    twice = [i for i, count in Counter(ids).items() if count > 1]
    if twice:
        raise EdgeposeError(f"{path}: image id {twice[0]} occurs more than once")
    return dict(zip(ids, images, strict=True))


def _image_of(path: Path, annotation: Mapping[str, Any], images: Mapping[int, Any]) -> int:
    """The id of the picture an annotation belongs to."""
    image_id = _field(path, annotation, "annotation", "image_id")
    if not isinstance(image_id, int) or image_id not in images:
        raise EdgeposeError(
            f"{path}: annotation {annotation.get('id')} points to image {image_id!r}, which is not listed"
        )
    return image_id


def _image(path: Path, entry: Mapping[str, Any], people: list[Person]) -> CocoImage:
    width, height = (_field(path, entry, "image", key) for key in ("width", "height"))
    if not all(isinstance(side, int) and side > 0 for side in (width, height)):
        raise EdgeposeError(f"{path}: image {entry['id']} has the size {width!r} x {height!r}")
    file_name = str(_field(path, entry, "image", "file_name"))
    return CocoImage(entry["id"], file_name, width, height, tuple(people))


def _numbers(path: Path, annotation: Mapping[str, Any], key: str, count: int) -> np.ndarray[Any, Any]:
    """(count,) float64 of a list in an annotation, none as far as FAR."""
    values = _field(path, annotation, "annotation", key)
    length = len(values) if isinstance(values, list) else "no"
    if length != count:
        raise EdgeposeError(
            f"{path}: annotation {annotation.get('id')} has {length} values in {key!r}, {count} were expected"
        )
    wrong = [value for value in values if not (isinstance(value, int | float) and abs(value) < FAR)]
    if wrong:
        raise EdgeposeError(
            f"{path}: annotation {annotation.get('id')} has {str(wrong[0])[:40]!r} in {key!r}, "
            f"which is no number below {FAR:g}"
        )
    return np.array(values, np.float64)


def _person(path: Path, annotation: Mapping[str, Any], skeleton: Skeleton) -> Person:
    """An annotation as a Person, its coordinates unchanged (COCO's evaluator adds no half pixel either)."""
    joints = _numbers(path, annotation, "keypoints", 3 * len(skeleton)).reshape(-1, 3)  # x, y, visibility
    if not np.isin(joints[:, 2], (0, 1, 2)).all():
        raise EdgeposeError(f"{path}: annotation {annotation.get('id')} has a visibility other than 0, 1, 2")
    x, y, width, height = _numbers(path, annotation, "bbox", 4).tolist()
    _field(path, annotation, "annotation", "area")
    (area,) = _numbers(path, {**annotation, "area": [annotation["area"]]}, "area", 1).tolist()
    if min(width, height, area) < 0:
        raise EdgeposeError(
            f"{path}: annotation {annotation.get('id')} has a box of {width:g} x {height:g} and an area of "
            f"{area:g}; none of them may be negative"
        )
    return Person(
        keypoints=joints[:, :2].astype(np.float32),
        visibility=joints[:, 2].astype(np.uint8),
        box=(x, y, width, height),
        area=area,
        crowd=bool(annotation.get("iscrowd", 0)),
    )
