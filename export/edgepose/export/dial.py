"""What refining one network's people with another brings and costs: accuracy against time, dial by dial."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from edgepose.calibration.dataset import Dataset
from edgepose.calibration.quality import Quality, assess
from edgepose.calibration.score import Interval, Score, bootstrap_difference, evaluate
from edgepose.runtime.backend import CPU_VIEWS
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.progress import track
from edgepose.runtime.topdown.cascade import INFINITE, Cascade, Dial, Refined
from edgepose.runtime.topdown.pair import Pair

VERSION = 1
HEAD = ("AP", "Δ AP", "95 % interval", "mean ms", "95 % ms", "looked", "twice", "ρ", "ECE")
PROBED = 12  # pictures that tell which budgets are worth a try
STEPS = (0.25, 0.5, 0.75)  # of the way from the time of the first network alone to that of both for everybody


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the dial, over all pictures."""

    policy: str
    budget_ms: float | None  # None: as long as it takes
    score: Score
    quality: Quality
    mean_ms: float  # of a picture, both networks
    p95_ms: float
    looked: float  # share of the people shown without refining who were looked at
    again: float  # share of them who were looked at twice
    broken: int  # people whose new pose was no numbers
    difference: Interval | None = None  # bootstrap interval of AP - AP without refining

    @property
    def budget(self) -> str:
        """In words."""
        if self.budget_ms is None:
            return "no budget"
        return f"{self.budget_ms:.0f} ms" if self.budget_ms >= 10 else f"{self.budget_ms:.2g} ms"

    @property
    def name(self) -> str:
        """For tables."""
        return self.policy if self.budget_ms is None else f"{self.policy}, {self.budget}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {"score": self.score.to_dict(), "quality": self.quality.to_dict()}
        return values | {"difference": self.difference and self.difference._asdict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Point:
        """The figures of `to_dict`."""
        score, quality = Score.from_dict(values["score"]), Quality.from_dict(values["quality"])
        interval = values["difference"] and Interval(**values["difference"])
        return cls(**{**values, "score": score, "quality": quality, "difference": interval})


@dataclass(frozen=True, slots=True)
class Curve:
    """All settings over the same pictures, the first network alone first. JSON round-trips exactly."""

    points: tuple[Point, ...]
    about: dict[str, str]  # models, precision, data, machine

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"version": VERSION, **self.about, "points": [point.to_dict() for point in self.points]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Curve:
        """The figures of `to_dict`."""
        about = {name: value for name, value in values.items() if name not in ("version", "points")}
        return cls(tuple(Point.from_dict(point) for point in values["points"]), about)


def precision_of(*bundles: Bundle) -> str:
    """INT8 if all the bundles have it, for a stream takes one precision for both; else FP32."""
    view = CPU_VIEWS["int8"]
    wanted = [(bundle, f"{graph}.{view}.onnx") for bundle in bundles for graph in bundle.spec.graphs]
    return "int8" if all(name in bundle.files for bundle, name in wanted) else "fp32"


@dataclass(slots=True)
class _Run:
    """What one setting said and how long it took, picture by picture."""

    dial: Dial
    cascade: Cascade
    frames: list[Refined] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def settings(pair: Pair, dataset: Dataset, least: float, budgets_ms: Sequence[float] = ()) -> list[Dial]:
    """The first network alone, then both policies with each budget and without; people from `least` on.

    Without `budgets_ms` some between the time of the first network alone and that of refining everybody, as
    measured on a few of the pictures.
    """
    never, always = (Dial(policy, least=least) for policy in ("never", "always"))
    if not budgets_ms:
        runs = _shown(pair, dataset, [never, always], min(PROBED, len(dataset)))
        start, end = (1000 * float(np.median(run.seconds)) for run in runs)
        budgets_ms = [start + step * (end - start) for step in STEPS]
    budgets_s = [*(budget / 1000 for budget in sorted(budgets_ms)), INFINITE]
    return [never, *(Dial(policy, budget, least) for policy in ("auto", "always") for budget in budgets_s)]


def measure(pair: Pair, dataset: Dataset, dials: Sequence[Dial], min_height_px: float = 0.0) -> list[Point]:
    """Accuracy and time of each setting; the first one is what the others are held against.

    Every picture is shown to all of them in turns, each picture to another one first, so that a slow moment
    of the machine hits them all.
    """
    runs = _shown(pair, dataset, dials, len(dataset))
    truth = [dataset.people(index) for index in range(len(dataset))]
    people = sum(len(frame.poses.above(dials[0].least)) for frame in runs[0].frames)
    points = []
    for run in runs:
        poses = [frame.poses for frame in run.frames]
        judged = (truth, poses, dataset.skeleton, min_height_px)
        points.append(_point(run, evaluate(*judged), assess(*judged), people))
    return [points[0], *(_compared(point, points[0]) for point in points[1:])]


def _shown(pair: Pair, dataset: Dataset, dials: Sequence[Dial], count: int) -> list[_Run]:
    """The first `count` pictures, shown to all settings in turns."""
    runs = [_Run(dial, Cascade(pair, dial)) for dial in dials]
    for run in runs:
        run.cascade(dataset[0].image)  # the first call pays for set-up that no later one sees
    for index in track(range(count), "dial"):
        image = dataset[index].image
        for step in range(len(runs)):
            run = runs[(index + step) % len(runs)]
            start = time.perf_counter()
            run.frames.append(run.cascade(image))
            run.seconds.append(time.perf_counter() - start)
    return runs


def _point(run: _Run, score: Score, quality: Quality, people: int) -> Point:
    looked, again, broken = (
        sum(getattr(frame, name) for frame in run.frames) for name in ("looked", "again", "broken")
    )
    return Point(
        policy=run.dial.policy,
        budget_ms=None if run.dial.budget_s == INFINITE else 1000 * run.dial.budget_s,
        score=score,
        quality=quality,
        mean_ms=1000 * float(np.mean(run.seconds)),
        p95_ms=1000 * float(np.percentile(run.seconds, 95)),
        looked=looked / max(1, people),
        again=again / max(1, people),
        broken=broken,
    )


def _compared(point: Point, never: Point) -> Point:
    return replace(point, difference=bootstrap_difference(point.score, never.score))


def table(curve: Curve) -> Table:
    """One line per setting."""
    score = curve.points[0].score
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    result.caption = (
        f"{score.pictures} pictures, {score.people} people. Δ AP: points, with a 95 % bootstrap interval. "
        "Of the people shown, the % at whom the second network looked, and looked twice. ρ, ECE: is a score "
        "the OKS that the pose reaches?"
    )
    result.caption_justify, result.caption_style = "left", "dim"
    result.add_column("policy, budget", no_wrap=True)
    for name in HEAD:
        result.add_column(name, justify="right", no_wrap=True)
    for point in curve.points:
        result.add_row(point.name, *cells(point, curve.points[0]))
    return result


def cells(point: Point, never: Point) -> tuple[str, ...]:
    """The figures of a line under HEAD."""
    change = between = ""
    if point.difference is not None:
        change = f"{100 * (point.score.ap - never.score.ap):+.1f}"
        between = f"{100 * point.difference.low:+.1f} … {100 * point.difference.high:+.1f}"
    worth = ("" if value is None else f"{value:.3f}" for value in (point.quality.rho, point.quality.ece))
    times = (f"{point.mean_ms:.1f}", f"{point.p95_ms:.1f}")
    shares = (f"{100 * point.looked:.0f}", f"{100 * point.again:.0f}")
    return (f"{100 * point.score.ap:.1f}", change, between, *times, *shares, *worth)
