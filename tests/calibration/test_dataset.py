"""Every source of labelled pictures opens the same way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose.calibration.dataset import Dataset, fingerprint_of, open_dataset
from edgepose.calibration.synthetic import write_dataset
from edgepose.runtime.errors import EdgeposeError

FolderMaker = Callable[..., Path]
MINI = Path(__file__).parents[3] / "shared/data/coco-mini/person_keypoints_val.json"


def check_contract(dataset: Dataset) -> None:
    """What holds for every data set."""
    for index in (0, len(dataset) - 1):
        sample = dataset[index]
        assert sample.image.ndim == 3
        assert dataset.size(index) == (sample.image.shape[1], sample.image.shape[0])
        assert len(dataset.people(index)) == len(sample.people)
        assert dataset.fingerprint(index) == fingerprint_of(sample.image)
        assert all(person.keypoints.shape == (len(dataset.skeleton), 2) for person in sample.people)
    assert len({dataset.fingerprint(i) for i in range(len(dataset))}) == len(dataset)
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert open_dataset(dataset.source).fingerprint(0) == dataset.fingerprint(0)


def test_a_folder(coco_folder: FolderMaker) -> None:
    folder = coco_folder("people", range(6))
    dataset = open_dataset(str(folder))
    check_contract(dataset)
    assert (len(dataset), dataset.name) == (6, "people")
    assert (dataset[3].image == cv2.imread(str(folder / "images/003.png"))).all()


def test_an_annotation_file_in_the_layout_of_coco(coco_folder: FolderMaker, tmp_path: Path) -> None:
    folder = coco_folder("people", range(3))
    (tmp_path / "coco/annotations").mkdir(parents=True)
    shutil.move(folder / "images", tmp_path / "coco/val2017")
    shutil.move(folder / "annotations.json", tmp_path / "coco/annotations/person_keypoints_val2017.json")
    dataset = open_dataset(str(tmp_path / "coco/annotations/person_keypoints_val2017.json"))
    check_contract(dataset)
    assert dataset.name == "person_keypoints_val2017"


def test_real_coco() -> None:
    if not MINI.is_file():
        pytest.skip("the COCO pictures for tests are not here")
    check_contract(open_dataset(str(MINI)))


def test_synthetic_people() -> None:
    dataset = open_dataset("synthetic:count=3,seed=7,size=96x64")
    check_contract(dataset)
    assert (len(dataset), dataset.size(0)) == (3, (96, 64))
    other = open_dataset("synthetic:count=3,seed=8,size=96x64")
    assert other.fingerprint(0) != dataset.fingerprint(0)
    assert len(open_dataset("synthetic:")) == 300


def test_stick_figures() -> None:
    dataset = open_dataset("synthetic:count=3,seed=7,size=96x64,people=sticks")
    check_contract(dataset)
    assert dataset.source == "synthetic:count=3,seed=7,size=96x64,people=sticks"
    people = open_dataset("synthetic:count=3,seed=7,size=96x64,people=bodies")
    assert people.source == "synthetic:count=3,seed=7,size=96x64"
    assert people.fingerprint(0) != dataset.fingerprint(0)
    assert people.name != dataset.name


def test_written_synthetic_people_read_the_same(tmp_path: Path) -> None:
    write_dataset(tmp_path / "people", count=6, seed=7, size=(96, 64))
    made, read = open_dataset("synthetic:count=6,seed=7,size=96x64"), open_dataset(str(tmp_path / "people"))
    check_contract(read)
    assert sum(len(made.people(i)) for i in range(6)) > 0
    for index in range(6):
        for ours, theirs in zip(made.people(index), read.people(index), strict=True):
            assert (ours.visibility == theirs.visibility).all()
            seen = ours.visibility > 0
            assert np.abs(ours.keypoints[seen] - theirs.keypoints[seen]).max(initial=0) < 1e-3
            assert (*ours.box, ours.area) == pytest.approx((*theirs.box, theirs.area))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("synthetic:cuont=3", "unknown key 'cuont'; did you mean 'count'"),
        ("synthetic:zzz=3", "known are count, seed, size, people"),
        ("synthetic:count=0", "count='0' is not a whole number from 1"),
        ("synthetic:people=ghosts", "people='ghosts' is none of bodies, sticks"),
        ("synthetic:count=many", "count='many'"),
        ("synthetic:count", "count=''"),
        ("synthetic:seed=-1", "seed='-1'"),
        ("synthetic:size=256x", "size='256x' is no size"),
        ("synthetic:size=8", "size='8' is no size"),
        ("synthetic:size=256x16", "size='256x16'"),
        ("nowhere", "nowhere: no such file; a dataset is synthetic:"),
        ("nowhere.json", "no such file"),
    ],
)
def test_a_wrong_source_is_said(source: str, sentence: str) -> None:
    with pytest.raises(EdgeposeError, match=sentence):
        open_dataset(source)


def test_a_folder_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(EdgeposeError, match=r"annotations\.json: no such file"):
        open_dataset(str(tmp_path))


def test_pictures_that_are_nowhere(coco_folder: FolderMaker) -> None:
    folder = coco_folder("people", range(3))
    shutil.rmtree(folder / "images")
    with pytest.raises(EdgeposeError, match=r"000\.png lies neither in .*images"):
        open_dataset(str(folder))


def test_a_picture_that_is_missing_or_cut(coco_folder: FolderMaker) -> None:
    folder = coco_folder("people", range(4))
    (folder / "images/001.png").unlink()
    whole = (folder / "images/002.png").read_bytes()
    (folder / "images/002.png").write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset(str(folder))
    assert dataset.people(1)  # labels need no picture
    for index, sentence in ((1, "no such file"), (2, "cut short")):
        with pytest.raises(EdgeposeError, match=rf"00{index}\.png: .*{sentence}"):
            dataset[index]


def test_a_picture_of_another_size_than_its_labels_say(coco_folder: FolderMaker) -> None:
    folder = coco_folder("people", range(4))
    cv2.imwrite(str(folder / "images/001.png"), np.zeros((30, 20, 3), np.uint8))
    with pytest.raises(EdgeposeError, match="stored as 20x30 pixels, the annotations say 96x64"):
        open_dataset(str(folder))[1]


def test_exif_is_not_applied_to_coco(coco_folder: FolderMaker) -> None:
    """The labels refer to the picture as stored; labels made on the turned one are found out by the size."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the EXIF tag")
    folder = coco_folder("people", range(4))
    content = json.loads((folder / "annotations.json").read_text())
    stored = cv2.imread(str(folder / "images/001.png"))
    exif = pillow.Exif()
    exif[0x0112] = 6
    pillow.fromarray(stored[..., ::-1].copy()).save(
        folder / "images/001.jpg", exif=exif.tobytes(), quality=100
    )
    content["images"][1]["file_name"] = "001.jpg"
    (folder / "annotations.json").write_text(json.dumps(content))
    assert np.abs(open_dataset(str(folder))[1].image.astype(int) - stored).mean() < 3
    content["images"][1].update(width=64, height=96)
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(EdgeposeError, match="describe it as its EXIF tag turns it"):
        open_dataset(str(folder))[1]


def test_grey_and_tiny_pictures_in_a_folder(coco_folder: FolderMaker) -> None:
    folder = coco_folder("people", range(4))
    cv2.imwrite(str(folder / "images/001.png"), np.full((64, 96), 7, np.uint8))
    content = json.loads((folder / "annotations.json").read_text())
    content["images"][0].update(width=1, height=1)
    cv2.imwrite(str(folder / "images/000.png"), np.full((1, 1, 3), 9, np.uint8))
    (folder / "annotations.json").write_text(json.dumps(content))
    dataset = open_dataset(str(folder))
    assert dataset[1].image.shape == (64, 96, 3)
    assert dataset[0].image.shape == (1, 1, 3)


def test_fingerprint_knows_shape_and_every_pixel() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    changed = image.copy()
    changed[3, 5, 2] = 1
    prints = {fingerprint_of(image), fingerprint_of(changed), fingerprint_of(image.reshape(6, 4, 3))}
    assert len(prints) == 3
    assert fingerprint_of(np.asfortranarray(image)) == fingerprint_of(image)
