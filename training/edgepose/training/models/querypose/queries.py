"""What every picture starts from: learned guesses of where people are, and of what their parts look like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepose.training.models.querypose.boxes import corners
from edgepose.training.models.querypose.config import Config


class Queries(nn.Module):
    """N instance queries with a box each, and J part queries that all people share (section 5)."""

    def __init__(self, config: Config, parts: int) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.randn(config.queries, config.channels))
        # Centre and size in shares of the picture: everybody is everywhere, to begin with.
        self.boxes = nn.Parameter(torch.tensor([0.5, 0.5, 1, 1]).repeat(config.queries, 1))
        self.parts = nn.Parameter(torch.randn(parts, config.part_channels))

    def first_boxes(self, sizes: Tensor) -> Tensor:
        """(B, N, 4) input pixels, for pictures of `sizes` (B, 2) width, height. Nothing is clipped."""
        return corners(self.boxes) * sizes.repeat(1, 2)[:, None]

    def instances(self, count: int) -> Tensor:
        """(count, N, C)."""
        return self.features.repeat(count, 1, 1)

    def of_people(self, count: int) -> Tensor:
        """(count, J, c)."""
        return self.parts.repeat(count, 1, 1)
