"""The two static inference graphs of SHaRPose: the look at everybody, and the second look (section 9)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgepose.training.models.attention import Attention

if TYPE_CHECKING:
    from edgepose.training.models.sharpose.network import SharPose


def folded(network: SharPose) -> SharPose:
    """A copy for export whose attention has its scale in the weights of its queries, and 1 beside them.

    Engines then see one chain from queries, keys and values to the result (section 9, item 4).
    """
    result = copy.deepcopy(network)
    with torch.no_grad():
        for module in result.modules():
            if isinstance(module, Attention):
                queries = slice(module.proj.in_features)
                module.qkv.weight[queries] *= module.scale
                module.qkv.bias[queries] *= module.scale
                module.scale = 1.0  # a product with 1 is left out of the graph
    return result


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
