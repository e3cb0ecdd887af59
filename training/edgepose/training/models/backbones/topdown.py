"""From four maps to one of stride 4: the top-down pyramid of ResNet, the sum of HRNet's branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepose.training.models.blocks import conv_bn, conv_bn_relu


def raised(features: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) -> (B, C, factor*H, factor*W), bilinear.

    Bilinear: what a coarse cell says of a joint's offset is linear in the cell's place and so stays true between
    the cells; copied to all pixels of a cell it is wrong by up to half a cell.
    """
    return functional.interpolate(features, scale_factor=float(factor), mode="bilinear", align_corners=False)


class TopDown(nn.Module):
    """Maps at strides 4, 8, 16, 32 of `widths` channels -> (B, channels, H/4, W/4) (specs/qrpose.md section 3)."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = conv_bn_relu(channels, channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """1x1 on each map; from the coarsest on, x2 and the next one added; one 3x3."""
        finer = [lateral(features) for lateral, features in zip(self.laterals, maps, strict=True)]
        top = finer.pop()
        while finer:
            top = raised(top, 2) + finer.pop()
        return cast(Tensor, self.output(top))


class Branches(nn.Module):
    """Maps at strides 4, 8, 16, 32 of `widths` channels -> (B, channels, H/4, W/4) (specs/qrpose.md section 3).

    One 1x1 convolution of all maps raised to stride 4 and concatenated. As it commutes with raising and splits over
    the concatenated channels, each map has its share of it first: the same function for a fraction of the work.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.shares = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in widths)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The stride-4 map."""
        total, *coarser = (share(features) for share, features in zip(self.shares, maps, strict=True))
        for level, features in enumerate(coarser, 1):
            total = total + raised(features, 2**level)
        return torch.relu(self.norm(total))


class Aggregation(nn.Module):
    """Iterative deep aggregation (DLA paper, section 3.1): map after map is raised and merged into the sum so far.

    The first map has `channels` and the target's size, the others `widths` channels at a size smaller by `factors`.
    """

    def __init__(self, widths: Sequence[int], factors: Sequence[int], channels: int) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.projects = nn.ModuleList(conv_bn_relu(width, channels) for width in widths)
        self.merges = nn.ModuleList(conv_bn_relu(channels, channels) for _ in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """As many maps as came in, all of the first one's shape; the last has seen all others."""
        merged = [maps[0]]
        parts = zip(self.projects, self.merges, maps[1:], self.factors, strict=True)
        for project, merge, features, factor in parts:
            merged.append(merge(merged[-1] + raised(project(features), factor)))
        return merged
