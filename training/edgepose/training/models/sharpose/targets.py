"""The heatmaps that SHaRPose learns, from labelled joints (specs/sharpose.md section 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """What training knows of B persons."""

    heatmaps: Tensor  # (B, K, H, W)
    weights: Tensor  # (B, K): 1 where the joint is labelled and in the map, else 0
    boxes: Tensor  # (B, 2) width and height in picture pixels of the padded, augmented box that was cropped


def heatmaps(
    joints: Tensor, labelled: Tensor, crop: tuple[int, int], size: tuple[int, int], sigma: float
) -> tuple[Tensor, Tensor]:
    """Joints (B, K, 2) in pixels of crops of size `crop` -> heatmaps (B, K, h, w) of `size`, weights (B, K).

    Sizes are width, height.
    A Gaussian of `sigma` heatmap pixels about the joint's real place, within 3 sigma of the joint's pixel.
    The weight is 1 where the joint is `labelled` (B, K) and its hill is not beyond the map's edge, else 0
    and the map is empty.
    """
    limit = joints.new_tensor(size, dtype=torch.float64)
    centres = joints.double() * (limit - 1) / (limit.new_tensor(crop) - 1)
    pixels = (centres + 0.5).trunc()
    reach = 3 * sigma
    met = ((pixels - reach < limit) & (pixels + reach + 1 >= 0)).all(-1) & labelled
    hills = []
    for axis in (0, 1):
        place = torch.arange(size[axis], device=joints.device)
        hill = torch.exp(-(place - centres[..., axis, None]).square() / (2 * sigma**2))
        hills.append((hill * ((place - pixels[..., axis, None]).abs() <= reach)).float())
    across, down = hills
    weights = met.float()
    return down[..., :, None] * across[..., None, :] * weights[..., None, None], weights
