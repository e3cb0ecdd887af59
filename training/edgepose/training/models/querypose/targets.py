"""Labelled people as QueryPose learns them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from edgepose.training.batch import CORNER, People


class Targets(NamedTuple):
    """P people a picture, padding included, in input pixels whose corner is at integers."""

    boxes: Tensor  # (B, P, 4) x0, y0, x1, y1
    joints: Tensor  # (B, P, K, 2)
    labelled: Tensor  # (B, P, K) bool
    valid: Tensor  # (B, P) bool: to be found; without a labelled joint only its box is


def targets_of(people: People) -> Targets:
    """Crowds, and whoever else is to be ignored, count as background: as in the authors' training.

    Joints are moved to the corner's frame as they do it (section 9).
    """
    return Targets(people.boxes + CORNER, people.joints + CORNER, people.labelled, people.valid)
