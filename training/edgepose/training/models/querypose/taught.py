"""What a QueryPose network learns from one that knows better: the last stage's people and their joints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edgepose.training.models.querypose.losses import Outputs
from edgepose.training.models.querypose.network import QueryPose
from edgepose.training.models.querypose.targets import Targets
from edgepose.training.models.teaching import divergence


class Known(NamedTuple):
    """What the teacher says of the same N queries, and of the student's M matched people."""

    logits: Tensor  # (B, N)
    boxes: Tensor  # (B, N, 4)
    coordinates: Tensor  # (M, K, 2), in units of the teacher's boxes


@torch.no_grad()
def known(teacher: QueryPose, images: Tensor, outputs: Outputs, targets: Targets) -> Known:
    """Ask the teacher, a network of the same queries, about the student's batch and its matches."""
    maps = teacher.backbone(images)
    told = teacher.boxed(maps, outputs.sizes)
    joints = teacher.posed_along(maps[0], told, [stage.matches for stage in outputs.stages], targets)
    return Known(told[-1].logits, told[-1].boxes, joints.coordinates)


def taught(outputs: Outputs, teacher: Known, people: float) -> dict[str, Tensor]:
    """Terms by name, all 0 for a student that says what the teacher says. `people` as of `Loss`."""
    last = outputs.stages[-1]
    image, query, _ = last.matches
    moved = (last.boxes - teacher.boxes)[image, query] / outputs.sizes.repeat(1, 2)[image]
    apart = (last.joints.coordinates - teacher.coordinates).abs().sum(-1).mean(-1)
    count = max(1.0, people)
    return {
        "taught_score": divergence(last.logits, teacher.logits) / count,
        "taught_box": moved.abs().sum() / count,
        "taught_joints": apart.sum() / count,
    }
