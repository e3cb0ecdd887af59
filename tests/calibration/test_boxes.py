"""Where people are: labels, detections from a file, poses of a network; and files that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepose.calibration.boxes import Detector, Labels, open_detector, read_detections
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.sample import Person, Sample
from edgepose.runtime.bundle import publish
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.spec import Spec

BLACK = np.zeros((120, 160, 3), np.uint8)


def sample(image_id: int, file_name: str = "") -> Sample:
    return Sample(image_id, BLACK, (), file_name)


def item(score: float = 0.9, box: Any = (10, 20, 30, 40), **picture: Any) -> dict[str, Any]:
    return {"category_id": 1, "bbox": list(box), "score": score, **picture}


def written(folder: Path, content: Any) -> Path:
    path = folder / "detections.json"
    path.write_text(json.dumps(content))
    return path


def test_pictures_are_known_by_id_or_by_name(tmp_path: Path) -> None:
    content = [
        item(image_id=7),
        item(image_id=7, score=0.4, box=(-5, 0, 20, 30)),
        item(file_name="somewhere/000003.png", box=(1, 2, 3, 4.5)),
        item(image_id=8, box=(500, 0, 10, 10)),
        {**item(image_id=7), "category_id": 3},
    ]
    found = read_detections(written(tmp_path, content)).find(
        [sample(7), sample(3, "images/000003.png"), sample(8), sample(9, "000009.png")]
    )
    np.testing.assert_allclose(found[0].boxes, [[10, 20, 30, 40], [0, 0, 15, 30]])
    np.testing.assert_allclose(found[0].scores, [0.9, 0.4])
    np.testing.assert_allclose(found[1].boxes, [[1, 2, 3, 4.5]])
    assert [len(one.boxes) for one in found] == [2, 1, 0, 0]  # one is outside of its picture
    sure = read_detections(tmp_path / "detections.json", 0.5).find([sample(7)])
    assert sure[0].scores.tolist() == [0.9]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"annotations": []}, "a list"),
        ([], "no person"),
        ([{**item(image_id=1), "category_id": 3}], "no person"),
        ([item()], "detection 0 has no image_id or file_name"),
        ([item(image_id=1), 5], "detection 1 has no category_id"),
        ([{"image_id": 1, "category_id": 1, "score": 1}], "has no bbox"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}], "has no score"),
        ([item(image_id=1, box=(1, 2, 3))], "not five numbers"),
        ([item(image_id=1, box=(1, 2, 3, "4"))], "not five numbers"),
        ([{**item(image_id=1), "bbox": 3}], "not five numbers"),
        ([item(image_id=1, box=(1, 2, 3, float("nan")))], "not five numbers"),
        ([item(image_id=1, box=(1, 2, 3, float("inf")))], "not five numbers"),
        ([item(image_id=1, box=(1, 2, 3, 10**400))], "not five numbers"),
        ([item(image_id=1, score=float("nan"))], "not five numbers"),
        ([item(image_id=1.5)], "no image_id or file_name"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, content: Any, said: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(EdgeposeError, match=said) as caught:
        read_detections(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(EdgeposeError, match="no such file"):
        read_detections(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("people are here")
    with pytest.raises(EdgeposeError, match="no valid JSON"):
        read_detections(tmp_path / "text.json")


def test_a_file_about_other_pictures_and_one_about_nobody(tmp_path: Path) -> None:
    path = written(tmp_path, [item(image_id=7, score=0.2), item(file_name="a.png")])
    with pytest.raises(EdgeposeError, match=r"about other pictures: none of its 2 .* among the 2 given"):
        read_detections(path).find([sample(1), sample(2, "b.png")])
    with pytest.raises(
        EdgeposeError, match=r"scores of 0\.5 and more.*finds nobody in any of the 1 pictures"
    ):
        read_detections(path, 0.5).find([sample(7)])


def test_labels_leave_out_who_cannot_be_shown() -> None:
    seen, none = np.full(17, 2, np.uint8), np.zeros(17, np.uint8)
    joints = np.zeros((17, 2), np.float32)
    people = (
        Person(joints, seen, (150.0, 10, 30, 40), 900),
        Person(joints, none, (10.0, 10, 30, 40), 900),
        Person(joints, seen, (10.0, 10, 30, 40), 900, crowd=True),
    )
    (found,) = Labels().find([Sample(1, BLACK, people)])
    np.testing.assert_allclose(found.boxes, [[150, 10, 10, 40]])
    assert found.scores.tolist() == [1]
    with pytest.raises(EdgeposeError, match="finds nobody"):
        Labels().find([Sample(1, BLACK, ())])


def test_a_detector_shows_whom_a_stream_would(tmp_path: Path) -> None:
    keypoints = np.full((2, 17, 2), 60, np.float32)
    keypoints[:, 0], keypoints[:, 1] = 40, 80
    scores = np.array([0.7, 0.2], np.float32)
    poses = Poses(keypoints, np.ones((2, 17), np.float32), scores, boxes_of(keypoints))

    def estimate(image: Any) -> Poses:
        return poses

    (found,) = Detector(tmp_path, estimate, 0.3).find([sample(1)])
    np.testing.assert_allclose(found.boxes, [[36.8, 36.8, 46.4, 46.4]], rtol=1e-6)  # 40 px and 8 % around
    assert found.scores == pytest.approx([0.7])
    with pytest.raises(EdgeposeError, match=f"{tmp_path}: finds nobody in any of the 3 pictures"):
        Detector(tmp_path, estimate, 0.9).find([sample(1)] * 3)


def test_a_bundle_that_needs_boxes_itself_finds_nobody(tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    spec = Spec("sharpose", "sharpose_tiny_128x96", 96, 128, graphs=("coarse", "fine"), resize="crop")
    publish(tmp_path / "content", tmp_path / "bundle", spec, {})
    with (
        pytest.raises(EdgeposeError, match="sharpose_tiny_128x96 cannot find people") as caught,
        open_detector(tmp_path / "bundle"),
    ):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(EdgeposeError, match="no such bundle"), open_detector(tmp_path / "none"):
        pass


def test_coco_files_name_their_pictures() -> None:
    coco = Path(__file__).parents[3] / "shared/data/coco-mini/person_keypoints_val.json"
    if not coco.is_file():
        pytest.skip("the COCO photographs are not beside the project")
    data = open_dataset(str(coco))
    assert data[0].file_name
    assert (coco.parent / "images" / data[0].file_name).is_file()


# Pythons before 3.10.7 read a number of any length, which then is no detection.
ENDLESS = "no valid JSON" if hasattr(sys, "get_int_max_str_digits") else "detection 0 has no category_id"


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "no valid JSON"), ("[" + "9" * 5000 + "]", ENDLESS), ("\x00", "no valid JSON")],
)
def test_json_without_end_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "detections.json").write_text(text)
    with pytest.raises(EdgeposeError, match=message):
        read_detections(tmp_path / "detections.json")
