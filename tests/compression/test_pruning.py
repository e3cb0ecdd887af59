"""Which channels leave together, where they leave first, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepose.compression.channels import INPUTS, Group, Indices, weight_of
from edgepose.compression.dependencies import groups_of
from edgepose.compression.prune import narrowed, pruned
from edgepose.training.models import build, family_of
from edgepose.training.models.querypose.config import Config
from edgepose.training.models.querypose.network import QueryPose
from edgepose.training.models.sharpose.network import SharPose

SMALL: dict[str, Any] = {"size": (64, 64)}
# querypose_r50 in small: its normalisation is frozen.
FROZEN = Config(
    "resnet50",
    (64, 64),
    queries=8,
    top_k=4,
    stages=1,
    channels=32,
    hidden=64,
    pose_layers=2,
    pose_channels=32,
)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "qrpose_tiny": partial(build, "qrpose_tiny", **SMALL),
    "qrpose_tiny without KQE": partial(build, "qrpose_tiny", kqe=False, **SMALL),
    "qrpose_hrnet32": partial(build, "qrpose_hrnet32", **SMALL),
    "qrpose_dla34": partial(build, "qrpose_dla34", **SMALL),
    "querypose_tiny": partial(build, "querypose_tiny", **SMALL),
    "querypose_r50": lambda: QueryPose(FROZEN),
    "sharpose_tiny_128x96": partial(build, "sharpose_tiny_128x96"),
}


def network(make: Callable[[], nn.Module]) -> nn.Module:
    """Random, but with statistics of normalisation that differ between channels."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for layer in model.modules():
            for what in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(layer, what, None)
                if isinstance(value, Tensor) and value.ndim == 1:
                    value.copy_(torch.rand_like(value) + 0.5)
    return model


def halved(groups: list[Group], seed: int) -> list[Indices]:
    """Any half of each group's units."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(group.units)[: max(1, group.units // 2)]) for group in groups]


def masked(model: nn.Module, groups: list[Group], kept: list[Indices]) -> None:
    """Who reads a channel that leaves sees nothing of it."""
    for group, units in zip(groups, kept, strict=True):
        gone = np.setdiff1d(np.arange(group.units), units)
        for part in group.parts:
            if part.axis == INPUTS:
                weight_of(model, part).data[:, part.indices[gone].reshape(-1)] = 0


@torch.no_grad()
def answers(model: nn.Module) -> Mapping[str, Tensor]:
    width, height = model.config.size
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    if not isinstance(model, SharPose):
        return model(images)
    # Where it looks again depends on what all heads attend to, those too that say nothing: so a given order.
    coarse = model.backbone.coarse(images)
    order = torch.arange(model.config.cells).expand(2, -1)
    fine = model.backbone.fine(images, order, coarse.reuse, coarse.embedded)
    return {"coarse": coarse.tokens, "quality": coarse.quality, "fine": fine}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_says_what_the_masked_one_says(name: str) -> None:
    """The independent check of the tracing: zeros in the old network, no reshaping, give the same answers."""
    model = network(NETWORKS[name])
    groups = groups_of(model, family_of(name.partition(" ")[0]), model.config.size)
    kept = halved(groups, 0)
    slim = narrowed(model, pruned(model, groups, kept))
    whole = answers(model)
    masked(model, groups, kept)
    expected, found = answers(model), answers(slim)
    assert any((whole[key] - expected[key]).abs().max() > 1e-3 for key in whole)  # the channels mattered
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
