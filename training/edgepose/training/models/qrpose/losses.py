"""The losses of QR-Pose: the score learns the OKS of the pose that its own pixel regresses (section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgepose.runtime.skeleton import COCO17, Skeleton
from edgepose.training.models.qrpose.network import Raw
from edgepose.training.models.qrpose.targets import Targets, heatmaps

FOCUS = 2  # the exponent of |T - S|
SCORE_LIMIT = 1e-4  # scores are clamped to [limit, 1 - limit]
CirTarget = Literal["oks", "gauss", "oks_gauss"]
LEARNS: Mapping[str, CirTarget] = {"cir": "oks", "gauss_pqe": "gauss", "gauss": "gauss"}  # the rivals of S


@dataclass(frozen=True, slots=True)
class Weights:
    """The sum's weights; `coarse` scales the O1 terms against the final ones."""

    score: float = 1.0
    coarse_score: float = 0.5
    offset: float = 1.0
    oks: float = 5.0
    coarse: float = 0.5
    heatmap: float = 1.0
    confidence: float = 0.5


def oks_terms(poses: Tensor, joints: Tensor, area: Tensor, skeleton: Skeleton = COCO17) -> Tensor:
    """exp(-d² / (2 a (2 sigma)²)) per joint: poses and joints (..., K, 2), area (...) -> (..., K)."""
    sigmas = poses.new_tensor(skeleton.sigmas)
    squared = (poses - joints).square().sum(-1)
    return torch.exp(-squared / (2 * area[..., None] * (2 * sigmas).square()))


def oks(poses: Tensor, joints: Tensor, labelled: Tensor, area: Tensor) -> Tensor:
    """Object keypoint similarity over the labelled joints (..., K) -> (...)."""
    terms = oks_terms(poses, joints, area) * labelled
    return terms.sum(-1) / labelled.sum(-1).clamp(min=1)


def quality_focal(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """sum of weight |T - S|² BCE(S, T) (specs/qrpose.md section 6)."""
    scores = torch.sigmoid(logits).clamp(SCORE_LIMIT, 1 - SCORE_LIMIT)
    # torch's own refuses what is no number, and the loop could not say whose picture it was
    entropy = -(target * scores.log() + (1 - target) * (1 - scores).log())
    total: Tensor = (weight * (target - scores).abs() ** FOCUS * entropy).sum()
    return total


class _Positives:
    """The n chosen pixels of people, flat over the batch, with what they regress and what they should."""

    def __init__(self, raw: Raw, targets: Targets, grid: Tensor) -> None:
        owner = targets.owner.gather(1, raw.pixels)
        image, slot = (owner >= 0).nonzero(as_tuple=True)
        person = owner[image, slot]
        self.slots = (image, slot)  # of a (B, P) list of chosen pixels
        self.at = (image, raw.pixels[image, slot])  # of a (B, H*W) map
        self.person = (image, person)
        self.own = slot < raw.pixels.shape[1] - raw.hinted  # (n,) whose coarse offsets are the network's own
        self.joints = targets.joints[image, person]  # (n, K, 2)
        self.labelled = targets.labelled[image, person]  # (n, K)
        self.area = targets.area[image, person]
        places = grid[raw.pixels[image, slot]][:, None]
        self.poses = places + raw.offsets[image, slot]  # (n, K, 2)
        self.coarse_poses = places + raw.coarse_offsets[image, slot]

    def oks(self, poses: Tensor) -> Tensor:
        """(n,)."""
        return oks(poses, self.joints, self.labelled, self.area)

    def distance(self, poses: Tensor) -> Tensor:
        """(n,) L1 distance summed over labelled joints, in map pixels."""
        return ((poses - self.joints).abs().sum(-1) * self.labelled).sum(-1)


def cir_label(
    quality: Tensor, positives: _Positives, targets: Targets, grid: Tensor, kind: CirTarget
) -> Tensor:
    """(B, H*W) score label: the pose's OKS on positives and 0 elsewhere, or a baseline (section 5).

    `quality` (n,) is the OKS of the positives; hinted poses have no place in a map.
    """
    label = torch.zeros_like(targets.gaussian)
    own = positives.own
    at = tuple(index[own] for index in positives.at)
    if kind == "gauss":
        label[at] = 1.0
        return label
    if kind == "oks":
        label[at] = quality[own]
        return label
    central = (grid[positives.at[1]] == targets.centres[positives.person]).all(-1) & own
    best = torch.zeros_like(targets.area)
    best[tuple(index[central] for index in positives.person)] = quality[central]
    squared = (grid - targets.centres[:, :, None]).square().sum(-1)
    return (torch.exp(-squared / (2 * targets.spread[..., None].square())) * best[..., None]).amax(1)


@dataclass(frozen=True, slots=True)
class Loss:
    """The weighted sum; `target` chooses what the score learns.

    `specified` is section 6 to the letter where ours differs: offsets count in tenths of the person's size
    sqrt(area) as in DEKR, since OKS is relative to it and in map pixels the big ones would rule; and heatmaps
    learn as the score does, not by their mean square, in which the background outweighs the joints.
    """

    weights: Weights = Weights()
    target: CirTarget = "oks"
    specified: bool = False

    def __call__(self, raw: Raw, targets: Targets, grid: Tensor, warm: float) -> dict[str, Tensor]:
        """Weighted terms by name. `warm` 1..0 lifts the label early on: an untrained pose has no OKS."""
        positives = _Positives(raw, targets, grid)
        own, w = positives.own, self.weights
        final, coarse = positives.oks(positives.poses), positives.oks(positives.coarse_poses)
        quality = (warm + (1 - warm) * final).detach()
        weight = torch.where(targets.owner >= 0, 1.0, (1 - targets.gaussian) ** 4) * targets.counts
        label = cir_label(quality, positives, targets, grid, self.target)
        poses, people = max(1, len(own)), max(1, int(own.sum()))
        hinted = max(1, int((~own).sum()))
        # Differs: hinted poses are one more term, a mean of its own; the spec's map knows none of them.
        shares = torch.full_like(raw.share, 1 / people)
        shares[:, shares.shape[1] - raw.hinted :] = 1 / hinted
        seen = raw.share * shares * weight.gather(1, raw.pixels)

        def ranking(logits: Tensor, kind: CirTarget) -> Tensor:
            here = cir_label(quality, positives, targets, grid, kind).gather(1, raw.pixels)
            if kind == "oks":  # a hinted pose is scored by its own quality
                here[positives.slots] = quality
            return w.score * quality_focal(logits, here, seen)

        joints = positives.labelled.sum().clamp(min=1)
        own_joints = positives.labelled[own].sum().clamp(min=1)
        unit = 1 if self.specified else 10 / positives.area.sqrt()
        far, coarse_far = (unit * positives.distance(p) for p in (positives.poses, positives.coarse_poses))
        return {
            "score": ranking(raw.logits, self.target),
            "coarse_score": w.coarse_score * quality_focal(raw.coarse.flatten(1), label, weight) / people,
            "offset": w.offset * far.sum() / joints,
            "coarse_offset": w.offset * w.coarse * coarse_far[own].sum() / own_joints,
            "oks": w.oks * (1 - final).sum() / poses,
            "coarse_oks": w.oks * w.coarse * (1 - coarse[own]).sum() / people,
            "heatmap": w.heatmap * self._heat(raw.heatmaps, targets),
            "confidence": w.confidence * _confidence(raw, positives),
            **{f"{name}_score": ranking(logits, LEARNS[name]) for name, logits in raw.rivals.items()},
        }

    def _heat(self, logits: Tensor, targets: Targets) -> Tensor:
        wanted = heatmaps(targets, (logits.shape[3], logits.shape[2]))
        if self.specified:
            return (torch.sigmoid(logits) - wanted).square().mean()
        return quality_focal(logits, wanted, torch.ones(())) / targets.labelled.sum().clamp(min=1)


def _confidence(raw: Raw, positives: _Positives) -> Tensor:
    """Per-joint confidence learns each joint's own term of the OKS; 0 for joints that are not labelled."""
    logits = raw.confidence[positives.slots]
    label = oks_terms(positives.poses.detach(), positives.joints, positives.area) * positives.labelled
    return functional.binary_cross_entropy_with_logits(logits, label, reduction="sum") / max(1, label.numel())
