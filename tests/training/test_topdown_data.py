"""Training crops: the reference's targets, and changes that picture and joints undergo alike."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepose.calibration.sample import Person
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.topdown.crop import Regions
from edgepose.runtime.topdown.heatmaps import decode
from edgepose.training.models.sharpose.targets import heatmaps
from edgepose.training.topdown_data import (
    Changes,
    croppable,
    example,
    half_body,
    mirror,
    vary,
)

GOLDEN = Path(__file__).parents[3] / "shared/golden/sharpose"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the SHaRPose goldens are not beside the project"
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


def targets_of(
    joints: np.ndarray, labelled: np.ndarray, crop: tuple[int, int], size: tuple[int, int], sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """As numpy's arrays, as all else here."""
    maps, weights = heatmaps(torch.from_numpy(joints), torch.from_numpy(labelled), crop, size, sigma)
    return maps.numpy(), weights.numpy()


def plain_target(
    joint: np.ndarray, crop: tuple[int, int], size: tuple[int, int], sigma: float
) -> tuple[np.ndarray, int]:
    """One joint's map, pixel by pixel from the rules of specs/sharpose.md section 6."""
    (w, h), out = size, np.zeros((size[1], size[0]))
    mx, my = joint[0] * (w - 1) / (crop[0] - 1), joint[1] * (h - 1) / (crop[1] - 1)
    px, py = int(mx + 0.5), int(my + 0.5)
    for p, limit in ((px, w), (py, h)):
        if p - 3 * sigma >= limit or p + 3 * sigma + 1 < 0:
            return out, 0
    for y in range(h):
        for x in range(w):
            if max(abs(x - px), abs(y - py)) <= 3 * sigma:
                out[y, x] = math.exp(-((x - mx) ** 2 + (y - my) ** 2) / (2 * sigma**2))
    return out, 1


@needs_golden
@pytest.mark.parametrize("name", ["tiny_128x96", "small_256x192", "base_384x288"])
def test_targets_are_the_references(name: str) -> None:
    values = np.load(GOLDEN / f"golden_{name}.npz")
    height, width = values["target"].shape[2:]
    joints, sigma = values["joints"], 3 if name.startswith("base_384") else 2
    maps, weights = targets_of(
        joints[..., :2], joints[..., 2] > 0, (4 * width, 4 * height), (width, height), sigma
    )
    np.testing.assert_array_equal(weights, values["target_weight"][..., 0])
    np.testing.assert_allclose(maps, values["target"], atol=2e-6)


@settings(max_examples=40)
@given(st.floats(-60, 160), st.floats(-60, 190), st.sampled_from([2, 3]))
def test_a_target_is_what_the_rules_say_for_any_place(x: float, y: float, sigma: int) -> None:
    joint = np.array([x, y])
    maps, weights = targets_of(
        joint[None, None].astype(np.float64), np.ones((1, 1), np.bool_), (96, 128), (24, 32), sigma
    )
    expected, weight = plain_target(joint, (96, 128), (24, 32), sigma)
    assert weights[0, 0] == weight
    np.testing.assert_allclose(maps[0, 0], expected, atol=1e-6)


@given(st.floats(30, 160), st.floats(30, 225))
def test_decoding_a_target_gives_the_joint_back(x: float, y: float) -> None:
    joint = np.array([[[x, y]]])
    maps, _ = targets_of(joint, np.ones((1, 1), np.bool_), SIZE, (48, 64), 2)
    points, _ = decode(maps)
    np.testing.assert_allclose(points * [191 / 47, 255 / 63], joint, atol=0.2)  # 0.05 heatmap pixels


@pytest.mark.parametrize("sigma", [2, 3])
def test_a_target_at_every_distance_from_an_edge_is_what_the_rules_say(sigma: int) -> None:
    """From a map beyond one edge to a map beyond the other, in half heatmap pixels; the crop is the map."""
    size = (12, 15)
    for axis in (0, 1):
        joints = np.full((1, 90, 2), 6.0)
        joints[0, :, axis] = np.arange(90) / 2 - 15
        maps, weights = targets_of(joints, np.ones((1, 90), np.bool_), size, size, sigma)
        expected = [plain_target(joint, size, size, sigma) for joint in joints[0]]
        np.testing.assert_array_equal(weights[0], [weight for _, weight in expected])
        np.testing.assert_allclose(maps[0], [one for one, _ in expected], atol=1e-6)


def test_a_joint_without_label_has_an_empty_map_and_nobody_has_none() -> None:
    joints = np.full((1, 2, 2), 90.0, np.float32)
    maps, weights = targets_of(joints, np.array([[True, False]]), SIZE, (48, 64), 2)
    assert weights.tolist() == [[1, 0]]
    assert maps[0, 0].max() > 0.9
    assert not maps[0, 1].any()
    maps, weights = targets_of(joints[:0], np.zeros((0, 2), np.bool_), SIZE, (48, 64), 2)
    assert maps.shape == (0, 2, 64, 48)
    assert weights.shape == (0, 2)


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
