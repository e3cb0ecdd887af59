"""One batch of training pictures with their people; pixels as the network wants them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# COCO counts boxes, and QueryPose everything, from a pixel's corner; joints are counted from its centre.
CORNER = 0.5


class People(NamedTuple):
    """Labelled people in pixels of the network input, counted from the first one's centre.

    P is the most people in one picture.
    """

    joints: Tensor  # (B, P, K, 2)
    labelled: Tensor  # (B, P, K) bool, in the picture and with v > 0
    area: Tensor  # (B, P) input px², of what the picture shows
    boxes: Tensor  # (B, P, 4) x0, y0, x1, y1
    valid: Tensor  # (B, P) bool, to be found
    ignored: Tensor  # (B, P) bool: crowds, tiny people, people without labels; neither right nor wrong


class Batch(NamedTuple):
    """Pictures (B, H, W, 3) uint8 BGR and their people."""

    images: Tensor
    people: People
    ids: tuple[int, ...]  # of all pictures of the data set that are in it


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, H, W, 3) uint8 BGR -> (B, 3, H, W) RGB as `preprocess.normalise`, channels last."""
    scale = 1 / (255 * images.new_tensor(std, dtype=torch.float32))
    shift = images.new_tensor(mean, dtype=torch.float32) / images.new_tensor(std, dtype=torch.float32)
    return (images.flip(-1) * scale - shift).permute(0, 3, 1, 2)
