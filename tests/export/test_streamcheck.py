"""Which streamed people must be found, and how finding is counted, on hand-made people."""

import numpy as np
import pytest

from edgepose.calibration.sample import Person
from edgepose.export.demo import Streamed
from edgepose.export.report import stream_sentence
from edgepose.export.streamcheck import StreamScore, must_be_found, score_stream
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17

HEIGHT = 480


def person(x: float = 100, y: float = 100, height: float = 200, hidden: int = 0, outside: int = 0) -> Person:
    generator = np.random.default_rng(0)
    keypoints = (np.array([x, y]) + generator.uniform(0, 1, (17, 2)) * [80, height]).astype(np.float32)
    visibility = np.full(17, 2, np.uint8)
    visibility[:hidden] = 1
    visibility[17 - outside :] = 0
    return Person(keypoints, visibility, (x, y, 80, height), 80 * height * 0.5)


def poses_of(*people: Person, shift: float = 0.0) -> Poses:
    keypoints = np.stack([p.keypoints for p in people]) + np.float32(shift)
    ones = np.ones(len(people), np.float32)
    return Poses(keypoints, np.ones(keypoints.shape[:2], np.float32), ones, boxes_of(keypoints))


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (person(), True),
        (person(height=110), False),  # lower than a quarter of 480
        (person(hidden=6), True),
        (person(hidden=8), False),  # fewer than 60 % of the joints seen
        (person(outside=1), False),
    ],
)
def test_who_must_be_found(candidate: Person, expected: bool) -> None:
    assert must_be_found(candidate, [candidate], HEIGHT) is expected


def test_a_person_behind_another_need_not_be_found_but_the_one_in_front_must() -> None:
    behind, front = person(), person(x=130, y=120)
    assert not must_be_found(behind, [behind, front], HEIGHT)
    assert must_be_found(front, [behind, front], HEIGHT)


def test_people_are_counted_frame_by_frame() -> None:
    left, right = person(x=20), person(x=400)
    truth = {0: [left, right], 1: [left, right], 2: []}
    frames = [(0, poses_of(left, right)), (1, poses_of(left, shift=1.0)), (2, Poses.empty())]
    score = score_stream(frames, lambda index: truth[index], HEIGHT, COCO17)
    assert (score.frames, score.people, score.found) == (3, 4, 3)
    assert score.share == pytest.approx(0.75)


def test_far_off_poses_do_not_count() -> None:
    score = score_stream([(0, poses_of(person(), shift=60.0))], lambda _: [person()], HEIGHT, COCO17)
    assert (score.people, score.found) == (1, 0)


def test_a_stream_without_anybody_says_so() -> None:
    with pytest.raises(EdgeposeError, match="stream for longer"):
        _ = score_stream([(0, Poses.empty())], lambda _: [], HEIGHT, COCO17).share


def test_one_person_missed_is_not_told_as_everybody() -> None:
    streamed = Streamed([], [], StreamScore(150, 274, 273), {})
    assert "273 (99.6%) came out" in stream_sentence(streamed)
