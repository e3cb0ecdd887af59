"""OKS-NMS: against a plain loop over the formula, and what must hold for any poses."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepose.runtime.oks import likeness, mean_of_two, seen_likeness, silhouettes, suppress
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17

SIGMAS = COCO17.sigma_array()
SIZE = np.array([60, 100])  # of a body in pixels


def crowd(seed: int, people: int, copies: int, spread: float) -> Poses:
    """Some people of 60 by 100 pixels, each with `copies` poses that are a little off."""
    generator = np.random.default_rng(seed)
    bodies = generator.uniform(0, 400, (people, 1, 1, 2)) + generator.uniform(0, 1, (people, 1, 17, 2)) * SIZE
    found = bodies + spread * generator.standard_normal((people, copies, 17, 2))
    keypoints = found.reshape(-1, 17, 2).astype(np.float32)
    scores = (generator.permutation(len(keypoints)) / len(keypoints)).astype(np.float32)
    sure = generator.uniform(0, 1, (len(keypoints), 17)).astype(np.float32)
    return Poses(keypoints, sure, scores, boxes_of(keypoints))


def alike(poses: Poses, index: int, other: int) -> float:
    """Of two poses; the size is that of the other, and a joint counts by how sure both are."""
    better = poses.keypoints[other]
    sides = better.max(0) - better.min(0)
    area = 0.53 * float(sides[0]) * float(sides[1])
    terms = [
        math.exp(-float(((a - b) ** 2).sum()) / (2 * area * (2 * s) ** 2))
        for a, b, s in zip(poses.keypoints[index].astype(float), better.astype(float), SIGMAS, strict=True)
    ]
    sure = [
        max(float(a), 0.01) * max(float(b), 0.01)
        for a, b in zip(poses.keypoint_scores[index], poses.keypoint_scores[other], strict=True)
    ]
    return sum(w * term for w, term in zip(sure, terms, strict=True)) / sum(sure)


def seen_once(poses: Poses) -> Poses:
    return suppress(poses, seen_likeness(poses, SIGMAS, silhouettes(poses)[None]))


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.floats(0.5, 12))
def test_what_stays_is_what_a_plain_loop_keeps(seed: int, people: int, copies: int, spread: float) -> None:
    poses = crowd(seed, people, copies, spread)
    kept: list[int] = []
    for index in sorted(range(len(poses)), key=lambda i: -poses.scores[i]):
        if all(alike(poses, index, other) <= 0.5 for other in kept):
            kept.append(index)
    left = seen_once(poses)
    np.testing.assert_array_equal(left.scores, poses.scores[kept])
    np.testing.assert_array_equal(left.keypoints, poses.keypoints[kept])
    again = seen_once(left)
    np.testing.assert_array_equal(again.scores, left.scores)


def standing(*shifts: float, sure: float = 1) -> Poses:
    """One body of 60 by 100 pixels, moved down by each of the shifts; the first is the best."""
    body = np.random.default_rng(0).uniform(0, 1, (17, 2)) * SIZE
    keypoints = np.stack([body + np.array([0, shift]) for shift in shifts]).astype(np.float32)
    scores = 0.9 - 0.1 * np.arange(len(shifts), dtype=np.float32)
    return Poses(keypoints, np.full((len(shifts), 17), sure, np.float32), scores, boxes_of(keypoints))


def test_a_suppressed_pose_suppresses_nobody() -> None:
    """Three in a row, each like its neighbour: the best takes the second, the third stays."""
    poses = standing(0, 7, 14)
    assert alike(poses, 1, 0) > 0.5 > alike(poses, 2, 0)
    assert alike(poses, 2, 1) > 0.5
    np.testing.assert_allclose(seen_once(poses).scores, [0.9, 0.7])


def test_hidden_joints_guessed_apart_are_no_second_person() -> None:
    """Two poses agree on what both see, and guess the legs 60 px apart; then they are sure of the legs."""
    poses = standing(0, 1)
    poses.keypoints[1, 11:] += 60
    poses.keypoint_scores[:, 11:] = 0.05
    sizes = np.full((1, 2), 6000.0)
    assert likeness(poses, SIGMAS, sizes)[1, 0] < 0.7
    assert seen_likeness(poses, SIGMAS, sizes)[1, 0] > 0.95
    assert len(seen_once(poses)) == 1
    poses.keypoint_scores[:, :11] = 0.05
    poses.keypoint_scores[:, 11:] = 0.9
    assert len(seen_once(poses)) == 2


def test_poses_that_are_sure_of_nothing_are_held_together_over_all_joints() -> None:
    """A heatmap's best value may be 0 or less."""
    poses = standing(0, 9, sure=0)
    sizes = silhouettes(poses)[None]
    np.testing.assert_allclose(seen_likeness(poses, SIGMAS, sizes), likeness(poses, SIGMAS, sizes))


def test_given_sizes_decide_and_stay_with_their_people() -> None:
    """Two pairs, each two pixels apart: large people are one, small people are two."""
    poses = standing(0, 300, 2, 302)
    poses.scores[:] = [0.6, 0.9, 0.7, 0.8]
    sizes = mean_of_two(np.array([6000.0, 20.0, 6000.0, 20.0]))
    left = suppress(poses, likeness(poses, SIGMAS, sizes), 0.9)
    np.testing.assert_array_equal(left.scores, poses.scores[[1, 3, 2]])


def test_nobody_stays_nobody() -> None:
    assert len(seen_once(Poses.empty())) == 0
    assert len(suppress(Poses.empty(), np.zeros((0, 0)), 0.9)) == 0
