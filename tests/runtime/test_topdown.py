"""The top-down path: the reference's own numbers, and what must hold for any boxes and any hills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepose.runtime.oks import likeness, mean_of_two
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import Regions, prepare, visible
from edgepose.runtime.topdown.heatmaps import EPSILON, decode, flip_average, flip_back, newton
from edgepose.runtime.topdown.score import each_once, person_scores, poses

GOLDEN = Path(__file__).parents[3] / "shared/golden/sharpose"
needs_golden = pytest.mark.skipif(
    not (GOLDEN / "golden_pipeline.npz").is_file(), reason="the SHaRPose goldens are not beside the project"
)
SIZES = {"256x192": ((192, 256), (48, 64)), "384x288": ((288, 384), (72, 96))}
FLIPS = {"tiny_128x96": (96, 128), "small_256x192": (192, 256), "base_384x288": (288, 384)}
SMALL = SIZES["256x192"][0]
SPEC = Spec("sharpose", "sharpose_small_256x192", *SMALL)
BOXES = st.lists(
    st.tuples(st.floats(-500, 2000), st.floats(-500, 2000), st.floats(0.5, 900), st.floats(0.5, 900)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(GOLDEN / "golden_pipeline.npz")


def turned(boxes: Any, size: tuple[int, int], degrees: float) -> Regions:
    plain = Regions.around(np.array(boxes, np.float64), size)
    return Regions(plain.centres, plain.sides, np.full(len(plain), degrees))


def hills(places: np.ndarray, width: int, height: int, sigma: float = 2.0) -> np.ndarray:
    """(B, K, 2) -> Gaussians (B, K, h, w) of height 1."""
    x, y = places[..., 0, None, None], places[..., 1, None, None]
    squared = (np.arange(width) - x) ** 2 + (np.arange(height)[:, None] - y) ** 2
    return np.exp(-squared / (2 * sigma**2)).astype(np.float32)


@needs_golden
@pytest.mark.parametrize("name", SIZES)
def test_regions_and_matrices_are_the_references(golden: Any, name: str) -> None:
    size = SIZES[name][0]
    boxes = golden["boxes_xywh"]
    regions = Regions.around(boxes, size)
    np.testing.assert_allclose(regions.centres, golden[f"center_{name}"], atol=5e-5)
    np.testing.assert_allclose(regions.sides / 200, golden[f"scale_{name}"], atol=5e-7)
    np.testing.assert_allclose(regions.matrices(size), golden[f"warp_{name}"], atol=5e-5)
    rotated = turned(boxes[:1], size, 30).matrices(size)[0]
    np.testing.assert_allclose(rotated, golden[f"warp_rot30_{name}"], atol=5e-5)


@needs_golden
def test_pixels_are_the_references(golden: Any) -> None:
    """OpenCV 5 made them; 4.12 differs by up to 4 levels in 4.5 % of the pixels (the goldens' README)."""
    matrix = golden["crop_M"].astype(np.float64)
    sides = (np.array(SMALL) - 1) / np.diag(matrix)
    centre = sides / 2 - matrix[:, 2] / np.diag(matrix)
    region = Regions(centre[None], sides[None], np.zeros(1))
    np.testing.assert_allclose(region.matrices(SMALL)[0], matrix, atol=1e-9)
    apart = np.abs(region.cut(golden["crop_src"], SMALL)[0].astype(int) - golden["crop_out"])
    assert apart.max() <= 4
    assert (apart.max(-1) > 0).mean() < 0.15
    assert (apart > 0).mean() < 0.06


@needs_golden
@pytest.mark.parametrize("name", SIZES)
def test_decoding_is_the_references(golden: Any, name: str) -> None:
    size, _ = SIZES[name]
    heatmaps = golden[f"decode_in_{name}"]
    found = poses(heatmaps, Regions.around(golden["boxes_xywh"][:2], size), np.ones(2))
    np.testing.assert_allclose(found.keypoints, golden[f"decode_preds_{name}"], atol=1e-4)
    np.testing.assert_array_equal(found.keypoint_scores, golden[f"decode_max_{name}"][..., 0])
    flipped = flip_back(heatmaps, COCO17.mirror)
    np.testing.assert_allclose(flipped.sum((2, 3)), golden[f"flipback_sum_{name}"], rtol=1e-5)


@needs_golden
@pytest.mark.parametrize("name", SIZES)
def test_decoded_points_are_the_joints_that_the_reference_planted(golden: Any, name: str) -> None:
    size, small = SIZES[name]
    points, _ = decode(golden[f"decode_in_{name}"])
    planted = golden[f"decode_joints_{name}"] / (np.array(size) - 1) * (np.array(small) - 1)
    inside = ((planted > 6) & (planted < np.array(small) - 7)).all(-1)
    assert inside.sum() > 15
    assert np.abs(points - planted)[inside].max() < 0.25  # the maps hold noise


@needs_golden
@pytest.mark.parametrize("name", FLIPS)
def test_averaged_maps_are_decoded_as_by_the_reference(name: str) -> None:
    """The maps are noise, on which a rounding error moves a point further than on a hill."""
    values = np.load(GOLDEN / f"golden_{name}.npz")
    boxes = values["flip_boxes"]
    sides = boxes[:, 2:4] * 200.0
    regions = Regions(boxes[:, :2].astype(np.float64), sides, np.zeros(2))
    np.testing.assert_allclose(sides.prod(1), boxes[:, 4], rtol=1e-6)
    found = poses(values["flip_heatmaps"], regions, boxes[:, 5])
    np.testing.assert_allclose(found.keypoint_scores, values["flip_preds"][..., 2], rtol=1e-6)
    np.testing.assert_allclose(found.keypoints, values["flip_preds"][..., :2], atol=1e-3)


@needs_golden
def test_scores_and_suppression_are_the_references(golden: Any) -> None:
    joints, areas = golden["nms_keypoints"], golden["nms_area"]
    scores = person_scores(golden["nms_box_score"], joints[..., 2])
    np.testing.assert_allclose(scores, golden["nms_score"], rtol=1e-6)
    points = joints[..., :2].astype(np.float32)
    people = Poses(points, joints[..., 2].astype(np.float32), scores.astype(np.float32), boxes_of(points))
    alike = likeness(people, COCO17.sigma_array(), mean_of_two(areas))
    np.testing.assert_allclose(alike[0, 1:], golden["nms_oks01"], atol=1e-6)
    regions = Regions(np.zeros((5, 2)), np.stack([areas, np.ones(5)], -1), np.zeros(5))
    kept = each_once(people, regions)
    np.testing.assert_array_equal(kept.scores, people.scores[golden["nms_keep"]])
    np.testing.assert_array_equal(kept.keypoints, people.keypoints[golden["nms_keep"]])


@given(BOXES, st.floats(-180, 180), st.floats(-50, 250), st.floats(-50, 250))
def test_points_come_back(boxes: Any, degrees: float, x: float, y: float) -> None:
    regions = turned(boxes, SMALL, degrees)
    there = np.broadcast_to([x, y], (len(regions), 1, 2))
    back = regions.to_crop(regions.to_frame(there, SMALL), SMALL)
    np.testing.assert_allclose(back, there, atol=1e-6)


@given(BOXES, st.floats(-180, 180))
def test_a_region_is_centred_holds_its_box_and_has_the_aspect(boxes: Any, degrees: float) -> None:
    regions = turned(boxes, SMALL, degrees)
    given_boxes = np.array(boxes)
    middle = regions.to_crop((given_boxes[:, None, :2] + given_boxes[:, None, 2:] / 2), SMALL)
    np.testing.assert_allclose(middle, np.broadcast_to([95.5, 127.5], middle.shape), atol=1e-6)
    np.testing.assert_allclose(regions.sides[:, 0] / regions.sides[:, 1], 0.75)
    growth = regions.sides / given_boxes[:, 2:]
    np.testing.assert_allclose(growth.min(1), 1.25)


def test_a_crop_and_a_heatmap_of_it_show_the_same_corners() -> None:
    regions = turned([[30, 40, 60, 120]], SMALL, 20)
    ends = np.array([[[0, 0], [191, 255]]], np.float64)
    small = np.array([[[0, 0], [47, 63]]], np.float64)
    np.testing.assert_allclose(regions.to_frame(ends, SMALL), regions.to_frame(small, (48, 64)))


@pytest.mark.parametrize("degrees", [0, 30, -75])
@pytest.mark.parametrize("place", [(300.0, 200.0), (4.0, 230.0)])
def test_a_spot_lands_in_the_crop_where_the_geometry_says(place: tuple[float, float], degrees: float) -> None:
    """The second person is cut by the frame's edge: what lies beyond is black and nothing moves."""
    frame = np.zeros((480, 640, 3), np.uint8)
    cv2.circle(frame, (int(place[0]), int(place[1])), 4, (255, 255, 255), -1, cv2.LINE_AA)
    regions = turned([[place[0] - 30, place[1] - 70, 60, 100]], SMALL, degrees)
    crop = regions.cut(frame, SMALL)[0, ..., 0].astype(float)
    rows, columns = np.mgrid[:256, :192]
    middle = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
    expected = regions.to_crop(np.array([[place]]), SMALL)[0, 0]
    np.testing.assert_allclose(middle, expected, atol=0.3 if place[0] > 10 else 1.0)


def test_the_input_is_normalised_as_the_spec_says_and_black_beyond_the_frame() -> None:
    frame = np.full((100, 100, 3), (10, 20, 250), np.uint8)
    region = Regions.around(np.array([[60, 20, 60, 60]]), SMALL)
    pixels = prepare(frame, region, SPEC)
    assert pixels.shape == (1, 3, 256, 192)
    red = (250 / 255 - 0.485) / 0.229
    np.testing.assert_allclose(pixels[0, 0, 128, 10], red, rtol=1e-5)
    np.testing.assert_allclose(pixels[0, 0, 128, 190], -0.485 / 0.229, rtol=1e-5)


def test_boxes_with_nothing_in_the_frame_are_dropped() -> None:
    outside, empty = [[700, 10, 20, 20], [-20, 0, 20, 9]], [[10, 10, 0, 20], [10, 10, 5, -3]]
    no_number = [[np.nan, 0, 10, 10], [0, 0, np.inf, 10]]
    boxes = np.array([[-30, 10, 50, 20], *outside, *empty, *no_number, [630, 470, 100, 100]])
    left, kept = visible(boxes, (640, 480))
    assert kept.tolist() == [0, 7]
    np.testing.assert_array_equal(left, [[0, 10, 20, 20], [630, 470, 10, 10]])
    with pytest.raises(ValueError, match="empty"):
        Regions.around(boxes[3:4], SMALL)
    with pytest.raises(ValueError, match="not finite"):
        Regions.around(np.array([[0, 0, np.inf, 10]]), SMALL)
    with pytest.raises(ValueError, match="expected shapes"):
        Regions(np.zeros((2, 2)), np.ones((1, 2)), np.zeros(2))


@settings(max_examples=50)
@given(st.floats(8, 39), st.floats(8, 55), st.sampled_from([1.5, 2.0, 3.0]), st.floats(0.25, 1))
def test_the_top_of_a_hill_is_found_between_the_pixels(x: float, y: float, sigma: float, high: float) -> None:
    place = np.array([[[x, y]]])
    points, best = decode(np.float32(high) * hills(place, 48, 64, sigma))
    np.testing.assert_allclose(points, place, atol=0.05)
    assert 0.85 * high < best[0, 0] <= high


def test_maps_without_a_hill_say_so_and_nothing_is_infinite() -> None:
    maps = np.zeros((1, 5, 64, 48), np.float32)
    maps[0, 1] = -1
    maps[0, 4, 0, 0] = np.nan
    maps[0, 2] = 0.5  # a plain
    maps[0, 3] = np.exp(-((np.arange(48) - np.arange(64)[:, None]) ** 2) / 8)  # a ridge at 45 degrees
    points, best = decode(maps)
    np.testing.assert_array_equal(points[0, [0, 1, 2, 4]], [[-1, -1], [-1, -1], [0, 0], [-1, -1]])
    np.testing.assert_array_equal(best[0], [0, -1, 0.5, 1, np.nan])
    assert np.isfinite(points).all()


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(-0.9, 0.9))
def test_a_step_ends_on_the_top_of_a_parabola(x: float, y: float, slant: float) -> None:
    column, row = np.arange(-1, 2) - x, np.arange(-1, 2)[:, None] - y
    parabola = -(column**2) - row**2 + slant * column * row
    np.testing.assert_allclose(-newton(parabola[None]), [[x, y]], atol=1e-6)


def test_a_step_where_the_curvature_has_no_inverse_is_none() -> None:
    flat = np.array([[-2 - EPSILON, -1, 0], [0, 0, -EPSILON], [0, -1, 0]])
    np.testing.assert_array_equal(newton(flat[None]), [[0, 0]])


@given(st.integers(0, 10_000))
def test_flipping_twice_changes_nothing(seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, 17, 8, 6), np.float32)
    np.testing.assert_array_equal(flip_back(flip_back(maps, COCO17.mirror), COCO17.mirror), maps)


def test_a_mirrored_crop_says_the_same_place() -> None:
    place = np.random.default_rng(0).uniform(8, 39, (1, 17, 2))
    mirrored = (place * [-1, 1] + [47, 0])[:, list(COCO17.mirror)]
    both = flip_average(hills(place, 48, 64), hills(mirrored, 48, 64), COCO17.mirror)
    np.testing.assert_allclose(both, hills(place, 48, 64), atol=1e-6)
    assert flip_average(hills(place, 48, 64), 0 * both, COCO17.mirror).max() == pytest.approx(0.5, abs=0.04)


def test_a_score_is_the_box_times_the_joints_above_a_fifth() -> None:
    joints = np.array([[0.2, 0.1, 0.4, 0.8], [0.2, 0.1, 0.0, -1.0]])
    np.testing.assert_allclose(person_scores(np.array([0.5, 0.9]), joints), [0.5 * 0.6, 0])


def test_large_people_a_few_pixels_apart_are_one_and_small_people_two() -> None:
    place = np.random.default_rng(0).uniform(10, 35, (2, 17, 2))
    points = np.stack([place[0], place[0] + 2]).astype(np.float32)
    pair = Poses(points, np.ones((2, 17), np.float32), np.array([0.5, 0.9], np.float32), boxes_of(points))
    for side, left in ((600.0, [0.9]), (20.0, [0.9, 0.5])):
        regions = Regions(np.zeros((2, 2)), np.full((2, 2), side), np.zeros(2))
        np.testing.assert_allclose(each_once(pair, regions).scores, left)


def test_two_hundred_people_and_nobody() -> None:
    """Each twice, a pixel apart: every person stays once, with the better score, where they were planted."""
    rng = np.random.default_rng(1)
    boxes = np.concatenate([rng.uniform(0, 3000, (100, 2)), rng.uniform(60, 200, (100, 2))], 1)
    boxes = np.concatenate([boxes, boxes + np.array([1, 0, 0, 0])])
    regions = Regions.around(boxes, SMALL)
    planted = rng.uniform(10, 35, (100, 17, 2))
    found = poses(hills(np.concatenate([planted, planted]), 48, 64), regions, np.linspace(1, 0.5, 200))
    once = each_once(found, regions)
    better = np.argsort(-found.scores[:100])
    np.testing.assert_array_equal(once.keypoints, found.keypoints[better])
    expected = Regions.around(boxes[better], SMALL).to_frame(planted[better], (48, 64))
    np.testing.assert_allclose(once.keypoints, expected, atol=0.3)

    none, kept = visible(np.zeros((0, 4)), (640, 480))
    nobody = Regions.around(none, SMALL)
    assert len(nobody) == len(kept) == 0
    assert prepare(np.zeros((480, 640, 3), np.uint8), nobody, SPEC).shape == (0, 3, 256, 192)
    maps = np.zeros((0, 17, 64, 48), np.float32)
    assert flip_average(maps, maps, COCO17.mirror).shape == maps.shape
    empty = poses(maps, nobody, np.zeros(0))
    assert empty.keypoints.shape == (0, 17, 2)
    assert len(each_once(empty, nobody)) == 0
    assert nobody.to_crop(np.zeros((0, 17, 2)), SMALL).shape == (0, 17, 2)
    with pytest.raises(ValueError, match="do not belong together"):
        poses(maps, nobody, np.zeros(1))
