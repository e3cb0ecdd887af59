"""Layers whose weights each query makes for itself (`Dyn` of sections 7 and 8.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DynamicConv(nn.Module):
    """Two 1x1 layers of a query's own weights over its region, then one layer over all of it."""

    def __init__(self, channels: int, inner: int, cells: int) -> None:
        super().__init__()
        self.inner = inner
        self.dynamic_layer = nn.Linear(channels, 2 * channels * inner)
        self.norm1 = nn.LayerNorm(inner)
        self.norm2 = nn.LayerNorm(channels)
        self.out_layer = nn.Linear(cells**2 * channels, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        """(M, C) and its regions (M, C, cells, cells) -> (M, C)."""
        narrow, wide = self.dynamic_layer(queries).chunk(2, -1)  # the first half first
        seen = regions.flatten(2).transpose(-1, -2)  # (M, cells², C)
        seen = torch.relu(self.norm1(seen @ torch.unflatten(narrow, -1, (-1, self.inner))))
        seen = torch.relu(self.norm2(seen @ torch.unflatten(wide, -1, (self.inner, -1))))
        return torch.relu(self.norm3(self.out_layer(seen.flatten(1))))
