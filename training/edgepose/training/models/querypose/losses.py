"""The losses of QueryPose, the same four for every stage (section 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edgepose.training.models.querypose.boxes import generalised_iou, inside, relative
from edgepose.training.models.querypose.matching import ALPHA, GAMMA, Matches
from edgepose.training.models.querypose.parts import PARTS
from edgepose.training.models.querypose.pose_stage import Joints
from edgepose.training.models.querypose.targets import Targets

LEAST = 1e-9  # added to a deviation that divides
SPREAD = 0.7  # cells: the deviation of a joint's place on the map where its part is looked for


class Aim(NamedTuple):
    """Where the joints of M matched people should be, in units of the boxes that were found for them."""

    coordinates: Tensor  # (M, K, 2); 0 where the joint does not count
    counts: Tensor  # (M, K): 1 where the joint is labelled and in the box, else 0


class Learned(NamedTuple):
    """What one stage says in training."""

    logits: Tensor  # (B, N)
    boxes: Tensor  # (B, N, 4)
    matches: Matches  # M pairs
    joints: Joints  # of the matched
    aim: Aim
    log_phi: Tensor  # (M, K): the flow's log density of their errors
    looks: Tensor  # (M, J, S²): logits of where in an S x S map of its box each part was read


class Outputs(NamedTuple):
    """All stages, and the size (B, 2) width, height of each picture that boxes are measured by."""

    stages: list[Learned]
    sizes: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """The sum's weights."""

    score: float = 2.0
    box: float = 5.0
    overlap: float = 2.0
    joints: float = 1.0
    look: float = 0.0  # not in the paper


def aim_of(boxes: Tensor, matches: Matches, targets: Targets) -> Aim:
    """In the matched boxes (M, 4), which learn nothing from it."""
    boxes = boxes.detach()
    points = targets.joints[matches.image, matches.person]
    counts = targets.labelled[matches.image, matches.person] & inside(points, boxes)
    coordinates = torch.where(counts[..., None], relative(points, boxes), 0.0)
    return Aim(coordinates, counts.to(boxes.dtype))


def errors_of(joints: Joints, aim: Aim) -> Tensor:
    """(M, K, 2) in units of the deviations; 0 where the joint does not count."""
    return aim.counts[..., None] * (joints.coordinates - aim.coordinates) / joints.deviations


def focal(logits: Tensor, found: Tensor) -> Tensor:
    """Sigmoid focal loss of logits against `found`, both (B, N): the sum."""
    entropy = functional.binary_cross_entropy_with_logits(logits, found, reduction="none")
    right = torch.where(found > 0, torch.sigmoid(logits), torch.sigmoid(-logits))
    share = torch.where(found > 0, ALPHA, 1 - ALPHA)
    return (share * (1 - right) ** GAMMA * entropy).sum()


def residual_likelihood(joints: Joints, aim: Aim, log_phi: Tensor) -> Tensor:
    """Residual log-likelihood: the sum over x and y of all joints that count."""
    s = joints.deviations
    learned = s.log() - log_phi[..., None]  # the flow's density is of both coordinates, and counts for each
    distance = (aim.coordinates - joints.coordinates).abs()
    plain = (s * math.sqrt(2 * math.pi)).log() + distance / (math.sqrt(2) * s + LEAST)
    total: Tensor = (aim.counts[..., None] * (learned + plain)).sum()
    return total


def wanted_looks(aim: Aim, parts: Sequence[Sequence[int]], side: int) -> Tensor:
    """(M, J, side²): where each part is to be read, at its joints that count; 0 where none does.

    Every such joint has the same share, a Gaussian whose samples along each axis add up to 1.
    """
    placed = (aim.coordinates + 0.5) * side - 0.5  # in cells whose centres are integers
    apart = (placed[..., None] - torch.arange(side, device=placed.device)) / SPREAD
    x, y = torch.exp(-0.5 * apart**2).unbind(2)  # (M, K, side)
    x, y = (line / line.sum(-1, keepdim=True).clamp(min=LEAST) for line in (x, y))
    spots = aim.counts[..., None] * (y[..., :, None] * x[..., None, :]).flatten(2)
    each = [aim.counts[:, list(part)].sum(1).clamp(min=1) for part in parts]
    return torch.stack(
        [spots[:, list(part)].sum(1) / n[:, None] for part, n in zip(parts, each, strict=True)], 1
    )


def looked_away(looks: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of looks (M, J, S²) against where they should be: the sum over people, mean of parts."""
    entropy: Tensor = -(wanted * torch.log_softmax(looks.float(), -1)).sum()
    return entropy / looks.shape[1]


@dataclass(frozen=True, slots=True)
class Loss:
    """The weighted terms of every stage: the paper's four, and where parts are looked for if that counts."""

    weights: Weights = Weights()
    parts: Sequence[Sequence[int]] = PARTS["coco17"]  # the joints of each

    def __call__(self, outputs: Outputs, targets: Targets, people: float | None = None) -> dict[str, Tensor]:
        """Terms by name, to be summed: `score_0`, `box_0`, `overlap_0`, `joints_0`, and so on for each stage.

        `look_0` is there if it has a weight: how far attention is from the joints that it is to tell of.

        `people` is the mean number of people that a process has in its batch; None counts this batch's.
        """
        count = max(1.0, float(targets.valid.sum()) if people is None else people)
        terms: dict[str, Tensor] = {}
        for index, stage in enumerate(outputs.stages):
            named = self._of_stage(stage, targets, outputs.sizes)
            terms |= {f"{name}_{index}": term / count for name, term in named.items()}
        return terms

    def _of_stage(self, stage: Learned, targets: Targets, sizes: Tensor) -> dict[str, Tensor]:
        image, query, person = stage.matches
        found = torch.zeros_like(stage.logits)
        found[image, query] = 1.0
        boxes, people = stage.boxes[image, query], targets.boxes[image, person]
        joints = stage.joints.coordinates.shape[1]
        w = self.weights
        terms = {
            "score": w.score * focal(stage.logits, found),
            "box": w.box * ((boxes - people) / sizes.repeat(1, 2)[image]).abs().sum(),
            "overlap": w.overlap * (1 - generalised_iou(boxes, people)).sum(),
            "joints": w.joints / joints * residual_likelihood(stage.joints, stage.aim, stage.log_phi),
        }
        if w.look:
            wanted = wanted_looks(stage.aim, self.parts, math.isqrt(stage.looks.shape[2]))
            terms["look"] = w.look * looked_away(stage.looks, wanted)
        return terms
