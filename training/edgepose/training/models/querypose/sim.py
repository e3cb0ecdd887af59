"""Selective iteration: how much of the old and of the new a part query keeps (section 8.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Selection(nn.Module):
    """One small network opens two gates, channel by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 4, bias=False)
        self.norm = nn.LayerNorm(channels // 4)
        self.fc2 = nn.Linear(channels // 4, 2 * channels)

    def forward(self, new: Tensor, old: Tensor) -> Tensor:
        """(M, J, c) twice -> (M, J, c)."""
        gates = torch.sigmoid(self.fc2(torch.relu(self.norm(self.fc1(new + old)))))
        for_new, for_old = gates.chunk(2, -1)
        return new * for_new + old * for_old
