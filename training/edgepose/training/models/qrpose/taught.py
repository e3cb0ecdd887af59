"""What a QR-Pose network learns from one that knows better: its maps, and its poses at the same pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepose.training.models.qrpose.network import Raw
from edgepose.training.models.teaching import divergence, missed

SMALLEST = 2.0  # map pixels: the least extent of a pose that distances are measured by


def taught(student: Raw, teacher: Raw) -> dict[str, Tensor]:
    """Terms by name, all 0 for a student that says what the teacher says; both looked at the same pixels.

    Poses count as much as the teacher believes in them. Maps of other widths are not compared.
    """
    believed = torch.sigmoid(teacher.logits)  # (B, P)
    poses, people = believed.sum().clamp(min=1), torch.sigmoid(teacher.coarse).sum().clamp(min=1)
    joints = torch.sigmoid(teacher.heatmaps).sum().clamp(min=1)
    far = _distance(student.offsets, teacher.offsets)
    coarse_far = _distance(student.coarse_offsets, teacher.coarse_offsets)
    alike = [
        missed(mine, known)
        for mine, known in zip(student.maps, teacher.maps, strict=True)
        if mine.shape == known.shape
    ]
    return {
        "taught_score": divergence(student.logits, teacher.logits) / poses,
        "taught_coarse_score": divergence(student.coarse, teacher.coarse) / people,
        "taught_heatmap": divergence(student.heatmaps, teacher.heatmaps) / joints,
        "taught_offset": (believed * (far + coarse_far / 2)).sum() / poses,
        "taught_maps": torch.stack([believed.new_zeros(()), *alike]).sum(),
    }


def _distance(offsets: Tensor, known: Tensor) -> Tensor:
    """(B, P) mean L1 distance of a pose's joints, in tenths of the teacher's pose; both (B, P, K, 2)."""
    extent = (known.amax(2) - known.amin(2)).mean(-1).clamp(min=SMALLEST)
    return 10 * (offsets - known).abs().sum(-1).mean(-1) / extent
