"""OKS-NMS: against a plain loop over the formula, and what must hold for any poses."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepose.runtime.oks import suppress
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17

SIGMAS = COCO17.sigma_array()


def crowd(seed: int, people: int, copies: int, spread: float) -> Poses:
    """Some people of 60 by 100 pixels, each with `copies` poses that are a little off."""
    generator = np.random.default_rng(seed)
    bodies = generator.uniform(0, 400, (people, 1, 1, 2)) + generator.uniform(0, 1, (people, 1, 17, 2)) * [
        60,
        100,
    ]
    found = bodies + spread * generator.standard_normal((people, copies, 17, 2))
    keypoints = found.reshape(-1, 17, 2).astype(np.float32)
    scores = generator.permutation(len(keypoints)).astype(np.float32) / len(keypoints)
    return Poses(keypoints, np.ones((len(keypoints), 17), np.float32), scores, boxes_of(keypoints))


def alike(pose: np.ndarray, better: np.ndarray) -> float:
    sides = better.max(0) - better.min(0)
    area = 0.53 * float(sides[0]) * float(sides[1])
    terms = [
        math.exp(-float(((a - b) ** 2).sum()) / (2 * area * (2 * s) ** 2))
        for a, b, s in zip(pose.astype(float), better.astype(float), COCO17.sigmas, strict=True)
    ]
    return sum(terms) / len(terms)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.floats(0.5, 12))
def test_what_stays_is_what_a_plain_loop_keeps(seed: int, people: int, copies: int, spread: float) -> None:
    poses = crowd(seed, people, copies, spread)
    kept: list[int] = []
    for index in sorted(range(len(poses)), key=lambda i: -poses.scores[i]):
        if all(alike(poses.keypoints[index], poses.keypoints[other]) <= 0.6 for other in kept):
            kept.append(index)
    left = suppress(poses, SIGMAS)
    np.testing.assert_array_equal(left.scores, poses.scores[kept])
    np.testing.assert_array_equal(left.keypoints, poses.keypoints[kept])
    again = suppress(left, SIGMAS)
    np.testing.assert_array_equal(again.scores, left.scores)


def test_a_suppressed_pose_suppresses_nobody() -> None:
    """Three in a row, each like its neighbour: the best takes the second, the third stays."""
    body = np.random.default_rng(0).uniform(0, 1, (17, 2)) * [60, 100]
    keypoints = np.stack([body, body + np.array([0, 5]), body + np.array([0, 12])]).astype(np.float32)
    assert alike(keypoints[1], keypoints[0]) > 0.6 > alike(keypoints[2], keypoints[0])
    poses = Poses(
        keypoints, np.ones((3, 17), np.float32), np.array([0.9, 0.8, 0.7], np.float32), boxes_of(keypoints)
    )
    np.testing.assert_allclose(suppress(poses, SIGMAS).scores, [0.9, 0.7])


def test_given_sizes_decide_and_stay_with_their_people() -> None:
    """Two pairs, each two pixels apart: large people are one, small people are two."""
    body = np.random.default_rng(0).uniform(0, 1, (17, 2)) * [60, 100]
    keypoints = np.stack([body + offset for offset in (0, 300, 2, 302)]).astype(np.float32)
    scores = np.array([0.6, 0.9, 0.7, 0.8], np.float32)
    poses = Poses(keypoints, np.ones((4, 17), np.float32), scores, boxes_of(keypoints))
    sizes = np.array([6000.0, 20.0, 6000.0, 20.0])
    np.testing.assert_array_equal(suppress(poses, SIGMAS, 0.9, sizes).scores, scores[[1, 3, 2]])


def test_nobody_stays_nobody() -> None:
    assert len(suppress(Poses.empty(), SIGMAS)) == 0
    assert len(suppress(Poses.empty(), SIGMAS, 0.9, np.zeros(0))) == 0
