"""QueryPose small enough for tests, and pictures for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgepose.training.models import build
from edgepose.training.models.querypose import TINY
from edgepose.training.models.querypose.network import QueryPose

SIZE = (96, 64)  # width, height
# A published network's form with less inside, so that a test may hold several.
SMALL: dict[str, Any] = {
    **{"size": SIZE, "queries": 12, "stages": 2, "channels": 32, "heads": 4, "hidden": 48, "top_k": 5},
    **{"dynamic_channels": 8, "part_channels": 16, "pose_layers": 2, "pose_channels": 24},
}


def made(**options: Any) -> QueryPose:
    network = build(TINY, **{"size": SIZE, **options})
    assert isinstance(network, QueryPose)
    return network


def images(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, size[1], size[0], generator=torch.Generator().manual_seed(2))
