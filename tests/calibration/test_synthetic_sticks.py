"""Stick figures: the same every time, labelled where they are drawn, hidden behind what hides them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from edgepose.calibration.sample import Sample
from edgepose.calibration.synthetic import sticks
from edgepose.calibration.synthetic.sticks import AREA, draw_figure
from edgepose.runtime.skeleton import COCO17

SIZES = [(128, 128), (160, 96)]
JOINTS = {name: number for number, name in enumerate(COCO17.joints)}


def figures(size: tuple[int, int] = (128, 128), count: int = 100) -> list[Sample]:
    return [sticks(3, index, size) for index in range(count)]


def test_a_picture_is_fixed_by_its_arguments_alone() -> None:
    first, again = figures(count=5), [sticks(3, index, (128, 128)) for index in reversed(range(5))][::-1]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image, b.image)
        assert [p.box for p in a.people] == [p.box for p in b.people]
    assert [sample.image_id for sample in first] == list(range(5))
    assert not np.array_equal(first[1].image, sticks(4, 1, (128, 128)).image)


@pytest.mark.parametrize("size", SIZES)
def test_figures_are_in_the_picture_and_in_their_boxes(size: tuple[int, int]) -> None:
    samples = figures(size)
    assert {sample.image.shape for sample in samples} == {(size[1], size[0], 3)}
    assert {len(sample.people) for sample in samples} >= {1, 2, 3}
    for person in (person for sample in samples for person in sample.people):
        low, high = person.keypoints.min(0), person.keypoints.max(0)
        assert (low > 3.9).all()
        assert (high < np.array(size) - 4.9).all()
        assert person.box == pytest.approx((*low, *(high - low)), abs=1e-3)
        assert person.area == pytest.approx(AREA * person.box[2] * person.box[3])


def test_limbs_keep_their_proportions_however_a_figure_stands() -> None:
    for person in (person for sample in figures() for person in sample.people):
        for side in ("left", "right"):
            chain = [f"{side}_{part}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")]
            shoulder, elbow, wrist, hip, knee, ankle = (person.keypoints[JOINTS[name]] for name in chain)
            upper, fore, thigh, shin = (
                np.linalg.norm(b - a)
                for a, b in ((shoulder, elbow), (elbow, wrist), (hip, knee), (knee, ankle))
            )
            assert fore / upper == pytest.approx(14 / 15, rel=1e-4)
            assert (shin / thigh, upper / thigh) == pytest.approx((1, 15 / 22), rel=1e-4)


def test_every_bone_is_drawn_from_joint_to_joint_and_nothing_else() -> None:
    """Whether a pixel is ink follows from its distance to the nearest bone, but for soft edges."""
    y, x = np.mgrid[:128, :128]
    pixels = np.stack([x, y], -1).reshape(-1, 1, 2).astype(float)
    for person in (person for sample in figures(count=30) for person in sample.people):
        image = np.full((128, 128, 3), 200, np.uint8)
        draw_figure(np.random.default_rng(0), image, person.keypoints.astype(float))
        a, b = (person.keypoints[[edge[end] for edge in COCO17.edges]] for end in (0, 1))
        along = ((pixels - a) * (b - a)).sum(-1) / np.maximum(((b - a) ** 2).sum(-1), 1e-9)
        nearest = a + np.clip(along, 0, 1)[..., None] * (b - a)
        distance = np.linalg.norm(pixels - nearest, axis=-1).min(1).reshape(128, 128)
        inked = (image != 200).any(-1)
        half = 0.047 * max(person.box[2:]) / 2
        assert inked[distance < 0.3].mean() > 0.99
        assert not inked[distance > half + 3].any()


def test_hidden_joints_are_those_behind_something(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, Any]] = []
    original = cv2.rectangle

    def recording(image: Any, first: Any, last: Any, *rest: Any) -> Any:
        drawn.append((np.array(first), np.array(last)))
        return original(image, first, last, *rest)

    monkeypatch.setattr(cv2, "rectangle", recording)
    hidden = total = 0
    for index in range(100):
        drawn.clear()
        for person in sticks(3, index, (128, 128)).people:
            behind = np.zeros(len(COCO17), bool)
            for first, last in drawn:
                behind |= ((person.keypoints >= first) & (person.keypoints <= last)).all(1)
            assert (person.visibility == np.where(behind, 1, 2)).all()
            hidden, total = hidden + int(behind.sum()), total + len(behind)
    assert 0.03 < hidden / total < 0.3
