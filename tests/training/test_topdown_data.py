"""Training crops: changes that picture and joints undergo alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.calibration.sample import Person
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.topdown.crop import Regions
from edgepose.training.topdown_data import (
    Changes,
    croppable,
    example,
    half_body,
    mirror,
    vary,
)

SIZE = (192, 256)
BOX = np.array([100.0, 60.0, 120.0, 300.0])


def person(seed: int = 0, labelled: int = 17) -> Person:
    rng = np.random.default_rng(seed)
    visibility = np.zeros(17, np.uint8)
    visibility[rng.permutation(17)[:labelled]] = 2
    joints = (BOX[:2] + rng.uniform(0, 1, (17, 2)) * BOX[2:]).astype(np.float32)
    x, y, width, height = BOX.tolist()
    return Person(joints, visibility, (x, y, width, height), 20_000.0)


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_a_mirrored_crop_is_the_crop_of_a_mirrored_frame(degrees: float) -> None:
    """The reference mirrors the frame, the joints and the region's centre instead of the crop."""
    frame = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    frame = cv2.resize(frame, (400, 300), interpolation=cv2.INTER_CUBIC)
    someone = person(labelled=9)
    region = Regions.around(BOX, SIZE)
    region = Regions(region.centres, region.sides, np.array([degrees]))
    ours = mirror(example(frame, someone, region, SIZE))

    order = list(COCO17.mirror)
    joints = someone.keypoints[order] * np.array([-1, 1], np.float32) + np.array([399, 0], np.float32)
    other = Person(joints, someone.visibility[order], someone.box, someone.area)
    there = Regions(region.centres * [-1, 1] + [399, 0], region.sides, -region.degrees)
    theirs = example(np.ascontiguousarray(frame[:, ::-1]), other, there, SIZE)
    np.testing.assert_allclose(ours.joints, theirs.joints, atol=1e-3)
    np.testing.assert_array_equal(ours.labelled, theirs.labelled)
    assert np.abs(ours.image.astype(int) - theirs.image).mean() < 1  # warpAffine rounds places to 1/32 pixel


@given(st.integers(0, 10_000))
def test_mirroring_twice_changes_nothing(seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 255, (300, 400, 3), np.uint8)
    seen = example(frame, person(seed, 9), Regions.around(BOX, SIZE), SIZE)
    again = mirror(mirror(seen))
    np.testing.assert_array_equal(again.image, seen.image)
    np.testing.assert_allclose(again.joints, seen.joints, atol=1e-4)
    np.testing.assert_array_equal(again.labelled, seen.labelled)


def test_the_changes_are_as_frequent_and_as_large_as_the_paper_says() -> None:
    rng, plain = np.random.default_rng(0), Regions.around(BOX, SIZE)
    few = person(labelled=8)  # too few joints for half a body
    drawn = [vary(rng, BOX, few, SIZE, Changes()) for _ in range(4000)]
    shift = np.array([(region.centres - plain.centres)[0] / plain.sides[0] for region, _ in drawn])
    factor = np.array([(region.sides / plain.sides)[0] for region, _ in drawn])
    degrees = np.array([region.degrees[0] for region, _ in drawn])
    assert (shift != 0).any(1).mean() == pytest.approx(0.3, abs=0.03)
    assert 0.155 < np.abs(shift).max() < 0.16 + 1e-9
    assert abs(np.corrcoef(shift[(shift != 0).any(1)].T)[0, 1]) < 0.1
    np.testing.assert_allclose(factor[:, 0], factor[:, 1])
    np.testing.assert_allclose([factor.min(), factor.max()], [0.5, 1.5])
    assert factor.std() == pytest.approx(0.36, abs=0.02)  # of a normal of 0.5 cut at one standard deviation
    assert (degrees != 0).mean() == pytest.approx(0.6, abs=0.03)
    assert np.abs(degrees).max() == 80
    assert np.abs(degrees[degrees != 0]).mean() == pytest.approx(31.3, abs=1.5)
    assert np.mean([mirrored for _, mirrored in drawn]) == pytest.approx(0.5, abs=0.03)


def test_half_a_body_is_shown_of_people_with_many_joints() -> None:
    rng, still = np.random.default_rng(0), Changes(shift_share=0, scale=0, rotation_share=0)
    whole = Regions.around(BOX, SIZE)
    many = [vary(rng, BOX, person(labelled=17), SIZE, still)[0] for _ in range(1500)]
    cut = [region for region in many if not np.allclose(region.sides, whole.sides)]
    assert len(cut) / len(many) == pytest.approx(0.3, abs=0.04)
    joints = person().keypoints
    upper = [np.allclose(region.centres, joints[:11].mean(0), atol=1e-3) for region in cut]
    lower = [np.allclose(region.centres, joints[11:].mean(0), atol=1e-3) for region in cut]
    np.testing.assert_array_equal(upper, ~np.array(lower))
    assert np.mean(upper) == pytest.approx(0.69, abs=0.08)  # of a normal below 0.5
    extent = np.ptp(joints[:11], axis=0)
    shown = cut[upper.index(True)].sides[0]
    assert (shown / extent).min() == pytest.approx(1.5, rel=1e-5)
    assert shown[0] / shown[1] == pytest.approx(0.75)


def test_legs_of_two_joints_are_no_half() -> None:
    someone = person()
    someone.visibility[13:] = 0
    for seed in range(20):
        region = half_body(np.random.default_rng(seed), someone, SIZE)
        assert region is not None
        np.testing.assert_allclose(region.centres[0], someone.keypoints[:11].mean(0), atol=1e-3)


def test_half_a_body_of_one_joint_is_none() -> None:
    assert half_body(np.random.default_rng(0), person(labelled=1), SIZE) is None


def test_the_same_seed_gives_the_same_crop() -> None:
    once, again = (vary(np.random.default_rng(7), BOX, person(), SIZE, Changes()) for _ in range(2))
    np.testing.assert_array_equal(once[0].matrices(SIZE), again[0].matrices(SIZE))
    assert once[1] == again[1]


def test_crowds_the_unlabelled_and_boxes_outside_are_left_out() -> None:
    good, blank = person(), person(labelled=0)
    crowd = Person(good.keypoints, good.visibility, good.box, 1.0, crowd=True)
    outside = Person(good.keypoints, good.visibility, (500, 0, 20, 20), 1.0)
    found = croppable([blank, crowd, good, outside], (400, 300))
    assert [someone for _, someone in found] == [good]
    np.testing.assert_array_equal(found[0][0], [100, 60, 120, 240])
    assert croppable([], (400, 300)) == []
