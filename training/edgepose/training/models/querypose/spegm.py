"""Spatial part embedding generation: where in its region a person has each part, and what is there (8.3)."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn


class Parts(NamedTuple):
    """What a region shows of J parts."""

    embeddings: Tensor  # (M, J, c)
    looks: Tensor  # (M, J, 2H*2W) logits of where each of them was read


class PartEmbedding(nn.Module):
    """A doubled map, one attention over it for each part, and one layer for what all of them find."""

    def __init__(self, channels: int, parts: int, part_channels: int) -> None:
        super().__init__()
        self.raise_ = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.attend = nn.Conv2d(channels, parts, 3, 1, 1)
        self.embed = nn.Linear(channels, part_channels)

    def forward(self, regions: Tensor) -> Parts:
        """Of regions (M, C, H, W)."""
        raised = torch.relu(self.raise_(regions))  # (M, C, 2H, 2W)
        looks = self.attend(raised).flatten(2)
        share = torch.softmax(looks, -1)  # over places, not parts
        return Parts(cast(Tensor, self.embed(share @ raised.flatten(2).transpose(-1, -2))), looks)
