"""Speed as a ratio: things timed in turns, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgepose.runtime.progress import track

WARM_UP = 2  # first runs pay for set-up that no later one sees


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one of several things took, and how that compares with the first of them."""

    name: str
    p50_ms: float
    p95_ms: float
    ratio: float  # median over the rounds of this one's time to the first one's; below 1 is faster
    low: float  # the middle half of the rounds' ratios lies from here
    high: float  # to here

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Call every candidate once a round, each round beginning with another one."""
    names = list(candidates)
    for name in names * WARM_UP:
        candidates[name]()
    seconds = np.zeros((len(names), rounds))
    for turn in track(range(rounds), "bench"):
        for step in range(len(names)):
            index = (turn + step) % len(names)
            start = clock()
            candidates[names[index]]()
            seconds[index, turn] = clock() - start
    return [_timing(name, mine, seconds[0]) for name, mine in zip(names, seconds, strict=True)]


def _timing(name: str, mine: np.ndarray[Any, Any], first: np.ndarray[Any, Any]) -> Timing:
    p50, p95 = np.percentile(1000 * mine, [50, 95])
    low, middle, high = np.percentile(mine / first, [25, 50, 75])
    return Timing(name, *(float(value) for value in (p50, p95, middle, low, high)))
