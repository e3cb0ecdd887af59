"""The two static inference graphs of QR-Pose: heads at every pixel, or only at the M best candidates.

Both read one set of weights and give `scores` (B, N), `boxes` (B, N, 4), `keypoints` (B, N, K, 2) in input
pixels and `keypoint_scores` (B, N, K); an empty slot is all zeros (specs/qrpose.md section 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from edgepose.training.models.qrpose.network import Config, Heads, QrPose, Trunk

STRIDE = 4.0  # input pixels a map pixel
WINDOW = 2  # map pixels: a peak beats everything within this Chebyshev distance
LIKELY = 2  # times M: pixels from which the M candidates are chosen
SURE = 0.2  # of S: from here on somebody is there, and the joints say how well they are found
LEAST_SHOWN = 0.5  # of the joints: who shows fewer is not scored by those alone
OWN = 2e-4  # weight of what a pose says itself, beside the mean of the candidates'
REACH = 0.07  # how far apart poses of one person see a joint, as a share of the pose's size


def sparse(network: QrPose, trunk: Trunk) -> dict[str, Tensor]:
    """Graph B: the heads at M pixels of a good coarse score, pairwise suppression, then the N best."""
    pixels = candidates(network, trunk)
    ramp = network.ramp.expand(pixels.shape[0], -1).gather(1, pixels)
    places = _places(network, pixels)
    heads = network.heads_at(trunk, pixels)
    logits = heads.logits[:, 0, 0] + ramp
    suppressed = lacking(logits, places) > 0
    scores = torch.sigmoid(logits) * (1 - suppressed.to(logits.dtype))
    best, chosen = scores.topk(network.config.slots, 1)
    found = _found(heads, places)
    return _outputs(network.config, best, _columns(found, chosen), found)


def candidates(network: QrPose, trunk: Trunk) -> Tensor:
    """(B, M) of the pixels with the best coarse scores, as numbers of the map's.

    Differs from section 7 in a second choice: by the score alone a few people, who are wide hills, take all
    M places of a crowd. So of twice as many pixels those come first which lack least of the best within their
    window. Nor are the peaks alone enough: those of S0 and of S differ in a quarter of the cases.
    """
    B, _, H, W = trunk.coarse.shape
    M = network.config.candidates
    logits = trunk.coarse.flatten(1) + network.ramp.expand(B, -1)
    logits, pixels = logits.topk(min(LIKELY * M, H * W), 1)
    _, chosen = (logits - lacking(logits, _places(network, pixels))).topk(M, 1)
    return pixels.gather(1, chosen)


def _places(network: QrPose, pixels: Tensor) -> Tensor:
    """(B, P, 2) map pixels of the pixels with these numbers (B, P)."""
    return network.grid.expand(pixels.shape[0], -1, 2).gather(1, pixels[:, :, None].expand(-1, -1, 2))


def lacking(logits: Tensor, places: Tensor) -> Tensor:
    """(B, P) how much higher the best one within the window is: all pairs, so no loop and no NonZero.

    `places` (B, P, 2) in map pixels.
    """
    across = places.transpose(1, 2)  # (B, 2, P)
    distance = (across[..., None] - across[:, :, None]).abs().amax(1)  # (B, P, P)
    higher = torch.relu(logits[:, None, :] - logits[:, :, None])  # [i, j]: by how much j beats i
    return (higher * (distance < WINDOW + 0.5).to(logits.dtype)).amax(2)


def dense(network: QrPose, trunk: Trunk) -> dict[str, Tensor]:
    """Graph A: the heads everywhere, one GridSample, peaks of 5x5."""
    B, _, H, W = trunk.coarse.shape
    heads = network.heads_everywhere(trunk)
    logits = heads.logits + network.ramp.reshape(1, 1, H, W)
    highest = functional.max_pool2d(logits, 2 * WINDOW + 1, 1, WINDOW)
    peaks = torch.where(logits >= highest, torch.sigmoid(logits), torch.zeros_like(logits))
    best, chosen = peaks.flatten(1).topk(network.config.slots, 1)
    found = _found(heads, network.grid.expand(B, -1, 2))
    return _outputs(
        network.config, best, _columns(found, chosen), _columns(found, candidates(network, trunk))
    )


class Found(NamedTuple):
    """The poses of P pixels, which are the last axis throughout (`sampling.bilinear` says why)."""

    joints: Tensor  # (B, K, 2, P) map pixels
    confidence: Tensor  # (B, K, P)
    scores: Tensor  # (B, P) of S


def _found(heads: Heads, places: Tensor) -> Found:
    """The poses of heads that were evaluated at `places` (B, P, 2)."""
    offsets = heads.offsets.flatten(2)  # (B, 2K, P)
    joints = offsets.reshape(offsets.shape[0], -1, 2, offsets.shape[2]) + places.transpose(1, 2)[:, None]
    confidence = torch.sigmoid(heads.confidence.flatten(2))
    return Found(joints, confidence, torch.sigmoid(heads.logits.flatten(1)))


def _columns(found: Found, chosen: Tensor) -> Found:
    """The `chosen` (B, N) of the poses."""
    B, K = found.confidence.shape[:2]
    joints = found.joints.flatten(1, 2).gather(2, chosen[:, None].expand(-1, 2 * K, -1))
    confidence = found.confidence.gather(2, chosen[:, None].expand(-1, K, -1))
    return Found(joints.reshape(B, K, 2, -1), confidence, found.scores.gather(1, chosen))


def _outputs(config: Config, scores: Tensor, slots: Found, others: Found) -> dict[str, Tensor]:
    """The named outputs of N `slots`, among M `others`; `scores` (B, N) are S, or 0 of empty ones."""
    if config.ensemble:
        slots = agreed(slots, others)
        scores = expected_oks(scores, slots.confidence, in_picture(slots.joints, config.map_size))
    # Equal zeros: which candidates fill the empty slots is the runtime's choice, so show none.
    taken = (scores > 0).to(scores.dtype)
    keypoints = (STRIDE * slots.joints * taken[:, None, None]).permute(0, 3, 1, 2)
    boxes = torch.cat([keypoints.amin(2), keypoints.amax(2)], -1)
    confidence = (slots.confidence * taken[:, None]).transpose(1, 2)
    return {"scores": scores, "boxes": boxes, "keypoints": keypoints, "keypoint_scores": confidence}


def agreed(slots: Found, others: Found) -> Found:
    """Each joint of N poses moved to where M others say it is, by how near, how sure and how likely they are.

    Differs from section 7, where a pose is what one pixel says: its neighbours were trained to say the same,
    and their errors are not all the same. Where nobody is likely, a pose stays: rounding decides who is the
    last of the M.
    """
    width, height = (slots.joints.amax(1) - slots.joints.amin(1)).unbind(1)  # (B, N)
    reach = -(REACH**2) * (width * height).clamp(min=1.0)
    apart = others.joints[:, :, :, None] - slots.joints[..., None]  # (B, K, 2, N, M)
    # A tail like e^-x without Exp, products for Pow and means for sums: section 7 lists the operators.
    near = 2 * torch.sigmoid((apart * apart).mean(2) / reach[:, None, :, None])
    sure = others.confidence * others.confidence * others.scores[:, None]
    weights = sure[:, :, None] * near  # (B, K, N, M)
    weights = weights / (weights.mean(3, keepdim=True) + OWN)
    surer = others.confidence[:, :, None] - slots.confidence[..., None]
    joints = slots.joints + (weights[:, :, None] * apart).mean(4)
    return Found(joints, slots.confidence + (weights * surer).mean(3), slots.scores)


def in_picture(joints: Tensor, map_size: tuple[int, int]) -> Tensor:
    """(B, K, 2, N) in pixels of a map of (W, H) -> (B, K, N), how likely each joint lies in the picture.

    Where a joint is said to be on the picture's edge, as likely as not.
    """
    half = joints.new_tensor(map_size)[:, None] / 2
    middle = half - 0.5 / STRIDE  # the first input pixel's centre is 0, its edge half a pixel before
    return torch.sigmoid((half - (joints - middle).abs()).amin(2))


def expected_oks(scores: Tensor, confidence: Tensor, shown: Tensor) -> Tensor:
    """S (B, N), the joints' confidences and how likely each is in the picture (B, K, N) -> (B, N) in 0..1.

    The OKS is a mean over labelled joints, and those beyond the picture are not labelled: so is this.
    Differs from section 7, whose score is S: one number has to learn both whether somebody is there and how
    well all joints are found, and tells the latter less well than the joints do.
    """
    labelled = confidence + torch.relu(shown - confidence)  # the larger one: what is found well is labelled
    mean = confidence.mean(1) / labelled.mean(1).clamp(min=LEAST_SHOWN)
    return mean * (scores / SURE).clamp(max=1)
