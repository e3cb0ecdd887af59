"""Written data sets and videos are read back by pycocotools and OpenCV and say what the generator said."""

from __future__ import annotations

import contextlib
import io
import json

import cv2
import numpy as np
import pytest

from edgepose.calibration.coco_json import to_coco
from edgepose.calibration.sample import Person
from edgepose.calibration.synthetic import scene, video, write_dataset, write_video
from edgepose.calibration.synthetic import write as write_module
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import COCO17

coco_tools = pytest.importorskip("pycocotools.coco")
coco_eval = pytest.importorskip("pycocotools.cocoeval")
SIZE = (128, 96)
# As in person_keypoints_val2017.json; joints count from 1.
COCO_SKELETON = [
    *([16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9]),
    *([8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]),
]


def _load(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return coco_tools.COCO(str(path))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    write_dataset(folder, 12, 3, SIZE)
    return folder


def test_pycocotools_reads_what_was_generated(dataset):
    coco = _load(dataset / "annotations.json")
    assert sorted(coco.imgs) == list(range(12))
    (category,) = coco.loadCats(coco.getCatIds(catNms=["person"]))
    assert category["keypoints"] == list(COCO17.joints)
    assert category["skeleton"] == COCO_SKELETON
    for index in range(12):
        sample = scene(3, index, SIZE)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index]))
        assert len(annotations) == len(sample.people)
        for annotation, person in zip(annotations, sample.people, strict=True):
            keypoints = np.array(annotation["keypoints"]).reshape(17, 3)
            np.testing.assert_allclose(keypoints[:, :2], person.keypoints, atol=5e-4)
            np.testing.assert_array_equal(keypoints[:, 2], person.visibility)
            assert annotation["num_keypoints"] == (person.visibility > 0).sum()
            assert tuple(annotation["bbox"]) == person.box
            assert (annotation["area"], annotation["iscrowd"]) == (person.area, 0)


def test_the_pictures_survive_jpeg(dataset):
    for index in range(12):
        sample = scene(3, index, SIZE)
        image = cv2.imread(str(dataset / "images" / f"{index:06d}.jpg"))
        assert image.shape == (96, 128, 3)
        before, after = (cv2.cvtColor(one, cv2.COLOR_BGR2GRAY).astype(int) for one in (sample.image, image))
        assert np.abs(before - after).mean() < 3  # of the brightness: JPEG halves the colour's resolution


def test_the_truth_scores_perfectly_in_cocos_own_evaluator(dataset):
    coco = _load(dataset / "annotations.json")
    results = [
        {key: annotation[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 0.9}
        for annotation in coco.dataset["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = coco_eval.COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluator.params.areaRng = [
            [0, 1e10]
        ] * 3  # most people of so small pictures are below COCO's 32 x 32
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert evaluator.stats[0] == pytest.approx(1.0)


def test_a_data_set_is_all_or_nothing(dataset, tmp_path, monkeypatch):
    with pytest.raises(EdgeposeError, match="exists already"):
        write_dataset(dataset, 1, 0, SIZE)
    calls = iter(range(3))

    def failing(seed, index, size):
        next(calls)
        if index == 2:
            raise KeyboardInterrupt
        return scene(seed, index, size)

    monkeypatch.setattr(write_module, "scene", failing)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "new", 5, 0, SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "size"), [(0, (64, 64)), (-1, (64, 64)), (1, (0, 64)), (1, (64, -2))])
def test_nothing_to_write_is_refused(tmp_path, count, size):
    with pytest.raises(EdgeposeError, match="above 0"):
        write_dataset(tmp_path / "new", count, 0, size)
    assert list(tmp_path.iterdir()) == []


def _frames(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        more, frame = capture.read()
        if not more:
            capture.release()
            return frames
        frames.append(frame)


def _check_video(folder, name):
    film, frames = video(4, SIZE, 10), _frames(folder / name)
    truth = json.loads((folder / "truth.json").read_text())
    assert [image["frame"] for image in truth["images"]] == list(range(8)) == list(range(len(frames)))
    assert {image["file_name"] for image in truth["images"]} == {name}
    for i, frame in enumerate(frames):
        sample = film.frame(i)
        assert np.abs(frame.astype(int) - sample.image).mean() < 12
        assert len(sample.people) == sum(a["image_id"] == i for a in truth["annotations"])
    assert len(_load(folder / "truth.json").imgs) == 8


def test_a_video_and_its_truth(tmp_path):
    write_video(tmp_path / "film", 0.8, 4, SIZE, 10)
    _check_video(tmp_path / "film", "video.mp4")


def test_without_an_mp4_encoder_the_video_is_an_avi(tmp_path, monkeypatch):
    original = cv2.VideoWriter

    class Closed:
        def isOpened(self):  # noqa: N802 - OpenCV's name
            return False

    def without_mp4(path, *rest):  # no subclass: OpenCV's types are not made for that and crash
        return Closed() if path.endswith(".mp4") else original(path, *rest)

    without_mp4.fourcc = original.fourcc
    monkeypatch.setattr(write_module.cv2, "VideoWriter", without_mp4)
    write_video(tmp_path / "film", 0.8, 4, SIZE, 10)
    _check_video(tmp_path / "film", "video.avi")


def test_without_any_encoder_there_is_a_sentence_and_no_folder(tmp_path, monkeypatch):
    class Closed:
        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, *_):
            pass

        def isOpened(self):  # noqa: N802 - OpenCV's name
            return False

    monkeypatch.setattr(write_module.cv2, "VideoWriter", Closed)
    with pytest.raises(EdgeposeError, match="neither MP4 nor AVI"):
        write_video(tmp_path / "film", 0.8, 4, SIZE, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "fps"), [(0, 25), (-1.0, 25), (1, 0)])
def test_a_video_of_nothing_is_refused(tmp_path, seconds, fps):
    with pytest.raises(EdgeposeError, match="above 0"):
        write_video(tmp_path / "film", seconds, 4, SIZE, fps)


def test_coco_json_of_hand_made_people():
    keypoints = np.zeros((17, 2), np.float32)
    keypoints[3] = 1.25, 2.5
    visibility = np.zeros(17, np.uint8)
    visibility[3] = 1
    person = Person(keypoints, visibility, (1.0, 2.0, 3.0, 4.0), 7.5, crowd=True)
    truth = to_coco([(9, "a.jpg", (20, 10), (person, person)), (12, "b.jpg", (2, 1), ())], COCO17)
    assert truth["images"] == [
        {"id": 9, "file_name": "a.jpg", "width": 20, "height": 10},
        {"id": 12, "file_name": "b.jpg", "width": 2, "height": 1},
    ]
    first, second = truth["annotations"]
    assert (first["id"], second["id"]) == (1, 2)
    assert first["keypoints"][9:12] == [1.25, 2.5, 1]
    assert len(first["keypoints"]) == 51
    assert sum(first["keypoints"]) == 4.75
    assert (first["num_keypoints"], first["iscrowd"], first["image_id"]) == (1, 1, 9)
    json.dumps(truth, allow_nan=False)
