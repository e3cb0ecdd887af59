"""The two static inference graphs of SHaRPose: the look at everybody, and the second look (section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from edgepose.training.models.sharpose.network import SharPose


class CoarseGraph(nn.Module):
    """Normalised RGB crops (B, 3, H, W) -> the first look, and what the second one takes over from it."""

    def __init__(self, network: SharPose) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`coarse_heatmaps` (B, K, H/4, W/4), `quality` (B,), `region_order` (B, n0) int32,

        `reuse_features` and `coarse_embedding` (B, n0, C).
        """
        coarse = self.network.backbone.coarse(images)
        return {
            "coarse_heatmaps": self.network.keypoint_head(coarse.tokens),
            "quality": coarse.quality,
            "region_order": coarse.order.to(torch.int32),
            "reuse_features": coarse.reuse,
            "coarse_embedding": coarse.embedded,
        }


class FineGraph(nn.Module):
    """The same crops and three outputs of `CoarseGraph` -> sharper heatmaps."""

    def __init__(self, network: SharPose) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, images: Tensor, region_order: Tensor, reuse_features: Tensor, coarse_embedding: Tensor
    ) -> dict[str, Tensor]:
        """`heatmaps` (B, K, H/4, W/4)."""
        order = region_order.to(torch.int64)
        tokens = self.network.backbone.fine(images, order, reuse_features, coarse_embedding)
        return {"heatmaps": self.network.keypoint_head(tokens)}
