"""From a backbone's four maps to four of equal channels, at strides 4, 8, 16 and 32 (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepose.training.models.backbones.topdown import raised


class Fpn(nn.Module):
    """Each map with what the coarser ones know: detectron2's feature pyramid, without its unused p6."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """From the coarsest on, x2 (nearest, as the weights were trained) and the next finer one added."""
        laterals = [lateral(features) for lateral, features in zip(self.laterals, maps, strict=True)]
        summed = [laterals.pop()]
        while laterals:
            summed.append(laterals.pop() + functional.interpolate(summed[-1], scale_factor=2.0))
        return [output(features) for output, features in zip(self.outputs, reversed(summed), strict=True)]


class HrFpn(nn.Module):
    """All maps made one at stride 4, which is then halved again and again."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(sum(widths), channels, 1)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in widths)

    def reduced(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, channels, H/4, W/4) of all maps."""
        same = [maps[0], *(raised(features, 2**level) for level, features in enumerate(maps[1:], 1))]
        return cast(Tensor, self.reduction(torch.cat(same, 1)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Level i is the mean over 2^i x 2^i pixels."""
        reduced = self.reduced(maps)
        sizes = [functional.avg_pool2d(reduced, 2**level) if level else reduced for level in range(4)]
        return [output(features) for output, features in zip(self.outputs, sizes, strict=True)]


class HrFpnV1(HrFpn):
    """On the way down each level also hears its own map again."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__(widths, channels)
        # Here no 1x1 and 3x3 convolution but the reduction has a bias (section 16).
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in widths[1:])
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Level i is the level before it halved, and its own map."""
        levels = [self.reduced(maps)]
        for lateral, features in zip(self.laterals, maps[1:], strict=True):
            levels.append(functional.avg_pool2d(levels[-1], 2) + lateral(features))
        return [output(features) for output, features in zip(self.outputs, levels, strict=True)]
