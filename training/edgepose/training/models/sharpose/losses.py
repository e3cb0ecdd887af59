"""The losses of SHaRPose: both heatmaps, and a quality that learns the OKS of the coarse pose (section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepose.runtime.skeleton import COCO17, Skeleton
from edgepose.training.models.sharpose.targets import Targets

QUALITY_WEIGHT = 0.03


def quality_weight(epoch: int, start: int) -> float:
    """The quality term's weight: it joins after epoch `start`, when poses are worth judging.

    `epoch` counts from 1. The paper's starts are in specs/sharpose.md section 0 (qp_start_epoch, head).
    """
    return QUALITY_WEIGHT if epoch > start else 0.0


def peaks(heatmaps: Tensor) -> Tensor:
    """(B, K, H, W) -> (B, K, 2) x, y of the largest pixel; (-1, -1) for a map without any above 0."""
    best, index = heatmaps.flatten(2).max(-1)
    width = heatmaps.shape[3]
    places = torch.stack([index % width, index // width], -1).to(heatmaps.dtype)
    return torch.where(best[..., None] > 0, places, -1.0)


def oks(heatmaps: Tensor, targets: Targets, reference: bool = False, skeleton: Skeleton = COCO17) -> Tensor:
    """Object keypoint similarity (B,) of the heatmaps' peaks; 0 for a person without a labelled joint."""
    rows, columns = heatmaps.shape[2:]
    # The authors' code divides widths by rows and heights by columns.
    step = targets.boxes / targets.boxes.new_tensor((rows, columns) if reference else (columns, rows))
    apart = (peaks(heatmaps) - peaks(targets.heatmaps)) * step[:, None]
    variances = (2 * targets.boxes.new_tensor(skeleton.sigmas)).square()
    terms = torch.exp(-apart.square().sum(-1) / (2 * targets.boxes.prod(1)[:, None] * variances))
    return (terms * targets.weights).sum(1) / targets.weights.sum(1).clamp(min=1)


def heatmap_error(heatmaps: Tensor, targets: Targets) -> Tensor:
    """Mean square error over all pixels, of which those of unlabelled joints count as right."""
    return (targets.weights[:, :, None, None] * (heatmaps - targets.heatmaps).square()).mean()


def taught(outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a student learns from a teacher of the same crops: the heatmaps of both looks; 0 where equal."""
    return {
        "taught_coarse": (outputs["coarse_heatmaps"] - teacher["coarse_heatmaps"]).square().mean(),
        "taught_fine": (outputs["heatmaps"] - teacher["heatmaps"]).square().mean(),
    }


@dataclass(frozen=True, slots=True)
class Loss:
    """The weighted terms; `reference` repeats the slip in the authors' training OKS."""

    reference: bool = False
    skeleton: Skeleton = COCO17

    def __call__(self, outputs: Mapping[str, Tensor], targets: Targets, weight: float) -> dict[str, Tensor]:
        """Terms by name, to be summed; `weight` is `quality_weight` of the epoch.

        The quality's gradient reaches the blocks too, as the authors' does.
        """
        coarse = outputs["coarse_heatmaps"]
        found = oks(coarse, targets, self.reference, self.skeleton)
        known = (targets.weights.sum(1) > 0).to(found.dtype)
        missed = (known * (outputs["quality"] - found).square()).sum() / known.sum().clamp(min=1)
        return {
            "coarse": heatmap_error(coarse, targets),
            "fine": heatmap_error(outputs["heatmaps"], targets),
            "quality": weight * missed,
        }
