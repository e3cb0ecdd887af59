"""From a network to one that is so much faster: importance, measured times, allocation, measured again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn

from edgepose.calibration.measure import environment
from edgepose.compression.allocation import Clock, allocate
from edgepose.compression.channels import Group
from edgepose.compression.dependencies import groups_of
from edgepose.compression.importance import by_magnitude, by_taylor
from edgepose.compression.prune import Pruned, narrowed, pruned
from edgepose.export.speed import compared, runnable
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.oks import F64
from edgepose.training.families import FAMILIES, course_of
from edgepose.training.models import family_of
from edgepose.training.recipe import parse_recipe

TRIES = 6  # what is measured may fall short of what was predicted
BATCH = 4  # pictures or crops


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be pruned, and how far."""

    model: str
    data: str  # labelled pictures for the importance by the loss
    importance: str  # "taylor" or "magnitude"
    batches: int  # of these pictures
    speed: float  # times as fast
    rounds: int  # of timing


def prune_to(request: Request, model: nn.Module) -> tuple[Pruned, dict[str, Any]]:
    """The narrower network and what it measured; `model` is left as it was.

    Raises GateFailed when the speed is not reached.
    """
    groups = groups_of(model, family_of(request.model), model.config.size)  # type: ignore[arg-type]
    importance = _importance(request, model, groups)
    dense = runnable(request.model, model)
    clock = Clock(dense.times(), groups, _sizes(model))
    wanted, reached = request.speed, 0.0
    for _ in range(TRIES):
        kept = allocate(clock, importance, clock.times.total / wanted)
        found = pruned(model, groups, kept)
        narrow = narrowed(model, found)
        slim = runnable(request.model, narrow)
        timing = compared({"before": dense, "after": slim}, request.rounds)[1]
        reached = 1 / timing.ratio
        if reached >= request.speed:
            break
        wanted *= request.speed / reached
    else:
        raise GateFailed(
            f"{request.model}: {reached:.2f} times as fast, not {request.speed:g}, in {TRIES} tries; "
            "nothing was written. Ask for less, or try on a machine that does nothing else"
        )
    return found, {
        "model": request.model,
        "importance": request.importance,
        "data": request.data,
        "speed": request.speed,
        "timing": timing.to_dict(),
        "parameters": [sum(p.numel() for p in net.parameters()) for net in (model, narrow)],
        "multiply_adds": [net.multiply_adds for net in (dense, slim)],
        "units": {group.name: [group.units, len(units)] for group, units in zip(groups, kept, strict=True)},
        "widths": dict(found.widths),
        "environment": environment(),
    }


def _sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name.endswith(".weight")
    }


def _importance(request: Request, model: nn.Module, groups: list[Group]) -> list[F64]:
    if request.importance == "magnitude":
        return by_magnitude(model, groups)
    values: dict[str, Any] = {
        "model": request.model,
        "data": {"train": request.data, "workers": 0},
        "schedule": {"steps": request.batches, "batch": BATCH},
    }
    if "size" in FAMILIES[family_of(request.model)].record.model_fields:
        values["size"] = model.config.size[0]  # type: ignore[index]
    recipe = parse_recipe(yaml.safe_dump(values), "edgepose prune")
    return by_taylor(model, groups, course_of(recipe), request.batches)
