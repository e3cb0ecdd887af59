"""The top-down pyramid of specs/qrpose.md section 3: from maps at strides 4 to 32 to one of stride 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from edgepose.training.models.blocks import conv_bn_relu


def raised(features: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) -> (B, C, factor*H, factor*W); bilinear, for the reason that ResidualPyramid gives."""
    return functional.interpolate(features, scale_factor=float(factor), mode="bilinear", align_corners=False)


class TopDown(nn.Module):
    """Maps at strides 4, 8, 16, 32 of `widths` channels -> (B, channels, H/4, W/4)."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = conv_bn_relu(channels, channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """1x1 on each map; from the coarsest on, x2 and the next finer one added; one 3x3."""
        laterals = [lateral(features) for lateral, features in zip(self.laterals, maps, strict=True)]
        top = laterals.pop()
        while laterals:
            top = raised(top, 2) + laterals.pop()
        return cast(Tensor, self.output(top))
