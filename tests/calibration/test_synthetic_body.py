"""Bodies: constant bones, joint limits, mirror symmetry, feet on the floor; a camera OpenCV agrees with."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepose.calibration.synthetic.body import (
    ANGLES,
    FACE,
    LIMITS,
    PART,
    limited,
    make_shape,
    mirrored,
    pose_body,
)
from edgepose.calibration.synthetic.camera import make_camera, pitch_for
from edgepose.calibration.synthetic.motion import MOTIONS, Style, stride_m, walk
from edgepose.runtime.skeleton import COCO17

JOINT = {name: index for index, name in enumerate(COCO17.joints)}
shapes = st.builds(
    make_shape, st.floats(0.9, 2.0), st.floats(0, 1), st.floats(0.78, 1.45), st.floats(0.85, 1.4)
)
styles = st.lists(st.floats(0, 1), min_size=16, max_size=16).map(lambda traits: Style(tuple(traits)))
wild = st.lists(st.floats(-7, 7), min_size=len(ANGLES), max_size=len(ANGLES)).map(np.array)
phases = st.floats(-50, 50)


def _distance(joints, a, b):
    return float(np.linalg.norm(joints[JOINT[a]] - joints[JOINT[b]]))


def _bend(joints, a, b, c):
    """Angle in degrees by which the chain a-b-c departs from straight."""
    first, second = joints[JOINT[b]] - joints[JOINT[a]], joints[JOINT[c]] - joints[JOINT[b]]
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return math.degrees(math.acos(np.clip(cosine, -1, 1)))


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(sorted(MOTIONS)), styles, phases, st.floats(-4, 4))
def test_motions_keep_the_length_of_every_bone(shape, motion, style, phase, yaw):
    joints = pose_body(shape, MOTIONS[motion](style, phase), (1.0, -3.0), yaw).joints
    for side in ("left", "right"):
        assert _distance(joints, f"{side}_hip", f"{side}_knee") == pytest.approx(shape.thigh)
        assert _distance(joints, f"{side}_knee", f"{side}_ankle") == pytest.approx(shape.shin)
        assert _distance(joints, f"{side}_shoulder", f"{side}_elbow") == pytest.approx(shape.upper_arm)
        assert _distance(joints, f"{side}_elbow", f"{side}_wrist") == pytest.approx(shape.forearm)
    assert _distance(joints, "left_hip", "right_hip") == pytest.approx(2 * shape.hip)
    assert _distance(joints, "left_shoulder", "right_shoulder") == pytest.approx(2 * shape.shoulder)


@settings(max_examples=60, deadline=None)
@given(shapes, wild)
def test_no_angles_break_a_joint(shape, angles):
    joints = pose_body(shape, angles, (0.0, -3.0), 0.3).joints
    for side in ("left", "right"):
        assert 1.9 <= _bend(joints, f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist") <= 148.1
        assert 1.9 <= _bend(joints, f"{side}_hip", f"{side}_knee", f"{side}_ankle") <= 150.1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MOTIONS)), styles, phases)
def test_motions_stay_within_the_limits(motion, style, phase):
    angles = MOTIONS[motion](style, phase)
    assert (angles >= LIMITS[:, 0] - 1e-12).all()
    assert (angles <= LIMITS[:, 1] + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(shapes, wild, st.floats(-3, 3))
def test_a_mirrored_pose_is_the_mirror_image(shape, angles, yaw):
    there = pose_body(shape, angles, (0.7, -3.0), yaw).joints
    back = pose_body(shape, mirrored(limited(angles)), (-0.7, -3.0), -yaw).joints
    np.testing.assert_allclose(back[list(COCO17.mirror)] * (-1, 1, 1), there, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes, wild)
def test_the_lowest_foot_stands_on_the_floor(shape, angles):
    figure = pose_body(shape, angles, (0.0, -3.0), 0.0)
    feet = [PART["left_foot"], PART["right_foot"]]
    bottoms = [
        (ends[feet, 1] - figure.radius[feet, i]).min() for i, ends in enumerate((figure.start, figure.end))
    ]
    assert min(bottoms) == pytest.approx(0, abs=1e-9)


def test_upright_people_are_as_tall_as_they_say_and_look_along_their_yaw():
    shape = make_shape(1.75, 0.0, 1.0, 1.0)
    figure = pose_body(shape, np.zeros(len(ANGLES)), (0.0, -3.0), 0.0)
    top = figure.head_centre[1] + shape.head[1]
    assert top == pytest.approx(1.75, abs=0.06)
    assert figure.joints[JOINT["left_shoulder"], 0] > 0 > figure.joints[JOINT["right_shoulder"], 0]
    assert figure.joints[JOINT["nose"], 2] > figure.head_centre[2] + 0.05  # towards the camera
    turned = pose_body(shape, np.zeros(len(ANGLES)), (0.0, -3.0), math.pi / 2)
    assert turned.joints[JOINT["nose"], 0] > turned.head_centre[0] + 0.05


def test_the_eyes_lie_on_the_head_and_ears_beside_it():
    figure = pose_body(make_shape(1.6, 0.5, 1.0, 1.0), np.full(len(ANGLES), 0.2), (0.0, -3.0), 1.0)
    local = (figure.joints[:5] - figure.head_centre) @ figure.head_turn / figure.head_size
    np.testing.assert_allclose(np.linalg.norm(local, axis=1), [1.16, 1, 1, 1.06, 1.06], atol=1e-9)
    assert FACE.keys() == {"nose", "left_eye", "right_eye"}
    assert local[1, 0] > 0 > local[2, 0]
    assert local[3, 0] > 1 > -1 > local[4, 0]


@settings(max_examples=30, deadline=None)
@given(styles, st.floats(0, 6.28))
def test_half_a_gait_cycle_later_the_legs_have_changed_sides(style, phase):
    legs = [i for i, name in enumerate(ANGLES) if "hip" in name or "knee" in name or "ankle" in name]
    later = mirrored(walk(style, phase + math.pi))
    np.testing.assert_allclose(walk(style, phase)[legs], later[legs], atol=1e-9)


def test_the_standing_foot_hardly_slides():
    """Walking at the stride's own speed, the lower foot moves far slower than the body."""
    style, shape = Style((0.5,) * 16), make_shape(1.75, 0.0, 1.0, 1.0)
    stride = stride_m(style, shape.thigh + shape.shin)
    cycles = np.arange(0, 2, 0.01)
    ankles = np.array(
        [
            pose_body(shape, walk(style, 2 * math.pi * c), (0, c * stride - 9), 0.0).joints[15:17]
            for c in cycles
        ]
    )
    speed = np.abs(np.diff(ankles[..., 2], axis=0)) / 0.01 / stride  # 1 is the body's speed
    lower = np.argmin(ankles[1:, :, 1], axis=1)
    assert np.median(speed[np.arange(len(speed)), lower]) < 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(16, 900), st.integers(16, 900)),
    st.floats(0.5, 3),
    st.floats(0.3, 4),
    st.tuples(st.floats(-0.4, 0.9), st.floats(-0.2, 0.2)),
)
def test_projection_agrees_with_opencv(size, focal, height, angles):
    camera = make_camera(size, focal, height, angles)
    points = np.random.default_rng(0).uniform((-2, 0, -9), (2, 2, -3), (20, 3))
    intrinsic = np.array(
        [[focal * size[1], 0, (size[0] - 1) / 2], [0, focal * size[1], (size[1] - 1) / 2], [0, 0, 1]]
    )
    pitch, roll = angles
    # Independent of camera.py: OpenCV's world (y down, z forward), then pitch about x, then roll.
    world = points * (1, -1, -1)
    turn = cv2.Rodrigues(np.array([0, 0, roll]))[0] @ cv2.Rodrigues(np.array([pitch, 0, 0]))[0]
    shift = -turn @ np.array([0, -height, 0])
    in_front = (world @ turn.T + shift)[:, 2] > 0.3
    expected = cv2.projectPoints(world, turn, shift, intrinsic, None)[0][:, 0]
    np.testing.assert_allclose(camera.project(points)[in_front], expected[in_front], atol=1e-6)


def test_pitching_down_moves_the_world_up():
    level, down = (make_camera((100, 100), 1.0, 1.5, (pitch, 0.0)) for pitch in (0.0, 0.2))
    point = np.array([0.0, 1.5, -4.0])
    assert level.project(point) == pytest.approx([49.5, 49.5])
    assert down.project(point)[1] < 49.5
    aimed = make_camera((100, 100), 1.0, 1.5, (pitch_for(1.5, 4.0, 0.1), 0.0))
    assert aimed.project(np.array([0.0, 0.0, -4.0]))[1] == pytest.approx(49.5 + 0.1 * 100)


def test_floor_and_horizon_agree_with_the_projection():
    camera = make_camera((320, 200), 1.3, 2.0, (0.15, 0.05))
    floor = np.array([[-1.0, -5.0], [2.0, -8.0]])
    homogeneous = np.column_stack([floor, np.ones(2)]) @ camera.floor_homography().T
    world = np.column_stack([floor[:, 0], np.zeros(2), floor[:, 1]])
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], camera.project(world), atol=1e-6)
    far = camera.project(np.array([[-1e6, 0, -1e7], [1e6, 0, -1e7]]))
    left, right = camera.horizon()
    rows = np.interp(far[:, 0], (0, 319), (left, right))
    np.testing.assert_allclose(rows, far[:, 1], atol=0.01)
