"""Scenes: the same every time, labels that agree with mask and independent projection, the asked variety."""

from __future__ import annotations

import importlib
import math

import cv2
import numpy as np
import pytest

from edgepose.calibration.synthetic import scene
from edgepose.calibration.synthetic.body import ANGLES, PARTS, make_shape, pose_body
from edgepose.calibration.synthetic.camera import make_camera, pitch_for
from edgepose.calibration.synthetic.draw import THING, Canvas, Light, paint_head
from edgepose.calibration.synthetic.furniture import Box, chair, paint_box, thing
from edgepose.calibration.synthetic.label import SEEN_PX, label
from edgepose.calibration.synthetic.lens import add_grain
from edgepose.calibration.synthetic.look import Look, make_look
from edgepose.calibration.synthetic.scene import Actor, paint_shadows, paint_stage
from edgepose.runtime.skeleton import COCO17

SIZE = (160, 120)
ARMS_FORWARD = np.array([0.8 if name.endswith("shoulder_flexion") else 0.0 for name in ANGLES])
FRONT_LIGHT = Light(np.array([0.0, 0.0, -1.0]), 0.6, 0.4)


def _same(a, b):
    return (
        np.array_equal(a.image, b.image)
        and len(a.people) == len(b.people)
        and all(
            np.array_equal(p.keypoints, q.keypoints)
            and np.array_equal(p.visibility, q.visibility)
            and (p.box, p.area) == (q.box, q.area)
            for p, q in zip(a.people, b.people, strict=True)
        )
    )


def test_a_scene_is_fixed_by_its_arguments_alone():
    first = [scene(3, index, SIZE) for index in range(12)]
    again = [scene(3, index, SIZE) for index in reversed(range(12))][::-1]
    assert all(_same(a, b) for a, b in zip(first, again, strict=True))
    assert [sample.image_id for sample in first] == list(range(12))
    assert not _same(first[1], scene(4, 1, SIZE))
    assert not _same(first[1], first[2])
    assert all(s.image.shape == (120, 160, 3) and s.image.dtype == np.uint8 for s in first)


def test_scenes_do_not_depend_on_opencv_threads():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = [scene(5, index) for index in range(6)]
        cv2.setNumThreads(4)
        four = [scene(5, index) for index in range(6)]
    finally:
        cv2.setNumThreads(before)
    assert all(_same(a, b) for a, b in zip(one, four, strict=True))


@pytest.fixture(scope="module")
def recorded():
    """For 150 scenes: the sample and, per person, the mask, what was painted, the camera, the label."""
    module = importlib.import_module("edgepose.calibration.synthetic.scene")
    records, original = [], module.label

    def recording(canvas, painted, camera):
        person = original(canvas, painted, camera)
        records[-1][1].append((canvas.seen.copy(), painted, camera, person))
        return person

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "label", recording)
        for index in range(150):
            records.append([None, []])
            records[-1][0] = scene(11, index, SIZE)
    return records


def _people(recorded):
    return [entry for _, entries in recorded for entry in entries]


def test_keypoints_are_the_projected_joints(recorded):
    """OpenCV's projection of the 3-D joints through an explicit matrix is the judge."""
    checked = 0
    for _, painted, camera, person in _people(recorded):
        if person is None:
            continue
        w, h = SIZE
        intrinsic = np.array(
            [[camera.focal_px, 0, (w - 1) / 2], [0, camera.focal_px, (h - 1) / 2], [0, 0, 1]]
        )
        turn, _ = cv2.Rodrigues(camera.turn)
        expected = cv2.projectPoints(
            painted.figure.joints, turn, -camera.turn @ camera.position, intrinsic, None
        )[0][:, 0]
        inside = person.visibility > 0
        np.testing.assert_allclose(person.keypoints[inside], expected[inside], atol=1e-3)
        outside = ((expected < -0.501) | (expected > np.array(SIZE) - 0.499)).any(axis=1)
        np.testing.assert_array_equal(outside, ~inside)
        assert (person.keypoints[~inside] == 0).all()
        checked += inside.sum()
    assert checked > 3000


def test_visible_joints_lie_on_their_person_and_covered_ones_are_hidden(recorded):
    visible = covered = 0
    for seen, painted, _, person in _people(recorded):
        if person is None:
            continue
        mine = (seen >= 1 + painted.number * len(PARTS)) & (seen < 1 + (painted.number + 1) * len(PARTS))
        for (x, y), v in zip(person.keypoints, person.visibility, strict=True):
            on_person = mine[round(float(y)), round(float(x))]
            assert v < 2 or on_person
            visible += v == 2
            covered += v == 1 and not on_person
    assert visible > 2000
    assert covered > 100


def test_box_and_area_are_those_of_the_mask(recorded):
    for seen, painted, _, person in _people(recorded):
        if person is None:
            continue
        first = 1 + painted.number * len(PARTS)
        rows, columns = np.nonzero((seen >= first) & (seen < first + len(PARTS)))
        assert person.area == len(rows) >= SEEN_PX
        left, top = columns.min(), rows.min()
        assert person.box == (left, top, columns.max() - left + 1, rows.max() - top + 1)


def test_who_is_not_labelled_shows_no_joint(recorded):
    nobody = [entry for entry in _people(recorded) if entry[3] is None]
    assert nobody  # the rule is exercised
    for seen, painted, camera, _ in nobody:
        first = 1 + painted.number * len(PARTS)
        area = ((seen >= first) & (seen < first + len(PARTS))).sum()
        pixels = camera.project(painted.figure.joints)
        inside = ((pixels > -0.5) & (pixels < np.array(SIZE) - 0.5)).all(axis=1)
        assert area < SEEN_PX or area < 0.15 * painted.full_px or not inside.any()


def test_samples_hold_exactly_the_labelled_people(recorded):
    for sample, entries in recorded:
        assert list(sample.people) == [person for *_, person in entries if person is not None]


def test_zero_to_eight_people_from_small_to_tall():
    samples = [scene(21, index, (96, 96)) for index in range(400)]
    assert {len(sample.people) for sample in samples} == set(range(9))
    heights = np.array([person.box[3] / 96 for sample in samples for person in sample.people])
    assert heights.min() < 0.1
    assert heights.max() > 0.85
    assert (heights > 0.1875).mean() > 0.6  # mostly people worth estimating: taller than 48 of 256 pixels


def test_the_frozen_output():
    """The shipped weights were trained on these pictures. If this fails, the training set has changed."""
    sample = scene(7, 3)
    digest = [len(sample.people), *sample.people[0].keypoints[5].tolist(), sample.people[0].area]
    assert digest == pytest.approx([5, 221.2172, 112.9920, 4369], abs=0.01)
    assert sample.image.reshape(-1, 3).mean(axis=0) == pytest.approx([111.775, 133.776, 127.926], abs=0.5)


def _stage(size=(200, 200), distance=3.0):
    camera = make_camera(size, 1.2, 1.2, (pitch_for(0.33, distance, 0.0), 0.0))
    return camera, Canvas(
        np.full((size[1], size[0], 3), 128, np.uint8), np.zeros((size[1], size[0]), np.uint8)
    )


def _somebody(yaw, place=(0.0, -3.0), seed=0):
    shape = make_shape(1.7, 0.0, 1.0, 1.0)
    return Actor(
        pose_body(shape, ARMS_FORWARD, place, yaw), make_look(np.random.default_rng(seed), False), ()
    )


def _labelled(actors, boxes=(), size=(200, 200)):
    camera, canvas = _stage(size)
    painted = paint_stage(canvas, list(actors), list(boxes), (camera, FRONT_LIGHT))
    return canvas, [label(canvas, one, camera) for one in painted]


def test_left_and_right_change_places_when_a_person_turns_round():
    _, (front,) = _labelled([_somebody(0.0)])
    _, (back,) = _labelled([_somebody(math.pi)])
    for name in ("shoulder", "hip", "knee", "eye", "ear"):
        left, right = COCO17.joints.index(f"left_{name}"), COCO17.joints.index(f"right_{name}")
        assert front.keypoints[left, 0] > front.keypoints[right, 0]
        assert back.keypoints[left, 0] < back.keypoints[right, 0]


def test_a_face_is_seen_from_the_front_only():
    nose, left_eye, left_ear = 0, 1, 3
    _, (front,) = _labelled([_somebody(0.0)])
    _, (back,) = _labelled([_somebody(math.pi)])
    _, (profile,) = _labelled([_somebody(math.pi / 2)])  # looks to the picture's right: the left side is far
    assert front.visibility[[nose, 1, 2]].tolist() == [2, 2, 2]
    assert back.visibility[[nose, 1, 2]].tolist() == [1, 1, 1]
    assert profile.visibility[[nose, left_eye, 2]].tolist() == [2, 1, 2]
    assert profile.visibility[left_ear] == 1
    assert profile.visibility[[5, 6]].tolist() == [1, 2]  # shoulders
    assert profile.visibility[[11, 12]].tolist() == [1, 2]  # hips
    assert profile.visibility[[13, 14]].tolist() == [1, 2]  # knees: the near leg covers the far one


@pytest.mark.parametrize("seed", range(6))
def test_front_and_back_differ_in_the_picture(seed):
    """The face is skin and the back of the head is hair (or cap), unless the person is bald."""
    heads = []
    for yaw in (0.0, math.pi):
        canvas, (person,) = _labelled([_somebody(yaw, seed=seed)])
        x, y = person.keypoints[:3].mean(axis=0)
        heads.append(canvas.image[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4].astype(float))
    assert np.abs(heads[0] - heads[1]).mean() > 8


def test_the_nearer_person_covers_the_farther_one():
    far, near = _somebody(0.0, (0.0, -4.0)), _somebody(0.0, (0.05, -3.0), seed=1)
    _, (behind, before) = _labelled([far, near])
    assert before.visibility.min() == 2
    assert behind is None or (behind.visibility == 1).sum() > 8
    _, swapped = _labelled([near, far])
    assert swapped[0].area == before.area  # the order in the list does not matter


def test_a_wall_hides_a_person_and_a_desk_hides_the_legs():
    cloth = np.full((32, 32, 3), 90, np.float32)
    wall = Box((0.0, -2.0), 0.0, (2.0, 2.5, 0.1), 0.0, cloth)
    assert _labelled([_somebody(0.0)], [wall])[1] == [None]
    desk = Box((0.0, -2.2), 0.0, (2.0, 0.7, 0.1), 0.0, cloth)
    canvas, (person,) = _labelled([_somebody(0.0)], [desk])
    assert person.visibility[[0, 5, 6]].tolist() == [2, 2, 2]
    assert person.visibility[[15, 16]].tolist() == [1, 1]
    assert (canvas.seen == THING).sum() > 1000


def test_who_stands_outside_of_the_picture_is_not_labelled():
    assert _labelled([_somebody(0.0, (9.0, -3.0))])[1] == [None]


def test_boxes_show_only_the_faces_towards_the_camera():
    camera, canvas = _stage()
    box = Box((0.0, -3.0), 0.0, (1.0, 1.0, 1.0), 0.3, np.full((32, 32, 3), 200, np.float32))
    paint_box(canvas, box, camera, FRONT_LIGHT)
    hull = cv2.convexHull(camera.project(box.corners()).astype(np.float32))
    assert (canvas.seen == THING).sum() == pytest.approx(cv2.contourArea(hull), rel=0.03)


def test_the_lamp_before_a_box_lights_its_front():
    camera, canvas = _stage()
    paint_box(
        canvas,
        Box((0.0, -3.0), 0.0, (1.0, 1.0, 1.0), 0.0, np.full((32, 32, 3), 200, np.float32)),
        camera,
        FRONT_LIGHT,
    )
    x, y = np.rint(camera.project(np.array([0.0, 0.5, -2.5]))).astype(int)
    assert canvas.image[y, x].min() > 190  # 0.6 + 0.4 of the lamp; a face turned away would have 0.7 of it


def test_furniture_beside_the_lens_is_left_out():
    camera, canvas = _stage()
    beside = Box((0.35, 0.0), 0.0, (0.3, 3.0, 2.0), 0.0, np.zeros((32, 32, 3), np.float32))
    paint_box(canvas, beside, camera, FRONT_LIGHT)
    assert (canvas.seen == 0).all()


def test_the_back_of_a_head_has_no_face():
    camera, canvas = _stage()
    actor = _somebody(math.pi)
    head = np.zeros_like(actor.look.head)
    head[:, head.shape[1] // 4 : -head.shape[1] // 4, 0] = 250
    paint_head(canvas, actor.figure, camera, (Look(actor.look.limbs, actor.look.wraps, head), FRONT_LIGHT), 5)
    x, y = np.rint(camera.project(actor.figure.head_centre)).astype(int)
    assert canvas.seen[y, x] == 5
    assert canvas.image[y - 2 : y + 3, x - 2 : x + 3].max() == 0


def test_chairs_and_things_stand_on_the_floor():
    rng = np.random.default_rng(0)
    for _ in range(50):
        for boxes in (chair(rng, (0.0, -3.0), 0.4, 1.0), thing(rng, (1.0, -3.0))):
            assert min(box.base_m for box in boxes) >= 0
            assert min(box.corners()[:, 1].min() for box in boxes) == pytest.approx(
                min(box.base_m for box in boxes)
            )


def test_shadows_only_darken_and_lie_at_the_feet():
    camera, canvas = _stage()
    figure = _somebody(0.0).figure
    paint_shadows(canvas.image, [figure], camera, 0.5)
    assert canvas.image.max() <= 128
    x, y = np.rint(camera.project(np.array([0.0, 0.0, -3.0]))).astype(int)
    assert canvas.image[min(y, 199), x].max() < 100
    assert (canvas.image[:20] == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (33, 32)])
def test_odd_sizes(size):
    for index in range(20):
        sample = scene(1, index, size)
        assert sample.image.shape == (size[1], size[0], 3)
        assert all(np.isfinite(person.keypoints).all() for person in sample.people)


@pytest.mark.parametrize("yaw", [0.0, 0.5, -0.5])
def test_the_face_is_painted_where_its_joints_are(yaw):
    """A head that is blue around the left eye, red around the right one and black elsewhere."""
    actor = _somebody(yaw)
    head = np.zeros_like(actor.look.head)
    rows, columns = head.shape[:2]
    for longitude, latitude, channel in ((23, 7, 0), (-23, 7, 2)):
        x, y = columns * (0.5 + longitude / 360), rows * (0.5 - latitude / 180)
        head[round(y) - 2 : round(y) + 2, round(x) - 2 : round(x) + 2, channel] = 250
    limbs = actor.look.limbs * 0
    look = Look(limbs, actor.look.wraps, head)
    canvas, (person,) = _labelled([Actor(actor.figure, look, ())], size=(800, 800))
    for joint, channel in ((1, 0), (2, 2)):
        x, y = np.rint(person.keypoints[joint]).astype(int)
        colour = canvas.image[y, x].astype(int)
        assert colour[channel] > 100
        assert colour[2 - channel] < 60


def test_prints_are_on_the_chest_and_not_on_the_back():
    actor = _somebody(0.0)
    wraps = actor.look.wraps * 0
    wraps[:, :, 24:40] = 250  # the middle quarter of the turn is the front
    look = Look(actor.look.limbs, wraps, actor.look.head)
    for yaw, bright in ((0.0, True), (math.pi, False), (math.pi / 2, False)):
        canvas, (person,) = _labelled([Actor(_somebody(yaw).figure, look, ())])
        shoulders, hips = person.keypoints[5:7].mean(axis=0), person.keypoints[11:13].mean(axis=0)
        x, y = np.rint(0.7 * shoulders + 0.3 * hips).astype(int)
        assert (canvas.image[y, x].max() > 100) == bright


@pytest.mark.parametrize("sigma", [2.0, 8.0, 16.0])
def test_grain_has_the_asked_strength_and_its_place_matters(sigma):
    grey = np.full((90, 110, 3), 128, np.uint8)
    first = add_grain(grey, sigma, (0, 0)).astype(float)
    assert first.std() == pytest.approx(sigma, rel=0.05)
    assert first.mean() == pytest.approx(128, abs=0.5)
    for offset in ((1, 0), (0, 1), (63, 63)):
        assert np.abs(first - add_grain(grey, sigma, offset)).mean() > 0.5 * sigma
    np.testing.assert_array_equal(add_grain(grey, 0.0, (3, 4)), grey)
