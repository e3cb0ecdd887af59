"""Which query should have found which person: one each, at the least cost (specs/querypose.md section 10)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from edgepose.training.models.querypose.boxes import generalised_iou
from edgepose.training.models.querypose.targets import Targets

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
ALPHA, GAMMA = 0.25, 2  # of the focal loss
SMALL = 1e-8  # keeps the logarithms finite
HOPELESS = 1e9  # a cost that is no number: matching goes on, so that the loss shows what went wrong


class Matches(NamedTuple):
    """M pairs, picture by picture, in the order of the queries; int64."""

    image: Tensor  # (M,) index of the picture
    query: Tensor  # (M,) of its N
    person: Tensor  # (M,) of its P


@torch.no_grad()
def matched(logits: Tensor, boxes: Tensor, targets: Targets, sizes: Tensor) -> Matches:
    """Of logits (B, N) and boxes (B, N, 4), by class and box alone; `sizes` (B, 2) width, height.

    Of more people than queries some stay without.
    """
    cost = costs(logits, boxes, targets.boxes, sizes).nan_to_num(HOPELESS, HOPELESS, HOPELESS).cpu().numpy()
    pairs = []
    for image, valid in enumerate(targets.valid.cpu().numpy()):
        people = np.flatnonzero(valid)
        queries, columns = linear_sum_assignment(cost[image][:, people])
        pairs.append(np.stack([np.full_like(queries, image), queries, people[columns]]))
    rows = np.concatenate(pairs, 1) if pairs else np.zeros((3, 0))
    return Matches(*torch.from_numpy(rows.astype(np.int64)).to(logits.device))


def costs(logits: Tensor, boxes: Tensor, people: Tensor, sizes: Tensor) -> Tensor:
    """(B, N, P)."""
    found = torch.sigmoid(logits)
    here = ALPHA * (1 - found) ** GAMMA * -(found + SMALL).log()
    nobody = (1 - ALPHA) * found**GAMMA * -(1 - found + SMALL).log()
    whole = sizes.repeat(1, 2)[:, None]  # width, height, width, height
    l1 = ((boxes / whole)[:, :, None] - (people / whole)[:, None]).abs().sum(-1)
    giou = generalised_iou(boxes[:, :, None], people[:, None])
    return CLASS_COST * (here - nobody)[..., None] + L1_COST * l1 - GIOU_COST * giou
