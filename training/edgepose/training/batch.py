"""One batch of training pictures with their people, padded to the same number."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class People(NamedTuple):
    """Labelled people in pixels of the network input; P is the most people in one picture."""

    joints: Tensor  # (B, P, K, 2)
    labelled: Tensor  # (B, P, K) bool, in the picture and with v > 0
    area: Tensor  # (B, P) input px²
    boxes: Tensor  # (B, P, 4) x0, y0, x1, y1
    valid: Tensor  # (B, P) bool, to be found
    ignored: Tensor  # (B, P) bool: crowds, tiny people, people without labels; neither right nor wrong


class Batch(NamedTuple):
    """Pictures (B, H, W, 3) uint8 BGR and their people."""

    images: Tensor
    people: People
