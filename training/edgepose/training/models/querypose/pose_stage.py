"""One of the stages that find joints: what a person's region shows renews their part queries (section 8)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepose.training.models.attention import Attention, Mlp
from edgepose.training.models.querypose.config import Config
from edgepose.training.models.querypose.dynamic import DynamicConv
from edgepose.training.models.querypose.parts import PARTS, places
from edgepose.training.models.querypose.sim import Selection
from edgepose.training.models.querypose.spegm import PartEmbedding

CELLS = 14  # of a side of the region in which joints are looked for
TINY = 1e-12  # squared length below which a part query has no direction


class Renewed(NamedTuple):
    """What a stage makes of M people's queries."""

    queries: Tensor  # (M, C), of the people
    parts: Tensor  # (M, J, c), of their parts
    looks: Tensor  # (M, J, (2*CELLS)²) logits of where in the region each part was read


class Joints(NamedTuple):
    """Where a stage believes the joints of M people to be, in units of their boxes (`boxes.relative`)."""

    coordinates: Tensor  # (M, K, 2)
    deviations: Tensor  # (M, K, 2) in 0..1

    @property
    def scores(self) -> Tensor:
        """(M, K): the surer, the nearer to 1."""
        return 1 - self.deviations.mean(-1)


def chance(logits: Tensor) -> Tensor:
    """Sigmoid, of each number the same whatever stands beside it.

    torch's own rounds the last few of a tensor in another way, and gating could be seen.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.sigmoid(logits)
    return functional.logsigmoid(logits).exp()


class Instance(nn.Module):
    """The full version's second look at a person (8.2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        C = config.channels
        self.interaction = DynamicConv(C, config.dynamic_channels, CELLS)
        self.interaction_norm = nn.LayerNorm(C)
        self.feed = Mlp(C, config.hidden, nn.ReLU)
        self.feed_norm = nn.LayerNorm(C)

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        """(M, C) and (M, C, 14, 14) -> (M, C)."""
        queries = self.interaction_norm(queries + self.interaction(queries, regions))
        out: Tensor = self.feed_norm(queries + self.feed(queries))
        return out


class PoseStage(nn.Module):
    """Convolutions over a region, part embeddings, and part queries that meet within a person."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        parts = PARTS[config.skeleton]
        C, c, J = config.channels, config.part_channels, len(parts)
        widths = [C, *[config.pose_channels] * (config.pose_layers - 1), C]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps += [nn.Conv2d(before, after, 3, 1, 1), nn.ReLU()]
        self.convs = nn.Sequential(*steps)
        self.instance = Instance(config) if config.full else None
        self.embedding = PartEmbedding(C, J, c)
        self.residual = nn.ModuleList(nn.Linear(C, c) for _ in parts)
        self.selection = Selection(c)
        self.attention = Attention(c, config.heads)
        self.attention_norm = nn.LayerNorm(c)
        self.feed = Mlp(c, config.hidden, nn.ReLU)
        self.feed_norm = nn.LayerNorm(c)
        self.coordinates = nn.ModuleList(nn.Linear(c, 2 * len(part)) for part in parts)
        self.deviations = nn.ModuleList(nn.Linear(c, 2 * len(part)) for part in parts)
        self.places = places(parts)

    def forward(self, queries: Tensor, regions: Tensor, parts: Tensor) -> Renewed:
        """From instance queries (M, C), regions (M, C, 14, 14) and part queries (M, J, c)."""
        regions = self.convs(regions)
        if self.instance is not None:
            queries = self.instance(queries, regions)
        seen = self.embedding(regions)
        parts = self.selection(seen.embeddings + self.own(queries), parts)
        parts = self.attention_norm(parts + self.attention(parts))
        return Renewed(queries, self.feed_norm(parts + self.feed(parts)), seen.looks)

    def own(self, queries: Tensor) -> Tensor:
        """What an instance query adds to each of its parts: (M, C) -> (M, J, c). One layer for all parts."""
        weight = torch.cat([layer.weight for layer in self.residual])  # type: ignore[misc]
        bias = torch.cat([layer.bias for layer in self.residual])  # type: ignore[misc]
        # No `linear`: NNCF looks for a weight of its own behind each.
        return torch.unflatten(queries @ weight.transpose(0, 1) + bias, -1, (len(self.residual), -1))

    def joints(self, parts: Tensor) -> Joints:
        """Part queries (M, J, c) -> joints in the skeleton's order."""
        # Only their direction tells where, their length how sure (8.6).
        direction = parts * parts.square().sum(-1, keepdim=True).clamp(min=TINY).rsqrt()
        coordinates = self._in_order(self.coordinates, direction)
        return Joints(coordinates.float(), chance(self._in_order(self.deviations, parts).float()))

    def _in_order(self, layers: nn.ModuleList, parts: Tensor) -> Tensor:
        """(M, K, 2): each part's own layer, then the joints in order."""
        values = torch.cat([layer(parts[:, part]) for part, layer in enumerate(layers)], -1)
        order = torch.tensor(self.places, dtype=torch.int32, device=values.device)
        return torch.unflatten(values, -1, (-1, 2)).index_select(1, order)
