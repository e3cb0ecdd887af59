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


def pooled(features: Tensor, boxes: Tensor, cells: int, roi: Roi) -> Tensor:
    """The finest map (B, C, H, W) in boxes (B, N, 4) of input pixels -> (B*N, C, cells, cells).

    `roi` is the operator in a graph that is being exported; the numbers are the same. Boxes get a gradient of
    what they show, as in the goldens; torchvision's operator, with which the authors trained, passes none.
    """
    if torch.onnx.is_in_onnx_export():
        return _pool(boxes, cells, roi)(features, STRIDES[0])
    return _gathered([features], boxes, cells, torch.zeros_like(boxes[..., 0], dtype=torch.int64))


def pooled_by_size(maps: Sequence[Tensor], boxes: Tensor, cells: int, roi: Roi) -> Tensor:
    """As `pooled`, each box from the one of four maps that suits its size.

    A graph pools every box from every map and lets the wrong ones count 0: its operators read one map, and
    choosing among the boxes first would need shapes that depend on the data.
    """
    if not torch.onnx.is_in_onnx_export():
        return _gathered(maps, boxes, cells, _levels(boxes))
    reached = [each.to(boxes.dtype) for each in _reached(boxes)]
    bounds = [torch.ones_like(reached[0]), *reached, torch.zeros_like(reached[0])]
    pool, total = _pool(boxes, cells, roi), torch.zeros_like(reached[0]).flatten()[:, None, None, None]
    for features, stride, (here, further) in zip(maps, STRIDES, pairwise(bounds), strict=True):
        share = (here - further).flatten()[:, None, None, None]
        total = total + share * pool(features, stride)
    return total


def multiplied(features: Tensor, boxes: Tensor, image: Tensor, cells: int) -> Tensor:
    """As `pooled`, in boxes (M, 4) of the pictures `image` (M,) int64, which rises: what training takes.

    Rows and columns of the samples are weighed apart, each by a product of matrices. Its gradients are such
    products too, where those of gathered samples are written value by value. The same numbers up to rounding.
    """
    return _products(features, STRIDES[0], boxes, image, cells).permute(0, 3, 1, 2)


def multiplied_by_size(maps: Sequence[Tensor], boxes: Tensor, cells: int) -> Tensor:
    """As `pooled_by_size`, by `multiplied`'s products: what training takes."""
    level = _levels(boxes)
    parts: list[Tensor] = []
    order: list[Tensor] = []
    for index, (features, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        image, query = (level == index).nonzero(as_tuple=True)
        parts.append(_products(features, stride, boxes[image, query], image, cells))
        order.append(image * boxes.shape[1] + query)
    return torch.cat(parts).index_select(0, torch.cat(order).argsort()).permute(0, 3, 1, 2)


def _products(features: Tensor, stride: int, boxes: Tensor, image: Tensor, cells: int) -> Tensor:
    """A map (B, C, H, W) in boxes (M, 4) of the pictures `image` (M,), which rises: (M, cells, cells, C)."""
    B, C, H, W = features.shape
    each = torch.bincount(image, minlength=B)
    place = torch.arange(len(image), device=image.device) - (each.cumsum(0) - each)[image]
    most = max(1, int(each.max()))  # every picture counts as many boxes as the fullest has
    held = boxes.new_zeros(B, most, 4).index_put((image, place), boxes)
    x, y = (_samples(held, cells) / stride - 0.5).unbind(2)  # (B, most, 2 cells)
    across, down = _shares(x, W), _shares(y, H)  # (B, most, cells, W), (B, most, cells, H)
    table = features.permute(0, 2, 3, 1).reshape(B, H, W * C).to(boxes.dtype)
    rows = (down.flatten(1, 2) @ table).reshape(B, most, cells, W, C)
    regions = across[:, :, None] @ rows  # (B, most, cells, cells, C)
    return regions.flatten(0, 1).index_select(0, image * most + place)


def _shares(samples: Tensor, side: int) -> Tensor:
    """Samples (B, N, 2*cells) in map pixels -> (B, N, cells, side): what a cell's two read of each pixel."""
    known = _known(samples, side)
    placed = torch.where(known > 0, samples.clamp(0, side - 1), 0)
    near = 1 - (placed[..., None] - torch.arange(side, device=samples.device)).abs()
    return torch.unflatten(near.clamp(min=0) * known[..., None], 2, (-1, 2)).mean(3)


def _levels(boxes: Tensor) -> Tensor:
    """Of boxes (B, N, 4) the number (B, N) int64 of the map that suits each one's size."""
    return torch.stack(_reached(boxes)).sum(0)


def _reached(boxes: Tensor) -> list[Tensor]:
    """Which boxes (B, N, 4) are as large as each limit: (B, N) bool each."""
    side = area(boxes).clamp(min=0).sqrt()
    return [side >= limit for limit in COARSER]


def _gathered(maps: Sequence[Tensor], boxes: Tensor, cells: int, level: Tensor) -> Tensor:
    """Each box (B, N, 4) from the map of its `level` (B, N) int64: RoIAlign itself, by rows of channels."""
    (B, N), C = level.shape, maps[0].shape[1]
    table = torch.cat([features.flatten(2).transpose(-1, -2) for features in maps], 1).to(
        boxes.dtype
    )  # (B, pixels, C)
    counts = [features.shape[2] * features.shape[3] for features in maps]
    sides = boxes.new_tensor([(features.shape[3], features.shape[2]) for features in maps])[level][..., None]
    starts = level.new_tensor([sum(counts[:index]) for index in range(len(maps))])[level]  # (B, N)
    starts = starts + table.shape[1] * torch.arange(B, device=level.device)[:, None]
    placed = _samples(boxes, cells) / boxes.new_tensor(STRIDES)[level][..., None, None] - 0.5
    known = _known(placed, sides)
    # What does not count is read from the first pixel: a box may be far away, or no number at all.
    placed = torch.where(known > 0, placed.clamp(min=0).minimum(sides - 1), 0)
    low = placed.detach().floor()
    share = placed - low
    corners = torch.stack(
        [low, (low + 1).minimum(sides - 1)]
    ).nan_to_num()  # what is no number stays in `share`
    columns, rows = corners.long().unbind(3)  # (2, B, N, 2 cells)
    rows = rows * sides[..., 0, :].long() + starts[..., None]
    weights = torch.stack([1 - share, share]) * known
    total = table.new_zeros(())
    for down in (0, 1):
        for right in (0, 1):
            corner = rows[down][..., :, None] + columns[right][..., None, :]  # (B, N, 2 cells, 2 cells)
            weight = weights[down, :, :, 1, :, None] * weights[right, :, :, 0, None, :]
            values = table.flatten(0, 1).index_select(0, corner.flatten()).reshape(*corner.shape, C)
            total = total + weight[..., None] * values
    means = total.reshape(B * N, cells, 2, cells, 2, C).mean((2, 4))
    return means.permute(0, 3, 1, 2)


def _known(placed: Tensor, sides: Tensor | int) -> Tensor:
    """1 where a sample counts, 0 where it is more than a pixel outside; nearer, it is the border's value."""
    return ((placed >= -1) & (placed <= sides)).to(placed.dtype)


def _pool(boxes: Tensor, cells: int, roi: Roi) -> Pool:
    if roi == "roialign":
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
    known = _known(placed, sides)
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
