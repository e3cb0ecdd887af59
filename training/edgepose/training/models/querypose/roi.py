"""Pooling what a map holds inside boxes: RoIAlign, aligned, two samples a side of each cell (section 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
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


Pool = Callable[[Tensor, int], Tensor]  # a map (B, C, H, W) and its stride -> what lies in the boxes


def pooled(features: Tensor, boxes: Tensor, stride: int, cells: int, roi: Roi) -> Tensor:
    """(B, C, H, W) in boxes (B, N, 4) of input pixels -> (B*N, C, cells, cells), image by image.

    `roi` is the operator in a graph that is being exported; the numbers are the same. Boxes get a gradient of
    what they show, as in the goldens; torchvision's operator, with which the authors trained, passes none.
    """
    return _pool(boxes, cells, roi)(features, stride)


def pooled_by_size(maps: Sequence[Tensor], boxes: Tensor, cells: int, roi: Roi) -> Tensor:
    """As `pooled`, each box from the one of four maps that suits its size.

    Every box is pooled from every map and the wrong ones count 0: choosing first would need shapes that
    depend on the data.
    """
    side = area(boxes).clamp(min=0).sqrt().flatten()[:, None, None, None]  # (B*N, 1, 1, 1)
    reached = [torch.ones_like(side), *((side >= limit).to(side.dtype) for limit in COARSER)]
    shares = [*(here - further for here, further in pairwise(reached)), reached[-1]]
    pool = _pool(boxes, cells, roi)
    total = torch.zeros_like(side)
    for share, features, stride in zip(shares, maps, STRIDES, strict=True):
        total = total + share * pool(features, stride)
    return total


def _pool(boxes: Tensor, cells: int, roi: Roi) -> Pool:
    if roi == "roialign" and torch.onnx.is_in_onnx_export():
        return partial(_by_roi_align, boxes, _images(boxes), cells)
    return partial(_by_grid_sample, _samples(boxes, cells))


def _samples(boxes: Tensor, cells: int) -> Tensor:
    """(B, N, 2, 2*cells) input pixels: where two samples a cell lie along x and along y."""
    low, high = boxes[..., :2, None], boxes[..., 2:, None]
    steps = torch.arange(2 * cells, device=boxes.device, dtype=boxes.dtype) + 0.5
    places: Tensor = low + (high - low) / (2 * cells) * steps
    return places


def _by_grid_sample(samples: Tensor, features: Tensor, stride: int) -> Tensor:
    """All boxes of an image in one GridSample, then means of 2x2 samples."""
    B, C, H, W = features.shape
    N, count = samples.shape[1], samples.shape[3]
    sides = samples.new_tensor([[W], [H]])
    placed = samples / stride - 0.5
    # A sample more than a pixel outside counts 0; nearer, it is the border's value.
    known = ((placed >= -1) & (placed <= sides)).to(placed.dtype)
    placed = placed * (2 / (sides - 1).clamp(min=1)) - 1  # -1 and 1 are the centres of the outermost pixels
    x, y = placed[:, :, 0, None, :], placed[:, :, 1, :, None]
    shape = (B, N, count, count)
    grid = torch.stack([x.expand(shape), y.expand(shape)], -1).flatten(1, 2)
    known = (known[:, :, 0, None, :] * known[:, :, 1, :, None]).flatten(1, 2)[:, None]
    values = functional.grid_sample(features.to(grid.dtype), grid, "bilinear", "border", align_corners=True)
    means = functional.avg_pool2d(values * known, 2)  # (B, C, N*cells, cells)
    return means.reshape(B, C, N, count // 2, count // 2).transpose(1, 2).flatten(0, 1)


def _images(boxes: Tensor) -> Tensor:
    """(B*N,) int64: which image each box is of."""
    B, N = boxes.shape[:2]
    return torch.arange(B, device=boxes.device, dtype=torch.int32)[:, None].expand(B, N).flatten().long()


def _by_roi_align(boxes: Tensor, images: Tensor, cells: int, features: Tensor, stride: int) -> Tensor:
    """ONNX's own operator, for the exporter alone."""
    if not hasattr(torch.onnx, "ops"):
        raise EdgeposeError(
            f"torch {torch.__version__} cannot write RoiAlign into a graph; install torch 2.8 or newer, "
            "or build the model with roi=gridsample"
        )
    return torch.onnx.ops.symbolic(
        "RoiAlign",
        (features, boxes.flatten(0, 1), images),
        {
            "mode": "avg",
            "coordinate_transformation_mode": "half_pixel",
            "output_height": cells,
            "output_width": cells,
            "sampling_ratio": 2,
            "spatial_scale": 1 / stride,
        },
        dtype=features.dtype,
        shape=(images.shape[0], features.shape[1], cells, cells),
        version=16,
    )
