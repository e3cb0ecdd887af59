"""The small backbone for CPUs: a residual net of five strides and a top-down path back to stride 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn import functional

from edgepose.training.models.blocks import Residual, conv_bn_relu

_Residuals = TypeVar("_Residuals", bound="Residuals")


class Residuals(nn.Module):
    """Images (B, 3, H, W), H and W multiples of 32 -> four maps at strides 4, 8, 16 and 32.

    `widths` are the channels at strides 2, 4, 8, 16 and 32 (specs/qrpose.md section 3, profile tiny).
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        w2, w4, w8, w16, w32 = widths
        self.widths = (w4, w8, w16, w32)
        self.stem = conv_bn_relu(3, w2, 3, 2)
        self.stage4 = Residual(w2, w4, 2)
        self.stage8 = Residual(w4, w8, 2)
        self.stage16 = nn.Sequential(Residual(w8, w16, 2), Residual(w16, w16))
        self.stage32 = nn.Sequential(Residual(w16, w32, 2), Residual(w32, w32))
        self._frozen: list[nn.Module] = []

    def freeze(self, count: int) -> None:
        """The first `count` of the five stages learn no more, nor do their normalisations measure batches.

        No `FrozenNorm`s: files keep their keys.
        """
        stages = (self.stem, self.stage4, self.stage8, self.stage16, self.stage32)
        self._frozen = [stage.requires_grad_(False) for stage in stages[:count]]
        self.train(self.training)

    def train(self: _Residuals, mode: bool = True) -> _Residuals:
        """As any module, but for what is frozen."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def taken(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the weights of a network with such a backbone those of these layers, by their names here.

        Of wider layers the first channels.
        """
        prefix = "backbone.body." if any(key.startswith("backbone.body.") for key in weights) else "backbone."
        own, theirs = self.state_dict(), {key.removeprefix(prefix): value for key, value in weights.items()}
        return {
            key: theirs[key][tuple(slice(side) for side in value.shape[: theirs[key].ndim])]
            for key, value in own.items()
            if key in theirs
        }

    def maps(self, images: Tensor) -> list[Tensor]:
        """The four."""
        c4 = self.stage4(self.stem(images))
        c8 = self.stage8(c4)
        c16 = self.stage16(c8)
        return [c4, c8, c16, self.stage32(c16)]

    def forward(self, images: Tensor) -> list[Tensor] | Tensor:
        """The four."""
        return self.maps(images)


class ResidualPyramid(Residuals):
    """The same and a way back: images -> features (B, channels, H/4, W/4)."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__(widths)
        *finer, w32 = self.widths
        self.top = nn.Conv2d(w32, channels, 1)
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in reversed(finer))
        self.merges = nn.ModuleList(conv_bn_relu(channels, channels) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        """The stride-4 map.

        Bilinear upsampling: what a coarse cell says of a joint's offset is linear in the cell's place and so
        stays true between the cells; copied to all pixels of a cell it is wrong by up to half a cell.
        """
        *finer, c32 = self.maps(images)
        top = self.top(c32)
        for lateral, merge, features in zip(self.laterals, self.merges, reversed(finer), strict=True):
            raised = functional.interpolate(top, scale_factor=2.0, mode="bilinear", align_corners=False)
            top = merge(raised + lateral(features))
        return cast(Tensor, top)
