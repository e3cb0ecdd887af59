"""Reading a map at chosen pixels and between pixels, by gathers alone or by one GridSample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pixel_centres(size: tuple[int, int]) -> Tensor:
    """(W*H, 2) float x, y of each pixel of a (W, H) map, row by row."""
    width, height = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).float()


def at_pixels(features: Tensor, pixels: Tensor) -> Tensor:
    """(B, C, H, W) at pixels (B, P) -> (B, C, P, 1).

    Rows of channels are gathered: on channels-last tensors neither this nor its gradient copies the map.
    """
    rows = features.flatten(2).transpose(1, 2)  # (B, H*W, C)
    chosen = rows.gather(1, pixels[:, :, None].expand(-1, -1, rows.shape[2]))
    return chosen.transpose(1, 2).unsqueeze(-1)


def bilinear(features: Tensor, positions: Tensor) -> Tensor:
    """(B, K*c, H, W), each joint's own channels at its positions (B, P, K, 2) -> (B, K*c, P, 1).

    Beyond the border the border's value counts: grid_sample(border, align_corners=True) by one gather.
    """
    B, P, K, _ = positions.shape
    H, W = features.shape[-2:]
    x, y = positions[..., 0].clamp(0, W - 1), positions[..., 1].clamp(0, H - 1)  # (B, P, K)
    left, above = x.detach().floor(), y.detach().floor()
    if (
        not torch.onnx.is_in_onnx_export()
    ):  # what is no number has no place, but reaches the loss by `ax`, `ay`
        left, above = left.nan_to_num(), above.nan_to_num()
    right, below = (left + 1).clamp(max=W - 1), (above + 1).clamp(max=H - 1)
    # int32, because a half-precision y*W + x is wrong for most pixels (specs/qrpose.md section 8)
    rows = torch.cat([above, above, below, below], 1).to(torch.int32)
    columns = torch.cat([left, right, left, right], 1).to(torch.int32)
    corners = (rows * W + columns).long().unsqueeze(-1)  # (B, 4P, K, 1)
    table = features.flatten(2).transpose(1, 2).reshape(B, H * W, K, -1)
    # One gather for the four corners: its gradient is one dense map, not four.
    values = table.gather(1, corners.expand(-1, -1, -1, table.shape[3])).to(positions.dtype)
    top_left, top_right, bottom_left, bottom_right = torch.split(values, P, 1)  # (B, P, K, c)
    ax, ay = (x - left).unsqueeze(-1), (y - above).unsqueeze(-1)
    top = top_left + (top_right - top_left) * ax
    bottom = bottom_left + (bottom_right - bottom_left) * ax
    return (top + (bottom - top) * ay).flatten(2).transpose(1, 2).unsqueeze(-1)


def grid_sample(features: Tensor, positions: Tensor) -> Tensor:
    """The same as `bilinear` by one GridSample of 4 dimensions, which TensorRT has from 8.5 on."""
    B, P, K, _ = positions.shape
    H, W = features.shape[-2:]
    size = torch.tensor([W - 1, H - 1], dtype=positions.dtype, device=positions.device)
    sampled = functional.grid_sample(
        features.reshape(B * K, -1, H, W),
        (positions * (2 / size) - 1).transpose(1, 2).reshape(B * K, P, 1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return sampled.reshape(B, -1, P, 1)
