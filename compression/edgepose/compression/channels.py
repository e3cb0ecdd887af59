"""Channels that only leave a network together, and where each of them stands in its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

OUTPUTS, INPUTS = 0, 1  # axes of a weight (`axis_of`)
STEP, LARGE_STEP, LARGE = 8, 32, 256  # widths stay multiples of 8, of 32 where there are 256 or more
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a group has in one layer."""

    layer: str
    axis: int  # OUTPUTS, which the layer makes, or INPUTS, which it reads
    indices: Indices  # (units, n) of that axis: n channels leave with each unit


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that only leave together with their parts in every layer: channels, or the heads of attention."""

    name: str  # of the first layer that makes them
    units: int
    step: int  # how many leave at once, so that widths stay multiples of it
    parts: tuple[Part, ...]

    @property
    def layers(self) -> set[str]:
        """All that make or read the channels."""
        return {part.layer for part in self.parts}

    @property
    def readers(self) -> tuple[Part, ...]:
        """Layers that read the channels."""
        return tuple(part for part in self.parts if part.axis == INPUTS)


def step_of(channels: int) -> int:
    """How many of a convolution's channels leave at once."""
    return LARGE_STEP if channels >= LARGE else STEP


def weight_of(model: nn.Module, part: Part) -> Tensor:
    """The weight that the part is of."""
    return cast(Tensor, model.get_submodule(part.layer).weight)
