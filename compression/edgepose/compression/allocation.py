"""Where channels should leave: where the loss loses least for the time that is saved, as it was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepose.compression.channels import INPUTS, OUTPUTS, Group, Indices
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.oks import F64


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run of a network, as wide as it was when they were measured."""

    layers: Mapping[str, float]  # each takes as long as it has inputs times outputs
    read: Mapping[str, float]  # of what only moves and adds what a layer reads: as long as it has inputs
    total: float  # what is neither stays as it is

    def of(self, layers: Iterable[str]) -> float:
        """Of these layers, with what only serves them."""
        return sum(self.layers.get(name, 0.0) + self.read.get(name, 0.0) for name in layers)


@dataclass(frozen=True, slots=True)
class Clock:
    """Predicts how long a network takes when units have left it."""

    times: Times
    groups: Sequence[Group]
    sizes: Mapping[str, tuple[int, ...]]  # of the weights, by layer
    gains: Sequence[float]  # by group: what was really saved, as a share of what its channels would suggest

    def seconds(self, kept: Sequence[int]) -> float:
        """With so many units in each group."""
        left: dict[tuple[str, int], float] = defaultdict(lambda: 1.0)  # share of a weight's axis
        for group, count, gain in zip(self.groups, kept, self.gains, strict=True):
            for part in group.parts:
                gone = gain * (group.units - count) * part.indices.shape[1]
                left[part.layer, part.axis] -= gone / self.sizes[part.layer][part.axis]
        times = self.times
        saved = sum(s * (1 - left[name, OUTPUTS] * left[name, INPUTS]) for name, s in times.layers.items())
        return times.total - saved - sum(s * (1 - left[name, INPUTS]) for name, s in times.read.items())


def allocate(clock: Clock, importance: Sequence[F64], limit: float, least: float) -> list[Indices]:
    """The units that stay in each group, so that the predicted time is `limit` seconds at most.

    Step by step the units leave whose importance is least for the time that they take, as long as the share
    `least` of a group stays, and one step. Raises GateFailed when the time cannot be reached.
    """
    ranked = [np.sort(values) for values in importance]
    kept = [group.units for group in clock.groups]
    lowest = [max(group.step, least * group.units) for group in clock.groups]
    while (now := clock.seconds(kept)) > limit:
        best = min(_steps(clock, ranked, kept, lowest, now), default=None)
        if best is None:
            raise GateFailed(
                f"no more than {clock.times.total / now:.2f} times the speed by leaving out channels, "
                f"of which a share of {least:g} stays in each group; ask for less"
            )
        kept[best[1]] -= clock.groups[best[1]].step
    return [
        np.sort(np.argsort(-values, kind="stable")[:count])
        for values, count in zip(importance, kept, strict=True)
    ]


def _steps(
    clock: Clock, ranked: Sequence[F64], kept: Sequence[int], lowest: Sequence[float], now: float
) -> list[tuple[float, int]]:
    """What one more step costs in each group that can go on: importance a second saved, and which group."""
    found = []
    for index, group in enumerate(clock.groups):
        after = kept[index] - group.step
        saved = now - clock.seconds([*kept[:index], after, *kept[index + 1 :]])
        if after >= lowest[index] and saved > 0:
            gone = group.units - kept[index]
            found.append((float(ranked[index][gone : gone + group.step].sum()) / saved, index))
    return found
