"""What a QueryPose network learns from one that knows better: the last stage's people and their joints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edgepose.training.models.querypose.losses import Learned, Outputs
from edgepose.training.models.querypose.network import QueryPose, Told
from edgepose.training.models.teaching import divergence


class Known(NamedTuple):
    """What the teacher says of the same N queries, and of the student's M matched people."""

    logits: Tensor  # (B, N)
    boxes: Tensor  # (B, N, 4)
    coordinates: Tensor  # (M, K, 2), in units of the teacher's boxes


@torch.no_grad()
def known(teacher: QueryPose, images: Tensor, outputs: Outputs) -> Known:
    """Ask the teacher, a network of the same queries, about the student's batch."""
    maps = teacher.backbone(images)
    told: list[Told] = teacher.boxed(maps, outputs.sizes)
    image, query, person = outputs.stages[-1].matches
    rows = 1 + int(person.max()) if len(person) else 1
    chosen = query.new_zeros(len(outputs.sizes), rows).index_put((image, person), query)
    joints = teacher.posed(maps[0], [stage.chosen(chosen) for stage in told])
    return Known(told[-1].logits, told[-1].boxes, joints.coordinates[image * rows + person])


def taught(outputs: Outputs, teacher: Known, people: float) -> dict[str, Tensor]:
    """Terms by name, all 0 for a student that says what the teacher says. `people` as of `Loss`."""
    last: Learned = outputs.stages[-1]
    image, query, _ = last.matches
    moved = (last.boxes - teacher.boxes)[image, query] / outputs.sizes.repeat(1, 2)[image]
    apart = (last.joints.coordinates - teacher.coordinates).abs().sum(-1).mean(-1)
    count = max(1.0, people)
    return {
        "taught_score": divergence(last.logits, teacher.logits) / count,
        "taught_box": moved.abs().sum() / count,
        "taught_joints": apart.sum() / count,
    }
