"""Where a joint's token should look: at the part of the picture where its joint is. Not in the paper."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgepose.training.models.attention import Heads
from edgepose.training.models.sharpose.losses import peaks
from edgepose.training.models.sharpose.network import CELL, MAP_STRIDE, PATCH, Config
from edgepose.training.models.sharpose.targets import Targets

FLOOR = 1e-3  # of a probability, so that a joint nobody could see does not rule


@contextlib.contextmanager
def watched(blocks: nn.ModuleList) -> Iterator[list[Heads]]:
    """What the blocks' attention compares inside, in the order in which they are called."""
    seen: list[Heads] = []

    def note(_: nn.Module, __: Any, output: tuple[Tensor, Heads]) -> None:
        seen.append(output[1])

    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def guidance(seen: Sequence[Heads], order: Tensor, targets: Targets, config: Config) -> Tensor:
    """Mean -log of the attention that the joints' tokens pay to the token of the joint's own place.

    `seen` are the blocks of the coarse look, then those of the fine look; those that rank the cells count.
    `order` (B, n0) is the ranking.
    """
    places = peaks(targets.heatmaps).clamp(min=0).long()  # (B, K, 2)
    coarse, fine = tokens_at(places, order, config)
    first, joints = config.depth // 4, config.joints
    total = targets.heatmaps.new_zeros(())
    for heads in seen[first : config.depth]:
        total = total + _missed(heads, slice(1, 1 + joints), coarse, targets.weights)
    for heads in seen[config.depth + first :]:
        total = total + _missed(heads, slice(0, joints), fine, targets.weights)
    return total / (config.depth - first)


def tokens_at(places: Tensor, order: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Heatmap pixels (B, K, 2) -> which token shows them in the coarse and which in the fine look (B, K)."""
    x, y = (places // (CELL // MAP_STRIDE)).unbind(-1)
    cell = y * config.grid[0] + x
    right, low = (places // (PATCH // MAP_STRIDE) % 2).unbind(-1)
    rank = order.argsort(1).gather(1, cell)
    # The fine look has four tokens for each of the first k cells, then one for each of the rest.
    k = config.selected
    return cell, torch.where(rank < k, 4 * rank + 2 * low + right, 3 * k + rank)


def _missed(heads: Heads, rows: slice, tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean over the weighted joints (B, K) whose queries are `rows`, and whose keys follow theirs."""
    paid = torch.softmax(heads.queries[:, :, rows] @ heads.keys.mT, -1)[..., rows.stop :]
    own = paid.mean(1).gather(2, tokens[..., None])[..., 0]  # (B, K)
    return -(torch.log(own + FLOOR) * weights).sum() / weights.sum().clamp(min=1)
