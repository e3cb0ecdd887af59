"""The result type, the decoder's contract and the overlay."""

import numpy as np
import pytest

from edgepose.runtime.decode import DECODERS
from edgepose.runtime.overlay import draw
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.skeleton import COCO17


def outputs(scores: list[float]) -> dict[str, np.ndarray]:
    n = len(scores)
    keypoints = np.arange(n * 34, dtype=np.float32).reshape(1, n, 17, 2)
    return {
        "scores": np.array([scores], np.float32),
        "keypoints": keypoints,
        "keypoint_scores": np.ones((1, n, 17), np.float32),
    }


def test_decoding_sorts_by_score_and_leaves_empty_slots_out() -> None:
    out = outputs([0.2, 0.0, 0.9])
    poses = DECODERS["qrpose"](out, Letterbox(1.0, 1.0, 256, 256), COCO17)
    np.testing.assert_array_equal(poses.scores, np.array([0.9, 0.2], np.float32))
    np.testing.assert_array_equal(poses.keypoints[0], out["keypoints"][0, 2])
    np.testing.assert_array_equal(poses.boxes[1], [0, 1, 32, 33])


def test_decoding_goes_back_through_the_letterbox() -> None:
    out = outputs([0.5])
    poses = DECODERS["qrpose"](out, Letterbox.fit((512, 512), (256, 256)), COCO17)
    np.testing.assert_allclose(poses.keypoints[0], out["keypoints"][0, 0] * 2 + 0.5)


def test_poses_refuse_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="expected shapes"):
        Poses(*(np.zeros(s, np.float32) for s in ((2, 17, 2), (2, 17), (3,), (2, 4))))


def test_choosing_people() -> None:
    poses = Poses(np.zeros((3, 17, 2), np.float32), np.zeros((3, 17), np.float32),
                  np.array([0.9, 0.2, 0.5], np.float32), np.zeros((3, 4), np.float32))  # fmt: skip
    assert poses.above(0.5).scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(Poses.empty()) == 0
    assert boxes_of(Poses.empty().keypoints).shape == (0, 4)


def test_a_person_is_finite_when_all_their_numbers_are() -> None:
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0, 200, (5, 17, 2)).astype(np.float32)
    sure, scores = rng.uniform(0, 1, (5, 17)).astype(np.float32), np.ones(5, np.float32)
    keypoints[0, 3, 1], sure[1, 16], scores[2], scores[3] = np.inf, np.nan, np.nan, np.inf
    poses = Poses(keypoints, sure, scores, boxes_of(keypoints))
    assert poses.finite().tolist() == [False, False, False, False, True]
    assert Poses.empty().finite().shape == (0,)


def test_the_overlay_draws_on_the_joints_and_nowhere_else() -> None:
    keypoints = np.random.default_rng(0).uniform(60, 200, (1, 17, 2)).astype(np.float32)
    poses = Poses(keypoints, np.ones((1, 17), np.float32), np.ones(1, np.float32), boxes_of(keypoints))
    frame = np.zeros((256, 256, 3), np.uint8)
    draw(frame, poses, COCO17)
    for x, y in keypoints[0].round().astype(int):
        assert frame[y, x].min() > 200
    assert frame[:30].max() == 0
    untouched = np.zeros_like(frame)
    draw(untouched, Poses.empty(), COCO17)
    assert untouched.max() == 0


def drawn(keypoints: np.ndarray, sure: np.ndarray) -> np.ndarray:
    frame = np.zeros((256, 256, 3), np.uint8)
    draw(frame, Poses(keypoints, sure, np.ones(1, np.float32), boxes_of(keypoints)), COCO17)
    return frame


def test_a_joint_that_is_not_shown_changes_nothing_wherever_it_lies() -> None:
    keypoints = np.random.default_rng(0).uniform(60, 200, (1, 17, 2)).astype(np.float32)
    sure = np.ones((1, 17), np.float32)
    sure[0, 16] = 0.01
    pictures = []
    for y in (170, 5000, -5000, 2.1e6):
        keypoints[0, 16, 1] = y
        pictures.append(drawn(keypoints, sure))
    for picture in pictures:
        np.testing.assert_array_equal(picture, pictures[0])
    assert drawn(keypoints, np.full_like(sure, 0.01)).max() == 0


def test_a_shown_joint_far_off_makes_no_thicker_lines_than_a_person_as_tall_as_the_picture() -> None:
    """A joint that reached 2.1e6 pixels ended a stream: OpenCV draws no line of such thickness."""
    keypoints = np.random.default_rng(0).uniform(100, 150, (1, 17, 2)).astype(np.float32)
    keypoints[0, 16] = 300, 2.1e6
    picture = drawn(keypoints, np.ones((1, 17), np.float32))
    assert picture[:70].max() == 0
    assert picture[150:].any()  # its limb leaves the picture


def test_the_mirror_is_its_own_inverse_and_swaps_sides() -> None:
    for joint, other in enumerate(COCO17.mirror):
        assert COCO17.mirror[other] == joint
        assert COCO17.joints[other] == COCO17.joints[joint].translate({}).replace("left", "#").replace(
            "right", "left"
        ).replace("#", "right")
