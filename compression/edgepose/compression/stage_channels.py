"""The channels that a pose stage of QueryPose has for itself, of the region in which it looks for joints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import numpy as np
from torch import nn

from edgepose.compression.channels import INPUTS, OUTPUTS, Group, Part, step_of
from edgepose.training.models.querypose.network import QueryPose
from edgepose.training.models.querypose.pose_stage import PoseStage


def stage_groups(network: QueryPose) -> Iterator[Group]:
    """Those between the convolutions over a region, and those of the doubled map that finds the parts.

    What the last convolution makes is as wide as all that is read from the pyramid, and stays.
    """
    for index, stage in enumerate(network.pose_stages):
        name, embedding = f"pose_stages.{index}", f"pose_stages.{index}.embedding"
        layers = enumerate(cast(PoseStage, stage).convs)
        convs = [f"{name}.convs.{place}" for place, layer in layers if isinstance(layer, nn.Conv2d)]
        for before, after in pairwise(convs):
            yield _between(network, [before], [after])
        raised = [f"{embedding}.raise_.{place}" for place in (0, 1)]  # with its normalisation
        yield _between(network, raised, [f"{embedding}.attend", f"{embedding}.embed"])


def _between(network: QueryPose, makers: list[str], readers: list[str]) -> Group:
    """`makers` end with what has one number for each channel."""
    units = len(network.get_parameter(f"{makers[-1]}.bias"))
    each = np.arange(units)[:, None]
    parts = [Part(name, OUTPUTS, each) for name in makers] + [Part(name, INPUTS, each) for name in readers]
    return Group(makers[0], units, step_of(units), tuple(parts))
