"""What SHaRPose learns: the reference's heatmaps, and the rules of the specification pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepose.runtime.topdown.heatmaps import decode
from edgepose.training.models.sharpose.targets import heatmaps

GOLDEN = Path(__file__).parents[3] / "shared/golden/sharpose"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the SHaRPose goldens are not beside the project"
)
SIZE = (192, 256)


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
