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


def rows(table: Tensor, numbers: Tensor) -> Tensor:
    """(B, N, C), numbers (B, M) int32 of its rows -> (B, M, C).

    In a graph one Gather of whole rows from all pictures' tables as one: `Tensor.gather` becomes an Expand
    and a GatherElements, which ONNX Runtime copies value by value.
    """
    B, N, C = table.shape
    first = torch.arange(B, dtype=numbers.dtype, device=numbers.device) * N
    return table.reshape(-1, C).index_select(0, (numbers + first[:, None]).flatten()).reshape(B, -1, C)


def at_pixels(features: Tensor, pixels: Tensor) -> Tensor:
    """(B, C, H, W) at pixels (B, P) -> (B, C, P, 1).

    Rows of channels are read: on channels-last tensors neither this nor its gradient copies the map.
    """
    return rows(features.flatten(2).transpose(1, 2), pixels.int()).transpose(1, 2).unsqueeze(-1)


def bilinear(features: Tensor, positions: Tensor) -> Tensor:
    """(B, K*c, H, W), each joint's own channels at its positions (B, P, K, 2) -> (B, K*c, P, 1).

    Beyond the border the border's value counts: grid_sample(border, align_corners=True) by one Gather.
    """
    B, P, K, _ = positions.shape
    H, W = features.shape[-2:]
    x, y = positions[..., 0].clamp(0, W - 1), positions[..., 1].clamp(0, H - 1)  # (B, P, K)
    left, above = x.detach().floor(), y.detach().floor()
    if not torch.onnx.is_in_onnx_export():  # what is no number has no place, but stays in `ax`, `ay`
        left, above = left.nan_to_num(), above.nan_to_num()
    right, below = (left + 1).clamp(max=W - 1), (above + 1).clamp(max=H - 1)
    # int32, because a half-precision y*W + x is wrong for most pixels (specs/qrpose.md section 8)
    down = torch.cat([above, above, below, below], 1).int()
    across = torch.cat([left, right, left, right], 1).int()
    joint = torch.arange(K, dtype=down.dtype, device=down.device)
    corners = (down * W + across) * K + joint  # (B, 4P, K)
    table = features.flatten(2).transpose(1, 2).reshape(B, H * W * K, -1)
    values = rows(table, corners.flatten(1)).reshape(B, 4 * P, K, -1).to(positions.dtype)
    top_left, top_right, bottom_left, bottom_right = torch.split(values, P, 1)  # (B, P, K, c)
    ax, ay = (x - left).unsqueeze(-1), (y - above).unsqueeze(-1)
    top = top_left + (top_right - top_left) * ax
    bottom = bottom_left + (bottom_right - bottom_left) * ax
    return (top + (bottom - top) * ay).flatten(2).transpose(1, 2).unsqueeze(-1)


def grid_sample(features: Tensor, positions: Tensor) -> Tensor:
    """The same as `bilinear`, by one GridSample of 4 dimensions, which TensorRT has from 8.5 on."""
    B, P, K, _ = positions.shape
    H, W = features.shape[-2:]
    size = torch.tensor([W - 1, H - 1], dtype=positions.dtype, device=positions.device)
    sampled = functional.grid_sample(
        features.to(positions.dtype).reshape(B * K, -1, H, W),
        (positions * (2 / size) - 1).transpose(1, 2).reshape(B * K, P, 1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return sampled.reshape(B, -1, P, 1)
