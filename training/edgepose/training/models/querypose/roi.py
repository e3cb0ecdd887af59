"""Pooling what a map holds inside boxes: RoIAlign, aligned, two samples a side of each cell (section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.querypose.boxes import area

Roi = Literal["roialign", "gridsample"]  # which operator an exported graph pools with

STRIDES = (4, 8, 16, 32)  # input pixels a pixel of each map
# From this geometric mean of the sides on, in input pixels, a box is read from the next coarser map:
# floor(4 + log2(side / 224)) of section 6 without the logarithm.
COARSER = (112.0, 224.0, 448.0)


def pooled(features: Tensor, boxes: Tensor, stride: int, cells: int, roi: Roi) -> Tensor:
    """(B, C, H, W) in boxes (B, N, 4) of input pixels -> (B*N, C, cells, cells), image by image.

    `roi` is the operator in a graph that is being exported; the numbers are the same. Boxes get a gradient of
    what they show, as in the goldens; torchvision's operator, with which the authors trained, passes none.
    """
    if roi == "roialign" and torch.onnx.is_in_onnx_export():
        return _by_roi_align(features, boxes, stride, cells)
    return _by_grid_sample(features.to(boxes.dtype), boxes, stride, cells)


def pooled_by_size(maps: Sequence[Tensor], boxes: Tensor, cells: int, roi: Roi) -> Tensor:
    """As `pooled`, each box from the one of four maps that suits its size.

    Every box is pooled from every map and the wrong ones count 0: choosing first would need shapes that
    depend on the data.
    """
    side = area(boxes).clamp(min=0).sqrt().flatten()[:, None, None, None]  # (B*N, 1, 1, 1)
    coarser = [(side >= limit).to(side.dtype) for limit in COARSER]
    reached = [torch.ones_like(side), *coarser, torch.zeros_like(side)]
    total = torch.zeros_like(side)
    for level, (features, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        share = reached[level] - reached[level + 1]
        total = total + share * pooled(features, boxes, stride, cells, roi)
    return total


def _by_grid_sample(features: Tensor, boxes: Tensor, stride: int, cells: int) -> Tensor:
    """All boxes of an image in one GridSample, then means of 2x2 samples."""
    B, C, H, W = features.shape
    N = boxes.shape[1]
    placed = boxes / stride - 0.5
    x = _samples(placed[..., 0], placed[..., 2], cells)  # (B, N, 2 cells)
    y = _samples(placed[..., 1], placed[..., 3], cells)
    known = _known(y, H)[..., :, None] * _known(x, W)[..., None, :]  # (B, N, 2 cells, 2 cells)
    across = (x * (2 / max(W - 1, 1)) - 1)[..., None, :].expand_as(known)
    down = (y * (2 / max(H - 1, 1)) - 1)[..., :, None].expand_as(known)
    grid = torch.stack([across, down], -1).flatten(1, 2)
    sampled = functional.grid_sample(features, grid, "bilinear", "border", align_corners=True)
    means = functional.avg_pool2d(sampled * known.flatten(1, 2)[:, None], 2)  # (B, C, N*cells, cells)
    return means.reshape(B, C, N, cells, cells).transpose(1, 2).flatten(0, 1)


def _samples(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(..., 2*cells) places of two samples a cell between `low` and `high` (...)."""
    steps = torch.arange(2 * cells, device=low.device, dtype=low.dtype) + 0.5
    return low[..., None] + ((high - low) / (2 * cells))[..., None] * steps


def _known(places: Tensor, length: int) -> Tensor:
    """1 where a sample counts, 0 where it is more than a pixel outside a map of `length` pixels."""
    return ((places >= -1) & (places <= length)).to(places.dtype)


def _by_roi_align(features: Tensor, boxes: Tensor, stride: int, cells: int) -> Tensor:
    """ONNX's own operator, for the exporter alone."""
    if not hasattr(torch.onnx, "ops"):
        raise EdgeposeError(
            f"torch {torch.__version__} cannot write RoiAlign into a graph; install torch 2.8 or newer, "
            "or build the model with roi=gridsample"
        )
    B, N = boxes.shape[:2]
    image = torch.arange(B, device=boxes.device, dtype=torch.int32)[:, None].expand(B, N).flatten()
    return torch.onnx.ops.symbolic(
        "RoiAlign",
        (features, boxes.flatten(0, 1), image.long()),
        {
            "mode": "avg",
            "coordinate_transformation_mode": "half_pixel",
            "output_height": cells,
            "output_width": cells,
            "sampling_ratio": 2,
            "spatial_scale": 1 / stride,
        },
        dtype=features.dtype,
        shape=(B * N, features.shape[1], cells, cells),
        version=16,
    )
