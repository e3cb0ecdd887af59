"""Videos: random access, motion without jumps, people that come and go in a fixed order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepose.calibration.synthetic import video
from edgepose.calibration.synthetic.video import Track

SIZE = (160, 120)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.1, 20), st.floats(0, 500), st.floats(0.0005, 0.02))
def test_a_track_has_no_jump_and_looks_where_it_goes(half, way, step):
    track = Track((0.3, -4.0), half)
    (here, yaw), (there, _) = track.at(way), track.at(way + step)
    move = np.subtract(there, here)
    assert np.hypot(*move) == pytest.approx(step, rel=1e-3)
    facing = (math.sin(yaw), math.cos(yaw))
    assert move @ facing == pytest.approx(step, rel=1e-3)


def test_a_track_is_closed():
    track = Track((0.0, -4.0), 2.0)
    around = 2 * (4.0 + math.pi * 0.45)
    (start, yaw), (end, later) = track.at(0.7), track.at(0.7 + around)
    assert end == pytest.approx(start)
    assert math.cos(later - yaw) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(6))
def test_joints_move_without_jumps(seed):
    film = video(seed, SIZE, fps=25)
    joints = np.array([[figure.joints for figure in film.figures(i)] for i in range(900)])
    speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * 25  # m/s (T, people, 17)
    assert speed.max() < 9  # a waving hand, a swinging foot
    hips = speed[..., [11, 12]]
    assert hips.max() < 3.5


def test_walkers_leave_and_come_back_while_others_stay():
    film = video(0, SIZE)
    places = np.array([[f.joints[[11, 12]].mean(axis=0) for f in film.figures(i)] for i in range(0, 2500, 5)])
    reach = np.ptp(places[..., 0], axis=0)
    assert len(reach) == len(film.roles) >= 3
    for role, metres in zip(film.roles, reach, strict=True):
        assert metres > 1.5 if role.what == "walk" else metres < 0.5


def test_every_video_has_walkers():
    roles = [[role.what for role in video(seed, (64, 48)).roles] for seed in range(30)]
    assert all(what.count("walk") >= 2 and len(what) <= 5 for what in roles)
    assert {what for whats in roles for what in whats} == {"walk", "wave", "sit", "stand"}


def test_frames_are_random_access():
    one, two = video(5, SIZE), video(5, SIZE)
    late = one.frame(77)
    frames = [two.frame(i) for i in (3, 77, 3)]
    np.testing.assert_array_equal(late.image, frames[1].image)
    np.testing.assert_array_equal(frames[0].image, frames[2].image)
    assert (late.image_id, late.image.shape) == (77, (120, 160, 3))
    for a, b in zip(late.people, frames[1].people, strict=True):
        np.testing.assert_array_equal(a.keypoints, b.keypoints)
    assert not np.array_equal(late.image, video(6, SIZE).frame(77).image)


def test_fps_is_the_distance_in_time():
    slow, fast = video(2, SIZE, fps=25), video(2, SIZE, fps=50)
    for a, b in zip(slow.figures(30), fast.figures(60), strict=True):
        np.testing.assert_allclose(a.joints, b.joints)


def test_the_backdrop_stands_still():
    film = video(1, SIZE)
    first, later = (film.frame(i).image.astype(int) for i in (0, 40))
    assert np.median(np.abs(first - later)) < 4 * film.grain + 2


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_people_keep_their_order(seed):
    film = video(seed, SIZE)
    for i in range(0, 400, 20):
        joints = [film.camera.project(figure.joints) for figure in film.figures(i)]
        whose = []
        for person in film.frame(i).people:
            known = person.visibility > 0
            gaps = [np.abs(points - person.keypoints)[known].max() for points in joints]
            assert min(gaps) < 1e-3
            whose.append(int(np.argmin(gaps)))
        assert whose == sorted(whose)


def test_there_is_nearly_always_somebody_tall():
    """The stream's end-to-end check scores people taller than a quarter of the picture."""
    tall = [
        sum(person.box[3] > SIZE[1] / 4 for person in video(seed, SIZE).frame(i).people)
        for seed in range(10)
        for i in range(0, 250, 50)
    ]
    assert np.mean(np.array(tall) > 0) > 0.9
