"""Labels as a COCO keypoint annotation file says them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgepose.calibration.sample import Person
from edgepose.runtime.skeleton import Skeleton

Frame = tuple[int, str, tuple[int, int], tuple[Person, ...]]  # image_id, file_name, (width, height), people
PERSON = 1  # COCO's category id of people


def _category(skeleton: Skeleton) -> dict[str, Any]:
    edges = [[a + 1, b + 1] for a, b in skeleton.edges]  # COCO counts joints from 1 here
    names = list(skeleton.joints)
    return {"id": PERSON, "name": "person", "supercategory": "person", "keypoints": names, "skeleton": edges}


def _annotation(number: int, image_id: int, person: Person) -> dict[str, Any]:
    keypoints: list[float] = []
    for (x, y), visibility in zip(person.keypoints.tolist(), person.visibility.tolist(), strict=True):
        keypoints += [round(x, 3), round(y, 3), visibility] if visibility else [0, 0, 0]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": PERSON,
        "iscrowd": int(person.crowd),
        "area": float(person.area),
        "bbox": [float(side) for side in person.box],
        "num_keypoints": int((person.visibility > 0).sum()),
        "keypoints": keypoints,
    }


def to_coco(frames: Iterable[Frame], skeleton: Skeleton) -> dict[str, Any]:
    """The content of an annotation file; annotation ids count from 1 (COCO's evaluator takes 0 for none)."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, file_name, (width, height), people in frames:
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for person in people:
            annotations.append(_annotation(len(annotations) + 1, image_id, person))
    return {
        "info": {"description": "written by edgepose"},
        "images": images,
        "annotations": annotations,
        "categories": [_category(skeleton)],
    }
