"""One of the stages that look for people: queries meet, look into their boxes, and move them (section 7)."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

from torch import Tensor, nn

from edgepose.training.models.attention import Attention, Mlp
from edgepose.training.models.querypose.config import Config
from edgepose.training.models.querypose.dynamic import DynamicConv

CELLS = 7  # of a side of the region that a query sees
PRIOR = 0.01  # share of the queries that find a person, before training


class Found(NamedTuple):
    """What a box stage says of N queries."""

    queries: Tensor  # (B, N, C)
    logits: Tensor  # (B, N) that somebody is there
    deltas: Tensor  # (B, N, 4) by which the boxes should move


class BoxStage(nn.Module):
    """Attention among the queries of a picture, a look into each box, and two small towers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        C = config.channels
        self.attention = Attention(C, config.heads)
        self.attention_norm = nn.LayerNorm(C)
        self.interaction = DynamicConv(C, config.dynamic_channels, CELLS)
        self.interaction_norm = nn.LayerNorm(C)
        self.feed = Mlp(C, config.hidden, nn.ReLU)
        self.feed_norm = nn.LayerNorm(C)
        self.classify, self.logit = _tower(C, 1), nn.Linear(C, 1)
        self.regress, self.delta = _tower(C, 3), nn.Linear(C, 4)

    def start(self) -> None:
        """Few queries find somebody, before training."""
        nn.init.constant_(cast(Tensor, self.logit.bias), -math.log(1 / PRIOR - 1))

    def forward(self, queries: Tensor, regions: Tensor) -> Found:
        """(B, N, C) and what lies in their boxes, (B*N, C, 7, 7)."""
        B, N, C = queries.shape
        flat = self.attention_norm(queries + self.attention(queries)).flatten(0, 1)
        flat = self.interaction_norm(flat + self.interaction(flat, regions))
        flat = self.feed_norm(flat + self.feed(flat))
        # Places stay float32 where mixed precision halves the layers.
        logits = self.logit(self.classify(flat)).float().reshape(B, N)
        deltas = self.delta(self.regress(flat)).float().reshape(B, N, 4)
        return Found(flat.reshape(B, N, C), logits, deltas)


def _tower(channels: int, layers: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for _ in range(layers):
        steps += [nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()]
    return nn.Sequential(*steps)
