"""Reading a map at chosen pixels and between pixels, by gathers alone or by one GridSample.

Training takes GridSample, whose gradient is by far the faster one; few poses in a graph take a gather.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pixel_centres(size: tuple[int, int]) -> Tensor:
    """(W*H, 2) float x, y of each pixel of a (W, H) map, row by row."""
    width, height = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).float()


def at_pixels(features: Tensor, pixels: Tensor, groups: int = 1) -> Tensor:
    """(B, C, H, W) at pixels (B, P) -> (B, C, 1, P), reading each of `groups` of channels by itself.

    Rows of channels are read. In one group, on channels-last tensors, neither this nor its gradient copies
    the map; in as many as `bilinear` reads, both share one copy in a graph.
    """
    table = _table(features, groups)
    numbers = pixels.int()[:, None].expand(-1, groups, -1).flatten(0, 1)
    read = _rows(table, numbers + _starts(table)).transpose(1, 2)  # (B*groups, C/groups, P)
    B, P = pixels.shape
    return read.reshape(B, -1, 1, P)


def bilinear(features: Tensor, positions: Tensor) -> Tensor:
    """(B, K*c, H, W), each joint's own channels at its x and y (B, K, 2, P) -> (B, K*c, 1, P).

    Beyond the border the border's value counts: grid_sample(border, align_corners=True) by four Gathers.
    Places are the last axis throughout: ONNX Runtime repeats what is broadcast along a short last axis value
    by value.
    """
    B, K, _, P = positions.shape
    H, W = features.shape[-2:]
    x, y = (positions[:, :, axis].flatten(0, 1) for axis in (0, 1))  # (B*K, P)
    x, y = x.clamp(0, W - 1), y.clamp(0, H - 1)
    left, above = x.detach().floor(), y.detach().floor()
    if not torch.onnx.is_in_onnx_export():  # what is no number has no place, but stays in `ax`, `ay`
        left, above = left.nan_to_num(), above.nan_to_num()
    right, below = (left + 1).clamp(max=W - 1), (above + 1).clamp(max=H - 1)
    table = _table(features, K)
    # int32, because a half-precision y*W + x is wrong for most pixels (specs/qrpose.md section 8)
    north, south = (line.int() * W + _starts(table) for line in (above, below))
    west, east = left.int(), right.int()

    def corner(numbers: Tensor) -> Tensor:
        return _rows(table, numbers).to(positions.dtype).transpose(1, 2)  # (B*K, c, P)

    ax, ay = (x - left).unsqueeze(1), (y - above).unsqueeze(1)
    top = _between(corner(north + west), corner(north + east), ax)
    bottom = _between(corner(south + west), corner(south + east), ax)
    return _between(top, bottom, ay).reshape(B, -1, 1, P)


def _table(features: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) -> (B*groups, H*W, C/groups)."""
    B, _, H, W = features.shape
    return features.reshape(B * groups, -1, H * W).transpose(1, 2)


def _starts(table: Tensor) -> Tensor:
    """(T, N, C) -> (T, 1) int32, the number of each table's first row among those of all."""
    return torch.arange(table.shape[0], dtype=torch.int32, device=table.device)[:, None] * table.shape[1]


def _rows(table: Tensor, numbers: Tensor) -> Tensor:
    """(T, N, C), numbers (T, M) int32 of the rows of all tables -> (T, M, C).

    In a graph one Gather of whole rows from all tables as one: `Tensor.gather` becomes an Expand and a
    GatherElements, which ONNX Runtime copies value by value.
    """
    T, _, C = table.shape
    return table.flatten(0, 1).index_select(0, numbers.flatten()).reshape(T, -1, C)


def _between(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return one + (other - one) * share


def grid_sample(features: Tensor, positions: Tensor) -> Tensor:
    """The same as `bilinear`, by one GridSample of 4 dimensions, which TensorRT has from 8.5 on."""
    B, K, _, P = positions.shape
    H, W = features.shape[-2:]
    size = torch.tensor([[W - 1], [H - 1]], dtype=positions.dtype, device=positions.device)
    sampled = functional.grid_sample(
        features.to(positions.dtype).reshape(B * K, -1, H, W),
        (positions * (2 / size) - 1).transpose(2, 3).reshape(B * K, P, 1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return sampled.reshape(B, -1, 1, P)
