"""What a published backbone gives to a neck, and which weights of its file are not its own."""

from __future__ import annotations

from torch import nn


class Body(nn.Module):
    """Images (B, 3, H, W), H and W multiples of 32 -> four maps at strides 4, 8, 16 and 32, as a list.

    Its state dict has the names of the published weights, so that these load as they are.
    """

    # What else a published file holds, by prefix: a classifier and the like.
    surplus: tuple[str, ...] = ("fc.",)
    # What some published file lacks, by prefix: it keeps its random start.
    fresh: tuple[str, ...] = ()

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.widths = widths  # channels of the four maps
