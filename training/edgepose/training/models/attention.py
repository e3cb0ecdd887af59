"""The parts of a transformer that families and backbones share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Heads(NamedTuple):
    """What the h heads of one attention layer compare and mix; each (..., h, T, d)."""

    queries: Tensor  # scaled
    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head self-attention, in the two steps that mining and export need to see apart."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.head_dim = channels // heads
        self.scale = self.head_dim**-0.5  # on the queries alone: an export can fold it into `qkv`
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., T, C) -> (..., T, C); `bias` as of `mix`."""
        return self.mix(self.split(tokens), bias)

    def split(self, tokens: Tensor) -> Heads:
        """(..., T, C) -> what the heads see of it."""
        parts = torch.unflatten(self.qkv(tokens), -1, (3, -1, self.head_dim))
        n = parts.ndim
        queries, keys, values = parts.permute(n - 3, *range(n - 4), n - 2, n - 4, n - 1).unbind()
        return Heads(queries * self.scale, keys, values)

    def mix(self, heads: Heads, bias: Tensor | None = None) -> Tensor:
        """-> (..., T, C); `bias` (..., h, T, T) joins what the softmax compares.

        The probabilities are read here alone, so that the chain can become one kernel.
        """
        logits = heads.queries @ heads.keys.transpose(-1, -2)
        mixed = torch.softmax(logits if bias is None else logits + bias, -1) @ heads.values
        out: Tensor = self.proj(mixed.transpose(-2, -3).flatten(-2))
        return out


class Mlp(nn.Module):
    """Two linear layers around an activation, by default an exact GELU and four times as wide inside."""

    def __init__(self, channels: int, hidden: int | None = None, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        hidden = hidden or 4 * channels
        self.fc1 = nn.Linear(channels, hidden)
        self.act = act()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: in training, a share `rate` of the batch skips the branch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), of the same expectation."""
        if not self.training or self.rate == 0:
            return branch
        each = (branch.shape[0], *[1] * (branch.ndim - 1))
        kept = torch.rand(each, device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)
