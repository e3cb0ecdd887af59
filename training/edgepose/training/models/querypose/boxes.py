"""Arithmetic of boxes (..., 4) x0, y0, x1, y1 in input pixels, whose pixels have their corner at integers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_STEP = math.log(100_000 / 16)  # of a side's logarithm: detectron2's guard against overflow
SMALLEST_AREA = 1e-9  # square pixels, so that two empty boxes divide


def corners(centred: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> x0, y0, x1, y1."""
    centre, size = centred.chunk(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes after a stage's `deltas` (..., 4): centre in half sides, then sides in logarithms (section 7)."""
    low, high = boxes.chunk(2, -1)
    size = high - low
    step, growth = deltas.chunk(2, -1)
    centre = low + size / 2 + step / 2 * size
    return corners(torch.cat([centre, size * growth.clamp(max=LARGEST_STEP).exp()], -1))


def area(boxes: Tensor) -> Tensor:
    """(...) square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """(...) in -1..1, of boxes that broadcast."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    shared = overlap[..., 0] * overlap[..., 1]  # no `prod`: its gradient looks for zeros, and waits for a GPU
    hull = (around[..., 0] * around[..., 1]).clamp(min=SMALLEST_AREA)
    union = (area(a) + area(b) - shared).clamp(min=SMALLEST_AREA)
    return shared / union - (hull - union) / hull


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(..., K) bool: whether points (..., K, 2) lie in their box (..., 4), borders included."""
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    return ((points >= low) & (points <= high)).all(-1)


def relative(points: Tensor, boxes: Tensor) -> Tensor:
    """Points (..., K, 2) in units of their box (..., 4): 0 its centre, -0.5 and 0.5 its edges."""
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    return (points - low) / (high - low) - 0.5


def absolute(points: Tensor, boxes: Tensor) -> Tensor:
    """The way back from `relative`."""
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    return (points + 0.5) * (high - low) + low
