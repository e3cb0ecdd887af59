"""Boxes around poses: against the silhouettes of synthetic people, and what must hold for any pose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.sample import Person
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.topdown import people
from edgepose.runtime.topdown.people import boxes_around

FRAME = (640, 480)
POINTS = st.lists(
    st.tuples(st.floats(-900, 1500, width=32), st.floats(-900, 1500, width=32)), min_size=17, max_size=17
)


def poses_of(keypoints: np.ndarray) -> Poses:
    keypoints = keypoints.astype(np.float32)
    count = len(keypoints)
    return Poses(keypoints, np.ones((count, 17), np.float32), np.ones(count, np.float32), boxes_of(keypoints))


def overlap(mine: np.ndarray, labelled: np.ndarray) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    low, high = (
        np.maximum(mine[:2], labelled[:2]),
        np.minimum(mine[:2] + mine[2:], labelled[:2] + labelled[2:]),
    )
    shared = np.prod((high - low).clip(0))
    return float(shared / (mine[2:].prod() + labelled[2:].prod() - shared))


@pytest.fixture(scope="module")
def whole() -> list[Person]:
    """People of whom every joint lies in the picture."""
    data = open_dataset("synthetic:count=60,seed=44,size=256")
    seen = [person for index in range(len(data)) for person in data.people(index)]
    return [person for person in seen if person.visibility.all() and person.box[3] >= 48]


def fit(whole: list[Person]) -> float:
    """Mean IoU of the boxes around the true joints with the labelled ones, which hold what is seen."""
    boxes, kept = boxes_around(poses_of(np.stack([person.keypoints for person in whole])), (256, 256))
    assert kept.tolist() == list(range(len(whole)))
    return float(
        np.mean([overlap(box, np.array(person.box)) for box, person in zip(boxes, whole, strict=True)])
    )


def test_boxes_are_about_those_that_people_draw(whole: list[Person], monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit(whole)
    assert len(whole) > 50
    assert found > 0.78  # 0.66 around the joints alone
    for margin in (0.0, 0.16):
        monkeypatch.setattr(people, "BODY", margin)
        assert fit(whole) < found - 0.08


@given(POINTS, st.floats(0.25, 4))
def test_a_box_holds_its_joints_and_grows_with_them(points: list[tuple[float, float]], factor: float) -> None:
    keypoints = np.array(points)[None]
    boxes, kept = boxes_around(poses_of(keypoints), FRAME)
    for (x, y, width, height), pose in zip(boxes, keypoints[kept], strict=True):
        inside = pose[((pose >= 0) & (pose <= FRAME)).all(1)]
        assert width > 0
        assert height > 0
        assert 0 <= x <= x + width <= FRAME[0]
        assert 0 <= y <= y + height <= FRAME[1]
        assert (inside >= [x - 1e-3, y - 1e-3]).all()
        assert (inside <= [x + width + 1e-3, y + height + 1e-3]).all()
    larger, also = boxes_around(poses_of(factor * keypoints), tuple(factor * side for side in FRAME))
    if boxes.size and boxes[:, 2:].min() > 1:  # a sliver may round to nothing
        assert also.tolist() == kept.tolist()
        np.testing.assert_allclose(larger, factor * boxes, atol=1e-2, rtol=1e-4)


def test_who_cannot_be_seen_has_no_box() -> None:
    seen = np.tile([[100.0, 50.0], [140, 200]], (9, 1))[:17]
    outside, one_point, no_number = seen + 2000, np.tile([[30.0, 30]], (17, 1)), seen.copy()
    no_number[3] = np.nan
    boxes, kept = boxes_around(poses_of(np.stack([outside, seen, one_point, no_number])), FRAME)
    assert kept.tolist() == [1]
    np.testing.assert_allclose(boxes, [[88, 38, 64, 174]], rtol=1e-6)
    assert boxes_around(Poses.empty(), FRAME)[0].shape == (0, 4)
