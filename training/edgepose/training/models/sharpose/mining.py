"""Which cells of the coarse grid deserve a sharper look, and their tokens on the fine grid."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepose.training.models.attention import Heads

DECAY = 0.99  # beta of section 2, item 5


def attention_paid(heads: Heads, rows: slice, cells: int) -> Tensor:
    """How much the tokens `rows` look at each of the last `cells` tokens: (B, cells), mean over heads.

    A branch of its own with few queries, equal to that slice of the full matrix: softmax goes row by row.
    Without gradient, since only the order of the cells is used.
    """
    queries, keys = heads.queries.detach(), heads.keys.detach()
    paid = torch.softmax(queries[:, :, rows] @ keys.mT, -1)
    return paid[..., -cells:].mean(1).sum(1)


def ranked(scores: Tensor) -> Tensor:
    """(B, n0) -> indices of the cells (B, n0) int64, best first."""
    return scores.topk(scores.shape[1]).indices


def picked(tokens: Tensor, cells: Tensor) -> Tensor:
    """The tokens (B, n0, C) of the named cells (B, k): (B, k, C)."""
    return tokens.gather(1, cells[:, :, None].expand(-1, -1, tokens.shape[2]))


def by_cell(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Fine tokens (B, 4*n0, C), row by row, grouped by coarse cell: (B, n0, 4, C).

    `grid` is (width, height) of the coarse grid; a cell covers 2x2 of the fine one.
    """
    width, height = grid
    apart = torch.unflatten(tokens, 1, (height, 2, width, 2)).permute(0, 1, 3, 2, 4, 5)
    return apart.flatten(3, 4).flatten(1, 2)
