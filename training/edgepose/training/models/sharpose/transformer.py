"""The vision transformer's block, in the parts that mining and export need to see apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Heads(NamedTuple):
    """What the h heads of one attention layer compare and mix; each (B, h, T, d)."""

    queries: Tensor  # scaled
    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.head_dim = channels // heads
        self.scale = self.head_dim**-0.5  # on the queries alone: an export can fold it into `qkv`
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def split(self, tokens: Tensor) -> Heads:
        """(B, T, C) -> what the heads see of it."""
        parts = torch.unflatten(self.qkv(tokens), -1, (3, -1, self.head_dim))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind()
        return Heads(queries * self.scale, keys, values)

    def mix(self, heads: Heads) -> Tensor:
        """-> (B, T, C). The probabilities are read here alone, so that the chain can become one kernel."""
        mixed = torch.softmax(heads.queries @ heads.keys.mT, -1) @ heads.values
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers around an exact GELU, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: in training, a share `rate` of the persons skips the branch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), of the same expectation."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


class Block(nn.Module):
    """Attention and MLP, normalised before, each beside a shortcut."""

    def __init__(self, channels: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Heads]:
        """(B, T, C) -> the same shape, and what its attention compared, for mining."""
        heads = self.attn.split(self.norm1(tokens))
        tokens = tokens + self.drop_path(self.attn.mix(heads))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens))), heads
