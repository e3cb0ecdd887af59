"""The vision transformer's block."""

from __future__ import annotations

from torch import Tensor, nn

from edgepose.training.models.attention import Attention, DropPath, Heads, Mlp


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
