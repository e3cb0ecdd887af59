"""Training pictures: people move with their pixels, the stream follows from the step's number alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepose.calibration.sample import Person
from edgepose.calibration.synthetic import write_dataset
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.spec import Spec
from edgepose.training.data import (
    Picture,
    Pictures,
    batches,
    collate,
    fit,
    mosaic,
    random_affine,
    random_closeup,
    recolour,
    warp,
)
from edgepose.training.families.qrpose import QrPoseRecipe
from edgepose.training.order import Steps
from edgepose.training.recipe import parse_recipe
from edgepose.training.sections import Augment

RECIPE = """
model: qrpose_tiny
size: 64
seed: 3
data: {train: "synthetic:count=6,seed=1,size=64", workers: 0}
schedule: {steps: 5, batch: 2}
"""
SPEC = Spec("qrpose", "qrpose_tiny", 64, 64)


def recipe(**changes: str) -> QrPoseRecipe:
    text = RECIPE
    for old, new in changes.items():
        text = text.replace(old, new)
    return parse_recipe(text, "test")


def spotted(seed: int, side: int = 64, count: int = 3) -> Picture:
    """A black picture with a white blob at each of three far joints of one person."""
    rng = np.random.default_rng(seed)
    joints = np.zeros((1, len(COCO17), 2), np.float32)
    labelled = np.zeros((1, len(COCO17)), np.bool_)
    image = np.zeros((side, side, 3), np.uint8)
    for index in range(count):
        joints[0, 5 + index] = rng.uniform(20, 44, 2) if index else (32, 32)
        labelled[0, 5 + index] = True
    spot = joints[0, 5]
    y, x = np.mgrid[:side, :side]
    image[:] = (255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 8))[..., None].astype(np.uint8)
    box = np.array([[20, 20, 44, 44]], np.float32)
    return Picture(image, joints, labelled, np.array([400], np.float32), box, np.array([False]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_joints_move_with_their_pixels(seed: int) -> None:
    """The blob's centre of mass is where the joint says, mirrored or not."""
    matrix, mirrored = random_affine(np.random.default_rng(seed), Augment(translation=0.05), 64)
    moved = warp(spotted(seed), matrix, mirrored, (0, 0, 0), 64)
    weights = moved.image[..., 0].astype(np.float64)
    y, x = np.mgrid[:64, :64]
    centre = np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()
    joint = COCO17.mirror[5] if mirrored else 5
    assert moved.labelled[0, joint]
    assert np.abs(moved.joints[0, joint] - centre).max() < 0.25
    low, high = moved.boxes[0, :2], moved.boxes[0, 2:]
    assert (low - 1e-3 <= moved.joints[0, joint]).all()
    assert (moved.joints[0, joint] <= high + 1e-3).all()


def blob_at(picture: Picture, joint: int) -> None:
    """Asserts that the labelled joint lies on the picture's brightest blob."""
    weights = picture.image[..., 0].astype(np.float64)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    centre = np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()
    assert np.abs(picture.joints[picture.labelled[:, joint], joint] - centre).max() < 0.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_closeup_brings_a_person_into_its_tile(seed: int) -> None:
    calm = Augment(translation=0.0, rotation_degrees=0.0)
    picture = spotted(seed)
    matrix, mirrored = random_closeup(np.random.default_rng(seed), calm, picture, 32)
    tile = warp(picture, matrix, mirrored, (0, 0, 0), 32)
    longer = max(tile.boxes[0, 2:] - tile.boxes[0, :2])
    assert 0.39 * 32 <= longer <= 33
    assert np.abs((tile.boxes[0, :2] + tile.boxes[0, 2:]) / 2 - 15.5).max() < 0.01


def test_the_tiles_of_a_mosaic_keep_their_people() -> None:
    """One blob in each tile in turn: its joint is found on it in the whole picture."""
    black = Picture(
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((0, 17, 2), np.float32),
        np.zeros((0, 17), np.bool_),
        np.zeros(0, np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.bool_),
    )
    for place in range(4):
        tiles = [black] * 4
        tiles[place] = spotted(place)
        whole = mosaic(tiles)
        assert whole.image.shape == (128, 128, 3)
        blob_at(whole, 5)
        middle = (whole.boxes[0, :2] + whole.boxes[0, 2:]) / 2
        assert tuple(middle // 64) == (place % 2, place // 2)


def test_mosaics_become_rarer_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures at the start, none at the last ordinal (5 steps of 2 pictures)."""
    closeups: list[int] = []

    def seen(self: Pictures, picture: Picture, rng: np.random.Generator) -> Picture:
        closeups.append(1)
        return closeup(self, picture, rng)

    closeup = Pictures._closeup
    monkeypatch.setattr(Pictures, "_closeup", seen)
    stream = Pictures(recipe(**{"workers: 0": "workers: 0, augment: {mosaic: 1.0}"}))
    assert stream[0].image.shape == (64, 64, 3)
    assert len(closeups) == 4
    assert stream[10].image.shape == (64, 64, 3)
    assert len(closeups) == 4


def kind(now: Picture, original: Picture) -> str:
    """How a picture was changed, if at all; asserts that its joints were changed likewise."""
    if np.array_equal(now.image, original.image):
        assert np.array_equal(now.joints, original.joints)
        return "as it is"
    if np.array_equal(now.image, original.image[:, ::-1]):
        there = original.joints[:, list(COCO17.mirror)] * [-1, 1] + [63, 0]
        assert np.array_equal(now.joints, there.astype(np.float32))
        return "mirrored"
    return "changed"


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("0.0", {"changed"}),
        ("0.5", {"as it is", "mirrored", "changed"}),
        ("1.0", {"as it is", "mirrored"}),
    ],
)
def test_plain_pictures_are_mirrored_at_most(plain: str, shown: set[str]) -> None:
    """Pixel for pixel; their colours, too."""
    stream = Pictures(recipe(**{"workers: 0": f"workers: 0, augment: {{plain: {plain}}}"}))
    originals = {one.ids: one for one in (stream._plain_at(index) for index in range(6))}
    seen = [stream[ordinal] for ordinal in range(40)]
    assert {kind(now, originals[now.ids]) for now in seen} == shown


def test_the_area_grows_with_the_square_of_the_scale() -> None:
    matrix = np.array([[1.5, 0, -16], [0, 1.5, -16]])
    assert warp(spotted(0), matrix, False, (0, 0, 0), 64).area[0] == pytest.approx(400 * 2.25)


def test_the_area_is_what_the_picture_shows() -> None:
    """As a labeller counts it; the whole person's would make a far-off pose look right."""
    half = warp(spotted(0), np.array([[1.0, 0, 32], [0, 1.0, 0]]), False, (0, 0, 0), 64)
    assert half.boxes[0].tolist() == [52, 20, 63.5, 44]
    assert half.area[0] == pytest.approx(400 * 11.5 / 24)
    away = warp(spotted(0), np.array([[1.0, 0, 60], [0, 1.0, 0]]), False, (0, 0, 0), 64)
    assert away.area[0] == 0


def test_boxes_move_with_their_pixels() -> None:
    """Mirrored, a square of white pixels still ends where its box does."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 5:25] = 255
    person = Person(np.full((17, 2), 15, np.float32), np.full(17, 2, np.uint8), (5, 10, 20, 20), 400.0)
    mirror = np.array([[-1.0, 0, 63], [0, 1.0, 0]])
    fitted = fit(image, (person,), SPEC)
    for picture in (fitted, warp(fitted, mirror, True, (0, 0, 0), 64)):
        y, x = np.nonzero(picture.image[..., 0])
        edges = [x.min() - 0.5, y.min() - 0.5, x.max() + 0.5, y.max() + 0.5]
        assert picture.boxes[0].tolist() == edges


def test_joints_that_leave_the_picture_are_not_labelled() -> None:
    away = warp(spotted(0), np.array([[1.0, 0, 60], [0, 1.0, 0]]), False, (0, 0, 0), 64)
    assert not away.labelled.any()


def test_a_sample_is_letterboxed_as_a_camera_frame_is() -> None:
    joints = np.full((17, 2), 99.5, np.float32)
    person = Person(joints, np.full(17, 2, np.uint8), (50, 0, 100, 100), 5000.0)
    picture = fit(np.zeros((100, 200, 3), np.uint8), (person,), SPEC)
    assert picture.image.shape == (64, 64, 3)
    assert np.allclose(picture.joints, (31.5, 31.5 + 0.0), atol=0.01) or np.allclose(
        picture.joints[..., 0], 31.5
    )
    assert picture.area[0] == pytest.approx(5000 * 0.32**2)
    assert np.allclose(picture.boxes[0], [15.5, -0.5, 47.5, 31.5], atol=0.01)
    assert fit(np.zeros((50, 50, 3), np.uint8), (), SPEC).joints.shape == (0, 17, 2)


def test_colour_changes_keep_black_and_white_apart() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 255
    for seed in range(20):
        changed = recolour(image, np.random.default_rng(seed), 0.25)
        assert int(changed[0].min()) > int(changed[3].max())


def as_jpeg(image: U8, quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR).tobytes()


def test_a_share_of_the_pictures_goes_through_a_codec_and_nothing_else_changes() -> None:
    asked = {"workers: 0": "workers: 0, augment: {coded: 0.4}"}
    plain, sent = Pictures(recipe()), Pictures(recipe(**asked))
    qualities = []
    for ordinal in range(60):
        before, after = plain[ordinal], sent[ordinal]
        np.testing.assert_array_equal(after.joints, before.joints)
        if not np.array_equal(after.image, before.image):
            found = [q for q in range(1, 101) if as_jpeg(before.image, q) == after.image.tobytes()]
            qualities.append(found[0])
    assert 12 <= len(qualities) <= 36  # of 60, 24 to be expected: 3 standard deviations
    assert 40 <= min(qualities) < 60
    assert 75 < max(qualities) <= 95


def test_the_stream_follows_from_the_number_alone() -> None:
    """Whatever was asked before, cached or not, and with an epoch that covers every picture."""
    first, second = Pictures(recipe()), Pictures(recipe(workers_0="workers: 0"))
    second.keep()
    for ordinal in (7, 0, 13):
        a, b = first[ordinal], second[ordinal]
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.joints, b.joints)
    assert not np.array_equal(first[0].image, first[6].image)


def test_processes_share_the_pictures_out() -> None:
    two = recipe(**{"seed: 3": "seed: 3\nprocesses: 2"})
    sizes = [len(Pictures(two, rank)._plain) for rank in (0, 1)]
    assert sizes == [3, 3]
    with pytest.raises(EdgeposeError, match="lower `processes`"):
        Pictures(recipe(**{"seed: 3": "seed: 3\nprocesses: 7"}))


def test_steps_resume_where_they_were() -> None:
    assert list(Steps(0, 4, 3))[2:] == list(Steps(2, 4, 3))
    assert len(Steps(2, 4, 3)) == 2


def test_worker_processes_give_the_same_batches() -> None:
    plain = recipe()
    shared = recipe(**{"workers: 0": "workers: 1"})
    for a, b in zip(batches(plain, Pictures(plain), 0), batches(shared, Pictures(shared), 0), strict=True):
        assert np.array_equal(a.images.numpy(), b.images.numpy())
        assert np.array_equal(a.people.joints.numpy(), b.people.joints.numpy())


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_wrong_with_a_picture_is_one_sentence_from_a_worker_too(cached: bool, tmp_path: Path) -> None:
    write_dataset(people := tmp_path / "people", count=2, seed=1, size=(64, 64))
    sorted((people / "images").iterdir())[1].unlink()
    shared = recipe(**{"synthetic:count=6,seed=1,size=64": str(people), "workers: 0": "workers: 1"})
    pictures = Pictures(shared)
    with pytest.raises(EdgeposeError, match=rf"^{tmp_path}.*: no such file \(a picture was expected\)$"):
        pictures.keep() if cached else next(iter(batches(shared, pictures, 0)))


@pytest.mark.timeout(60)
def test_workers_do_not_wait_for_threads_that_opencv_had_before() -> None:
    """Forked after OpenCV had started its threads, workers that touched them never gave a picture."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.float32), (31, 31), 0)
    try:
        shared = recipe(**{"workers: 0": "workers: 1"})
        assert len(list(batches(shared, Pictures(shared), 0))) > 0
    finally:
        cv2.setNumThreads(before)


def test_collate_pads_and_sorts_out_who_counts() -> None:
    picture = spotted(0)
    empty = fit(np.zeros((64, 64, 3), np.uint8), (), SPEC)
    small = Picture(
        picture.image,
        picture.joints,
        picture.labelled,
        np.array([3.0], np.float32),
        picture.boxes,
        picture.crowd,
    )
    batch = collate([picture, empty, small], min_area=64)
    assert batch.people.valid.tolist() == [[True], [False], [False]]
    assert batch.people.ignored.tolist() == [[False], [False], [True]]
    assert collate([empty], 64).people.joints.shape == (1, 1, 17, 2)


def test_by_box_whoever_has_a_box_in_the_picture_counts() -> None:
    """Without a joint too; a crowd never, nor someone whom the clip left no box."""
    picture = spotted(0)
    unlabelled = replace(picture, labelled=np.zeros_like(picture.labelled))
    crowd = replace(picture, crowd=np.array([True]))
    beyond = replace(picture, boxes=np.array([[63.5, 3, 63.5, 9]], np.float32))
    shown = [picture, unlabelled, crowd, beyond]
    assert collate(shown, min_area=1, by_box=True).people.valid[:, 0].tolist() == [True, True, False, False]
    assert collate(shown, min_area=1).people.valid[:, 0].tolist() == [True, False, False, True]


def coco(folder: Path, keypoints: list[float], crowd: int = 0) -> Path:
    cv2.imwrite(str(folder / "a.png"), np.zeros((40, 40, 3), np.uint8))
    annotation = {
        **{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": crowd, "area": 100.0, "bbox": [0, 0, 10, 10]},
        **{"keypoints": keypoints, "num_keypoints": sum(v > 0 for v in keypoints[2::3])},
    }
    values = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}],
    }
    (folder / "annotations.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("crowd", [0, 1])
def test_a_data_set_without_people_is_refused(tmp_path: Path, crowd: int) -> None:
    """Nobody labelled, or only a crowd, which is nobody to find."""
    folder = coco(tmp_path, [20.0, 10.0, 2.0] * 17 if crowd else [0.0] * 51, crowd)
    with pytest.raises(EdgeposeError, match=r"nobody is labelled in its 1 pictures|dataset without people"):
        Pictures(recipe(**{"synthetic:count=6,seed=1,size=64": str(folder)}))


def test_a_coco_folder_is_read(tmp_path: Path) -> None:
    folder = coco(tmp_path, [20.0, 10.0, 2.0] * 17)
    calm = "size: 64\nseed: 3\n"
    still = "workers: 0, augment: {flip: 0, scale: [1, 1], rotation_degrees: 0, translation: 0, colour: 0}"
    pictures = Pictures(
        recipe(**{"synthetic:count=6,seed=1,size=64": str(folder), "workers: 0": still, calm: calm})
    )
    assert np.allclose(pictures[0].joints[0], (20.5 * 1.6 - 0.5, 10.5 * 1.6 - 0.5), atol=1e-3)
