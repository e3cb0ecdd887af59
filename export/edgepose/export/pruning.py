"""From a network to one that is so much faster: importance, measured times, allocation, measured again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml
from torch import Tensor, nn

from edgepose.calibration.measure import environment
from edgepose.compression.allocation import Clock, allocate
from edgepose.compression.channels import Group
from edgepose.compression.dependencies import groups_of
from edgepose.compression.importance import by_magnitude, by_taylor
from edgepose.compression.prune import Pruned, narrowed, pruned
from edgepose.export.speed import Runnable, compared, runnable
from edgepose.runtime.bench import Timing
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.oks import F64
from edgepose.runtime.progress import track
from edgepose.training.families import FAMILIES, course_of
from edgepose.training.models import family_of
from edgepose.training.models.widths import axis_of
from edgepose.training.recipe import parse_recipe

TRIES = 6  # what is measured may fall short of what was predicted
SPARE = 1.05  # a network faster than asked for by more than this is tried again with more channels
BATCH = 4  # pictures or crops


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be pruned, and how far."""

    model: str
    data: str  # labelled pictures for the importance by the loss
    importance: str  # "taylor" or "magnitude"
    batches: int  # of these pictures
    speed: float  # times as fast
    least: float  # share of each group's units that stays
    rounds: int  # of timing


def prune_to(request: Request, model: nn.Module) -> tuple[Pruned, dict[str, Any]]:
    """The narrower network and what it measured; `model` is left as it was.

    Of all that were tried and are fast enough it is the slowest. Raises GateFailed when none is.
    """
    groups = groups_of(model, family_of(request.model), model.config.size)  # type: ignore[arg-type]
    importance = _importance(request, model, groups)
    dense = runnable(request.model, model)
    clock = _clock(request.model, model, groups, dense)
    best: Tried | None = None
    wanted, most = request.speed, math.inf
    for _ in range(TRIES):
        kept = allocate(clock, importance, clock.times.total / wanted, request.least)
        tried = _tried(request, model, dense, pruned(model, groups, kept))
        if tried.speed >= request.speed and (best is None or tried.speed < best.speed):
            best, most, units = tried, wanted, [len(left) for left in kept]
        if best is not None and best.speed < request.speed * SPARE:
            break
        aim = request.speed * math.sqrt(SPARE)  # the middle of what would end the search
        wanted = min(most, wanted * aim / tried.speed)
    if best is None:
        raise GateFailed(
            f"{request.model}: {tried.speed:.2f} times as fast, not {request.speed:g}, in {TRIES} tries; "
            "nothing was written. Ask for less, or try on a machine that does nothing else"
        )
    return best.found, {
        "model": request.model,
        "importance": request.importance,
        "data": request.data,
        "speed": request.speed,
        "least": request.least,
        "timing": best.timing.to_dict(),
        "parameters": [_parameters(model), best.parameters],
        "multiply_adds": [dense.multiply_adds, best.multiply_adds],
        "units": {group.name: [group.units, left] for group, left in zip(groups, units, strict=True)},
        "widths": dict(best.found.widths),
        "environment": environment(),
    }


@dataclass(frozen=True, slots=True)
class Tried:
    """A narrower network, and how it ran in turns with the whole one."""

    found: Pruned
    parameters: int
    multiply_adds: int
    timing: Timing

    @property
    def speed(self) -> float:
        """Times as fast as the whole network."""
        return 1 / self.timing.ratio


def _tried(request: Request, model: nn.Module, dense: Runnable, found: Pruned) -> Tried:
    narrow = narrowed(model, found)
    slim = runnable(request.model, narrow)
    timing = compared({"before": dense, "after": slim}, request.rounds)[1]
    return Tried(found, _parameters(narrow), slim.multiply_adds, timing)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _clock(name: str, model: nn.Module, groups: Sequence[Group], dense: Runnable) -> Clock:
    """A clock set by what half of each group saves in the layers that the group is in.

    A kernel may run eight channels at once as fast as four: then nothing is saved, however few remain.
    """
    suggested = Clock(dense.times(), groups, _sizes(model), [1.0] * len(groups))
    gains = [0.0] * len(groups)
    whole = [group.units for group in groups]
    for members in track(_apart(groups), "timing"):
        left = [_half(group) if index in members else group.units for index, group in enumerate(groups)]
        halved = pruned(model, groups, [np.arange(units) for units in left])
        slim = runnable(name, narrowed(model, halved))
        before, after = dense.times(), slim.times()  # both now: the machine may be slower than it was
        for index in members:
            layers = groups[index].layers
            alone = [*whole[:index], left[index], *whole[index + 1 :]]
            expected = before.total - replace(suggested, times=before).seconds(alone)
            saved = before.of(layers) - after.of(layers)
            gains[index] = min(max(saved / expected, 0.0), 1.0) if expected > 0 else 0.0
    return replace(suggested, gains=gains)


def _apart(groups: Sequence[Group]) -> list[list[int]]:
    """Sets of groups, by index, that have no layer in common, so that one network tells of all in a set."""
    sets: list[list[int]] = []
    for index, group in enumerate(groups):
        for members in sets:
            if all(group.layers.isdisjoint(groups[other].layers) for other in members):
                members.append(index)
                break
        else:
            sets.append([index])
    return sets


def _half(group: Group) -> int:
    return max(group.step, group.units // 2 // group.step * group.step)


def _sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Outputs and inputs of all that has a weight; outputs alone of a normalisation."""
    sizes = {}
    for name, layer in model.named_modules():
        if isinstance(weight := getattr(layer, "weight", None), Tensor):
            shape = weight.shape[:2]
            sizes[name] = tuple(shape[axis_of(layer, axis)] for axis in range(len(shape)))
    return sizes


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
