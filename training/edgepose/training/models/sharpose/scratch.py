"""Starting SHaRPose from nothing, where there is no MAE checkpoint of its width."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from edgepose.training.models.sharpose.network import SharPose

QUIET = 0.1  # of the head's random last layer: nearly empty heatmaps are a better start than noise
FASTEST = 8.0  # half waves over a crop, of the position table's fastest channels


@torch.no_grad()
def start_from_scratch(model: SharPose) -> None:
    """Tell joints and places apart from the first step on, and let the blocks mix them.

    Differs: the authors start from MAE weights, and joints and places at zero, from where random blocks learn
    more slowly (the tiny model's heatmap error after 28,000 crops is above what it is here after 4,000).
    """
    backbone, (width, height) = model.backbone, model.config.grid
    for tokens in (backbone.keypoint_tokens, backbone.quality_token):
        nn.init.normal_(tokens)
    for cells, table in enumerate(backbone.pos_embed_list, 1):  # of a coarse cell's side
        table.copy_(waves((cells * width, cells * height), model.config.channels))
    for module in backbone.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    last = cast(nn.Linear, model.keypoint_head.heatmap_mlp[-1])
    last.weight.mul_(QUIET)
    nn.init.zeros_(last.bias)


def waves(grid: tuple[int, int], channels: int) -> Tensor:
    """Sines and cosines of where in the crop each cell of a grid (width, height) lies: (1, w*h, channels)."""
    across, down = ((torch.arange(count) + 0.5) / count for count in grid)
    y, x = torch.meshgrid(down, across, indexing="ij")
    speeds = math.pi * torch.logspace(-1, math.log2(FASTEST), channels // 4, base=2)
    phases = torch.cat([place.flatten()[:, None] * speeds for place in (x, y)], 1)
    table = torch.cat([phases.sin(), phases.cos()], 1)
    return nn.functional.pad(table, (0, channels - table.shape[1]))[None]
