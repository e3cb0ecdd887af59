"""The two static inference graphs of QR-Pose: heads at every pixel, or only at the M best candidates.

Both read one set of weights and give `scores` (B, N), `boxes` (B, N, 4), `keypoints` (B, N, K, 2) in input
pixels and `keypoint_scores` (B, N, K); an empty slot is all zeros (specs/qrpose.md section 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from edgepose.training.models.qrpose.network import Heads, QrPose, Trunk

STRIDE = 4.0  # input pixels a map pixel
WINDOW = 2  # map pixels: a peak beats everything within this Chebyshev distance


def sparse(network: QrPose, trunk: Trunk) -> dict[str, Tensor]:
    """Graph B: the heads at the M best pixels of the coarse score, pairwise suppression, then the N best."""
    B = trunk.coarse.shape[0]
    ramp = network.ramp.expand(B, -1)
    _, pixels = (standing_out(trunk.coarse).flatten(1) + ramp).topk(network.config.candidates, 1)
    heads = network.heads_at(trunk, pixels)
    places = network.grid[None].expand(B, -1, 2).gather(1, pixels[:, :, None].expand(-1, -1, 2))
    logits = heads.logits[:, 0, :, 0] + ramp.gather(1, pixels)
    scores = torch.sigmoid(logits) * (1 - suppressed(logits, places))
    best, chosen = scores.topk(network.config.slots, 1)
    return _outputs(best, heads, places, chosen)


def standing_out(coarse: Tensor) -> Tensor:
    """Coarse logits (B, 1, H, W), less what each lacks of the best within its window.

    Differs from section 7: by the logits alone a few people, who are wide hills, take all M places of a
    crowd. Nor are the peaks alone enough: those of S0 and of S differ in a quarter of the cases.
    """
    return 2 * coarse - functional.max_pool2d(coarse, 2 * WINDOW + 1, 1, WINDOW)


def suppressed(logits: Tensor, places: Tensor) -> Tensor:
    """(B, M) 1 where a better candidate stands within the window: all pairs, so no loop and no NonZero.

    `places` (B, M, 2) in map pixels.
    """
    distance = (places[:, :, None] - places[:, None]).abs().amax(-1)  # (B, M, M)
    better = logits[:, None, :] > logits[:, :, None]  # [i, j]: j beats i
    return (better & (distance < WINDOW + 0.5)).to(logits.dtype).amax(2)


def dense(network: QrPose, trunk: Trunk) -> dict[str, Tensor]:
    """Graph A: the heads everywhere, one GridSample, peaks of 5x5."""
    B, _, H, W = trunk.coarse.shape
    heads = network.heads_everywhere(trunk)
    logits = heads.logits + network.ramp.reshape(1, 1, H, W)
    highest = functional.max_pool2d(logits, 2 * WINDOW + 1, 1, WINDOW)
    peaks = torch.where(logits >= highest, torch.sigmoid(logits), torch.zeros_like(logits))
    best, chosen = peaks.flatten(1).topk(network.config.slots, 1)
    return _outputs(best, heads, network.grid[None].expand(B, -1, 2), chosen)


def _outputs(scores: Tensor, heads: Heads, places: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """The named outputs of the `chosen` (B, N) among the P places the heads were evaluated at."""
    B, K = heads.confidence.shape[:2]
    N = chosen.shape[1]

    def take(values: Tensor, width: int) -> Tensor:  # (B, width, P) -> (B, N, width)
        return values.transpose(1, 2).gather(1, chosen[:, :, None].expand(-1, -1, width))

    offsets = take(heads.offsets.flatten(2), 2 * K).reshape(B, N, K, 2)
    origin = places.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    keypoints = STRIDE * (origin[:, :, None] + offsets)
    # Equal zeros: which candidates fill the empty slots is the runtime's choice, so show none.
    taken = (scores > 0).to(scores.dtype)[:, :, None]
    keypoints = keypoints * taken[..., None]
    boxes = torch.cat([keypoints.amin(2), keypoints.amax(2)], -1)
    confidence = torch.sigmoid(take(heads.confidence.flatten(2), K)) * taken
    return {"scores": scores, "boxes": boxes, "keypoints": keypoints, "keypoint_scores": confidence}
