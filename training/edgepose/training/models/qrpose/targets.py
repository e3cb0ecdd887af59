"""What QR-Pose should say at each map pixel, from labelled people (specs/qrpose.md section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from edgepose.training.batch import People
from edgepose.training.models.qrpose.network import Choice

RADIUS = 1  # map pixels: 3x3 positives, nine times the poses to learn from, inside one 5x5 peak window
RADIUS_IOU = 0.7  # a box whose corners move by the Gaussian's radius keeps this overlap
HEATMAP_SIGMA = 1.5  # map pixels
HINT_NOISE = (
    0.3  # of sqrt(area), the largest standard deviation: as far off as O1 is after a few hundred steps
)
STRIDE = 4.0  # input pixels a map pixel


class Targets(NamedTuple):
    """People in map pixels and the maps made of them; P people, padding included."""

    joints: Tensor  # (B, P, K, 2)
    labelled: Tensor  # (B, P, K) bool
    area: Tensor  # (B, P) map px²
    centres: Tensor  # (B, P, 2) whole numbers
    spread: Tensor  # (B, P) sigma of the Gaussian at the centre
    owner: Tensor  # (B, H*W) index of the person a pixel belongs to, -1 for background
    gaussian: Tensor  # (B, H*W) 0..1
    counts: Tensor  # (B, H*W) 0 where the background is to be ignored, else 1


def assign(people: People, grid: Tensor, radius: int = RADIUS) -> Targets:
    """Targets for the map whose pixels are `grid` (H*W, 2) x, y; positives are within `radius` of a centre.

    Raises nothing: a batch without people gives an empty assignment.
    """
    joints, area = people.joints / STRIDE, people.area / STRIDE**2  # area is squared: so is its scale
    valid = people.valid & people.labelled.any(-1)
    count = people.labelled.sum(-1, keepdim=True).clamp(min=1)
    centres = ((joints * people.labelled[..., None]).sum(2) / count).floor()
    near = (grid - centres[:, :, None]).abs().amax(-1) <= radius  # (B, P, H*W)
    # An overlap belongs to the smaller person.
    size = torch.where(near & valid[..., None], area[..., None], torch.inf)
    smallest, owner = size.min(1)
    owner = torch.where(smallest.isinf(), -1, owner)
    spread = _spread(joints, people.labelled)
    gaussian = (_gaussians(grid, centres, spread) * valid[..., None]).amax(1)
    counts = ~_inside(grid, people.boxes / STRIDE, people.ignored).any(1) | (owner >= 0)
    return Targets(joints, people.labelled, area, centres, spread, owner, gaussian, counts.float())


def _gaussians(grid: Tensor, centres: Tensor, spread: Tensor) -> Tensor:
    """(B, P, H*W)."""
    squared = (grid - centres[:, :, None]).square().sum(-1)
    return torch.exp(-squared / (2 * spread[..., None].square()))


def _inside(grid: Tensor, boxes: Tensor, chosen: Tensor) -> Tensor:
    """(B, P, H*W) bool: pixels in the boxes (B, P, 4) x0, y0, x1, y1 of the chosen (B, P)."""
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    return ((grid >= low) & (grid <= high)).all(-1) & chosen[..., None]


def _spread(joints: Tensor, labelled: Tensor) -> Tensor:
    """(B, P) sigma s = (2 rho + 1) / 6 from the tight box of the labelled joints."""
    hidden = ~labelled[..., None]
    high = joints.masked_fill(hidden, -torch.inf).amax(2)
    low = joints.masked_fill(hidden, torch.inf).amin(2)
    sides = (high - low).clamp(min=1).nan_to_num(1.0, neginf=1.0)
    return (2 * corner_radius(sides[..., 0], sides[..., 1]) + 1) / 6


def corner_radius(width: Tensor, height: Tensor) -> Tensor:
    """How far both corners of a box may move so that it keeps RADIUS_IOU.

    Of CornerNet's three cases (the box grows, shrinks or is shifted) shrinking always allows the least:
    (w - 2r)(h - 2r) = IoU w h, whose smaller root this is.
    """
    total, product = width + height, width * height
    return (total - (total.square() - 4 * product * (1 - RADIUS_IOU)).sqrt()) / 4


def heatmaps(targets: Targets, size: tuple[int, int]) -> Tensor:
    """(B, K, H, W) 0..1 of labelled joints, for a map of (W, H); training's auxiliary task."""
    x = torch.arange(size[0], device=targets.joints.device)
    y = torch.arange(size[1], device=targets.joints.device)
    across = torch.exp(-(x - targets.joints[..., 0:1]).square() / (2 * HEATMAP_SIGMA**2))  # (B, P, K, W)
    down = torch.exp(-(y - targets.joints[..., 1:2]).square() / (2 * HEATMAP_SIGMA**2))
    across = across * targets.labelled[..., None]
    result = across.new_zeros((*across.shape[:1], across.shape[2], size[1], size[0]))
    for person in range(across.shape[1]):  # one person at a time: all at once needs P maps of memory
        result = torch.maximum(result, down[:, person, :, :, None] * across[:, person, :, None, :])
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Chooser:
    """Training's pixels: all positives, likely and random background, and positives with hints.

    Evaluating the heads there and not at all pixels costs a third. The random ones stand for all pixels that
    were not likely, as a sum over a sample does: else S stays high in the background, where only the dense
    graph reads it.
    A hint is the true pose with noise in place of O1: KQE learns from the first step on to find a joint from
    near it, while the coarse offsets are still far off.
    """

    targets: Targets
    grid: Tensor  # (H*W, 2)
    count: int  # pixels a picture without hints, or more where people crowd
    hinted: int  # more of them with hints
    generator: torch.Generator | None = None  # None: the device's own

    def choose(self, coarse: Tensor) -> Choice:
        """From coarse logits (B, H, W)."""
        logits, owner = coarse.flatten(1), self.targets.owner
        half = self.count // 2
        # However many there are: one left out would learn that it is background.
        likely = max(half, int((owner >= 0).sum(1).max()) + half // 4)
        others = self.count - half
        first = torch.where(owner >= 0, torch.inf, logits).topk(likely, 1).indices
        random = self._random(logits)
        rest = random.scatter(1, first, -1.0).topk(others, 1).indices
        again = torch.where(owner >= 0, 1 + random, random).topk(self.hinted, 1).indices
        pixels = torch.cat([first, rest, again], 1)
        share = torch.ones_like(pixels, dtype=logits.dtype)
        share[:, likely : likely + others] = (logits.shape[1] - likely) / others
        return Choice(pixels, share, self._hints(again))

    def _hints(self, pixels: Tensor) -> Tensor:
        """(B, D, K, 2) noisy offsets of the people who own the pixels (B, D), background included."""
        person = self.targets.owner.gather(1, pixels).clamp(min=0)  # (B, D)
        row = torch.arange(len(person), device=person.device)[:, None]
        joints, size = self.targets.joints[row, person], self.targets.area[row, person].sqrt()
        share = HINT_NOISE * self._random(person)  # of the person's size, another one for each pose
        noise = torch.randn(joints.shape, generator=self.generator, device=joints.device)
        return joints - self.grid[pixels][:, :, None] + noise * (share * size)[..., None, None]

    def _random(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, device=like.device)
