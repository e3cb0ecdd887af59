"""QueryPose's decoder, and the skeletons that its heads can have."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose.runtime.decode import DECODERS
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.skeleton import CROWDPOSE14, SKELETONS, Skeleton

decode = DECODERS["querypose"]
STRAIGHT = Letterbox(1.0, 1.0, 256, 256)


def outputs(scores: list[float], joints: int = 17) -> dict[str, F32]:
    """Everybody is the same pose, a pixel further right each."""
    rng = np.random.default_rng(0)
    pose = rng.uniform(20, 200, (joints, 2)).astype(np.float32)
    keypoints = np.stack([pose + np.array([person, 0], np.float32) for person in range(len(scores))])
    return {
        "scores": np.array([scores], np.float32),
        "keypoints": keypoints[None],
        "keypoint_scores": rng.uniform(0, 1, (1, len(scores), joints)).astype(np.float32),
    }


def test_best_first_and_nobody_suppressed() -> None:
    """Equal poses are two people here: what the other family's decoder would join."""
    out = outputs([0.3, 0.9, 0.0, 0.3, 0.6])
    poses = decode(out, STRAIGHT, SKELETONS["coco17"])
    order = [1, 4, 0, 3]  # equal scores stay as they were
    assert poses.scores.tolist() == pytest.approx([0.9, 0.6, 0.3, 0.3])
    np.testing.assert_array_equal(poses.keypoint_scores, out["keypoint_scores"][0, order])
    np.testing.assert_allclose(poses.keypoints, out["keypoints"][0, order] - 0.5, atol=1e-4)
    np.testing.assert_array_equal(poses.boxes[:, :2], poses.keypoints.min(1))
    np.testing.assert_array_equal(poses.boxes[:, 2:], poses.keypoints.max(1))
    assert len(DECODERS["qrpose"](out, STRAIGHT, SKELETONS["coco17"])) == 1


def test_a_corner_of_the_input_is_a_corner_of_the_frame() -> None:
    """The network's 0 is the left edge of the first pixel, half a pixel before its centre, at any scale."""
    out = outputs([0.5])
    box = Letterbox.fit((512, 384), (256, 256))
    out["keypoints"][:] = 0
    assert decode(out, box, SKELETONS["coco17"]).keypoints.tolist() == [[[-0.5, -0.5]] * 17]
    out["keypoints"][:] = (box.width, box.height)
    assert decode(out, box, SKELETONS["coco17"]).keypoints.tolist() == [[[511.5, 383.5]] * 17]


def test_nobody_and_fourteen_joints() -> None:
    assert len(decode(outputs([0.0, 0.0]), STRAIGHT, SKELETONS["coco17"])) == 0
    poses = decode(outputs([0.5, 0.7], 14), STRAIGHT, CROWDPOSE14)
    assert isinstance(poses, Poses)
    assert poses.keypoints.shape == (2, 14, 2)


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_skeletons_hold_together(skeleton: Skeleton) -> None:
    """Left mirrors right, edges join joints, and every limb of one side has its twin on the other."""
    count = len(skeleton)
    assert len(skeleton.sigmas) == len(skeleton.mirror) == count
    assert SKELETONS[skeleton.name] is skeleton
    for joint, other in enumerate(skeleton.mirror):
        assert skeleton.mirror[other] == joint
        assert skeleton.sigmas[other] == skeleton.sigmas[joint]
        swapped = skeleton.joints[joint].replace("left", "#").replace("right", "left").replace("#", "right")
        assert skeleton.joints[other] == swapped
    edges = {frozenset(edge) for edge in skeleton.edges}
    assert len(edges) == len(skeleton.edges)
    assert {frozenset(skeleton.mirror[joint] for joint in edge) for edge in edges} == edges
    assert set().union(*edges) == set(range(count))


def test_crowdpose_has_the_sigmas_of_its_evaluation_code() -> None:
    """Those of COCO for the joints they share; head and neck as the shoulders."""
    coco = SKELETONS["coco17"]
    by_name = dict(zip(coco.joints, coco.sigmas, strict=True))
    for joint, sigma in zip(CROWDPOSE14.joints, CROWDPOSE14.sigmas, strict=True):
        assert sigma == by_name.get(joint, 0.079)
