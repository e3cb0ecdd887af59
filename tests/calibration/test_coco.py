"""COCO annotations: read as pycocotools reads them, and a sentence for each thing that can be wrong."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from edgepose.calibration.coco import read_coco
from edgepose.runtime.errors import EdgeposeError

FolderMaker = Callable[..., Path]
MINI = Path(__file__).parents[3] / "shared/data/coco-mini/person_keypoints_val.json"


def test_reads_what_pycocotools_reads(coco_folder: FolderMaker) -> None:
    compare(coco_folder("set", range(8)) / "annotations.json")


def test_reads_real_coco() -> None:
    if not MINI.is_file():
        pytest.skip("the COCO pictures for tests are not here")
    compare(MINI)


def compare(path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(path))
    coco = read_coco(path)
    assert [image.image_id for image in coco.images] == sorted(reference.getImgIds())
    for image in coco.images:
        theirs = reference.loadAnns(reference.getAnnIds(imgIds=[image.image_id]))
        assert len(image.people) == len(theirs)
        for person, annotation in zip(image.people, theirs, strict=True):
            keypoints = np.array(annotation["keypoints"]).reshape(-1, 3)
            np.testing.assert_allclose(person.keypoints, keypoints[:, :2], rtol=1e-6)
            assert (person.visibility == keypoints[:, 2]).all()
            assert (person.box, person.area) == (tuple(annotation["bbox"]), annotation["area"])
            assert person.crowd == bool(annotation["iscrowd"])
            assert (person.visibility > 0).sum() == annotation["num_keypoints"]


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no person category": (lambda c: c["categories"][0].update(name="dog"), "no category is named 'person'"),
    "no categories": (lambda c: c.pop("categories"), "it has no list of categories$"),
    "joints of a category": (lambda c: c["categories"][0].update(keypoints=["nose"] * 14), "the 14 joints"),
    "joints in another order": (lambda c: c["categories"][0]["keypoints"].reverse(), "skeleton known here"),
    "no joints named": (lambda c: c["categories"][0].pop("keypoints"), "has no 'keypoints'"),
    "no annotations": (lambda c: c["annotations"].clear(), "dataset without people"),
    "nobody labelled": (
        lambda c: [a.update(keypoints=[0] * 51) for a in c["annotations"]],
        "dataset without people",
    ),
    "keypoints cut": (
        lambda c: c["annotations"][0]["keypoints"].pop(),
        "annotation 1 has 50 values.*51 were",
    ),
    "no keypoints": (lambda c: c["annotations"][0].pop("keypoints"), "annotation 1 has no 'keypoints'"),
    "a word for a number": (
        lambda c: c["annotations"][0]["keypoints"].__setitem__(0, "x"),
        "annotation 1 has 'x' in 'keypoints', which is no number below",
    ),
    "not a number": (
        lambda c: c["annotations"][0]["bbox"].__setitem__(0, float("nan")),
        "annotation 1 has 'nan' in 'bbox', which is no number below",
    ),
    "too large for a float": (
        lambda c: c["annotations"][0]["keypoints"].__setitem__(0, 10**400),
        "in 'keypoints', which is no number below",
    ),
    "too large for a picture": (lambda c: c["annotations"][0].update(area=-1e300), "'-1e.300' in 'area'"),
    "a list for a number": (lambda c: c["annotations"][0].update(bbox=[[1]] * 4), "no number below"),
    "box inside out": (
        lambda c: c["annotations"][0].update(bbox=[5, 5, -5, -5]),
        "a box of -5 x -5 .* negative",
    ),
    "negative area": (lambda c: c["annotations"][0].update(area=-4), "an area of -4; .* negative"),
    "keypoints of null": (
        lambda c: c["categories"][0].update(keypoints=None),
        "the keypoints of 'person' are None; a list of names was expected",
    ),
    "no area": (lambda c: c["annotations"][0].pop("area"), "no 'area'"),
    "visibility": (lambda c: c["annotations"][0]["keypoints"].__setitem__(2, 7), "visibility other than"),
    "unknown image": (lambda c: c["annotations"][0].update(image_id=99), "annotation 1 points to image 99"),
    "image twice": (lambda c: c["images"].append(c["images"][0]), "image id 0 occurs more than once"),
    "image without size": (lambda c: c["images"][0].pop("width"), "image 0 has no 'width'"),
    "image of no size": (lambda c: c["images"][0].update(height=0), "image 0 has the size 96 x 0"),
    "image id a truth": (lambda c: c["images"][0].update(id=True), "image id True"),
    "image id a name": (lambda c: c["images"][0].update(id="first"), "image id 'first'"),
    "images of numbers": (lambda c: c.update(images=[1, 2]), "image 1 has no 'id'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(coco_folder: FolderMaker, what: str) -> None:
    edit, sentence = WRONG[what]
    path = edited(coco_folder("set", range(4)) / "annotations.json", edit)
    with pytest.raises(EdgeposeError, match=sentence) as error:
        read_coco(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", '{"images": []}', '{"images": [], "annotations"', "\x89PNG"]
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(EdgeposeError, match=r"a\.json: not COCO keypoint annotations"):
        read_coco(tmp_path / "a.json")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(EdgeposeError, match="no such file"):
        read_coco(tmp_path / "a.json")


def test_other_categories_are_passed_over(coco_folder: FolderMaker) -> None:
    def add_dog(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 2, "name": "dog"})
        content["annotations"].append({"id": 99, "category_id": 2, "image_id": 0})

    path = coco_folder("set", range(4)) / "annotations.json"
    before = sum(len(image.people) for image in read_coco(path).images)
    assert sum(len(image.people) for image in read_coco(edited(path, add_dog)).images) == before
