"""Which layers' INT8 costs how much, in OKS and pixels, and which of them to leave float to hold a gate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from edgepose.calibration.ledger import Gates, Ledger, Row
from edgepose.calibration.oks import oks_matrix
from edgepose.calibration.quality import assess
from edgepose.calibration.sample import Person
from edgepose.calibration.score import bootstrap_difference, evaluate, keypoint_drift
from edgepose.compression.answers import Answers
from edgepose.compression.groups import Group
from edgepose.runtime.oks import F64
from edgepose.runtime.poses import Poses
from edgepose.runtime.progress import progress_bar, track

VERSION = 1
DRAWS, LEVEL = 1000, 0.95  # of the bootstrap over pictures; more where chance is smaller than these resolve
BEYOND = 10  # draws in the tail that chance leaves to one layer: fewer do not say where it ends


@dataclass(frozen=True, slots=True)
class Cost:
    """What a group's INT8 costs: the mean of its first and its last marginal cost, with a 95 % interval."""

    mean: float
    low: float
    high: float
    alone: float  # this group INT8, against none
    last: float  # all groups INT8, against all but this one


@dataclass(frozen=True, slots=True)
class Blamed:
    """One group and its costs."""

    group: Group
    oks: Cost  # mean OKS of the labelled people, of the best pose that a stream shows
    drift_px: Cost  # joints against the FP32 graph's, in pixels of the input: mean of the pictures' medians
    certain: bool  # whether the cost in OKS is beyond chance, as many layers as there are to look at


@dataclass(frozen=True, slots=True)
class Point:
    """The network with the first groups of the ranking float."""

    floats: int  # how many they are
    macs: float  # share of all multiplications that are INT8
    oks: float  # as in Blamed
    row: Row  # held against the FP32 graph's
    failures: tuple[str, ...]  # gates that it fails, in words

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        row = self.row
        return {
            "floats": self.floats,
            "int8_macs": self.macs,
            "oks": self.oks,
            "ap": row.score.ap,
            "ap_difference": row.difference and row.difference._asdict(),
            "drift_px": row.drift and asdict(row.drift),
            "failures": list(self.failures),
        }


@dataclass(frozen=True, slots=True)
class Blame:
    """The ranking, worst first, and what leaving its first groups float brings."""

    ranking: tuple[Blamed, ...]
    frontier: tuple[Point, ...]  # from all INT8 to all float, the latter being the FP32 graph

    @property
    def islands(self) -> tuple[Blamed, ...]:
        """The groups to leave float: the fewest of the ranking with which the gates hold."""
        return self.ranking[: min(point.floats for point in self.frontier if not point.failures)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "version": VERSION,
            "ranking": [
                {
                    **asdict(each.group),
                    "oks": asdict(each.oks),
                    "drift_px": asdict(each.drift_px),
                    "certain": each.certain,
                }
                for each in self.ranking
            ],
            "frontier": [point.to_dict() for point in self.frontier],
            "islands": [each.group.name for each in self.islands],
        }


class _Figures(NamedTuple):
    """What is known of I pictures."""

    oks: F64  # (I,) sum over the people who count
    moved: F64  # (I,) median way of the joints from FP32's, times `matched`
    matched: F64  # (I,) people whom both show


class Judge:
    """Scores the poses of any choice of float groups against the labels and against the FP32 graph's poses.

    Raises EdgeposeError when no picture has a person who counts.
    """

    def __init__(self, answers: Answers, gates: Gates, min_height_px: float = 0.0) -> None:
        self.answers, self.gates, self._least_px = answers, gates, min_height_px
        shown, spec = answers.shown, answers.spec
        self.all = frozenset(group.name for group in answers.groups)
        self._truth = [shown.pictures.people(index) for index in range(len(shown))]
        self._float = answers.of(self.all)
        self._scales = [shown.scale(index, poses, spec) for index, poses in enumerate(self._float)]
        self._baseline = self._scored(self._float)
        counted = [sum(map(self._counts, people)) for people in self._truth]
        self._people = np.array(counted, np.float64)  # (I,)
        self._chance = (1 - LEVEL) / 2 / len(answers.groups)  # of being beyond it by chance (Bonferroni)
        self._taken = _draws(self._people, max(DRAWS, math.ceil(BEYOND / self._chance)))
        self._macs = sum(switches.macs for switches in answers.switches.values())
        self._none, self._every = self._of(self.all), self._of(frozenset())

    def _counts(self, person: Person) -> bool:
        return not person.crowd and bool(person.visibility.any()) and person.box[3] >= self._least_px

    def _scored(self, found: Sequence[Poses]) -> Row:
        judged = (self._truth, found, self.answers.spec.joints(), self._least_px)
        return Row("FP32", evaluate(*judged), quality=assess(*judged))

    def _of(self, floats: frozenset[str]) -> _Figures:
        return self._figures(self.answers.of(floats))

    def _figures(self, found: Sequence[Poses]) -> _Figures:
        joints, least = self.answers.spec.joints(), self.answers.spec.score_threshold
        rows = []
        for poses, before, people, scale in zip(found, self._float, self._truth, self._scales, strict=True):
            wanted = [person for person in people if self._counts(person)]
            reached = oks_matrix(poses.above(least).keypoints, wanted, joints.sigma_array())  # (D, G)
            drift = keypoint_drift([before], [poses], joints, least, [scale])
            moved = (drift.p50_px or 0.0) * drift.matched
            rows.append((reached.max(axis=0, initial=0.0).sum(), moved, drift.matched))
        return _Figures(*np.array(rows, np.float64).T)

    def cost(self, group: Group) -> Blamed:
        """What the group's INT8 costs, when it is the first and when it is the last to become INT8."""
        alone, last = self._of(self.all - {group.name}), self._of(frozenset({group.name}))
        pairs = ((self._none, alone), (last, self._every))
        oks = [self._mean(better.oks - worse.oks) for better, worse in pairs]
        drift = (self._drift(alone), self._drift(self._every) - self._drift(last))
        certain = bool(np.quantile((oks[0] + oks[1])[1:], self._chance) > 0)
        return Blamed(group, _cost(*oks), _cost(*drift), certain)

    def _mean(self, sums: F64) -> F64:
        """(I,) sums over the people of each picture -> (S,) means of each draw."""
        return np.asarray(self._taken @ sums / (self._taken @ self._people))

    def _drift(self, figures: _Figures) -> F64:
        """(S,) pixels of each draw."""
        return np.asarray(self._taken @ figures.moved / np.maximum(self._taken @ figures.matched, 1))

    def point(self, groups: Sequence[Group], floats: int) -> Point:
        """The network with the first `floats` of all groups float."""
        found = self.answers.of(frozenset(group.name for group in groups[:floats]))
        return self.judged(found, floats, sum(group.macs for group in groups[floats:]))

    def judged(self, found: Sequence[Poses], floats: int, int8_macs: int) -> Point:
        """What these poses are worth, of a network with so many groups float and multiplications INT8."""
        row, spec = self._scored(found), self.answers.spec
        row = replace(
            row,
            stage=f"{floats} layers float",
            drift=keypoint_drift(self._float, found, spec.joints(), spec.score_threshold, self._scales),
            difference=bootstrap_difference(row.score, self._baseline.score),
        )
        oks = float(self._mean(self._figures(found).oks)[0])
        failures = Ledger((self._baseline, row), self.gates).failures(row)
        return Point(floats, int8_macs / self._macs, oks, row, tuple(failures))


def _draws(people: F64, count: int) -> F64:
    """(count + 1, I) how often each picture is taken: first once, then at random.

    Without the draws that take nobody.
    """
    pictures = len(people)
    drawn = np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), count)
    return np.concatenate([np.ones((1, pictures)), drawn[drawn @ people > 0]])


def _cost(alone: F64, last: F64) -> Cost:
    """From (S,) values, the first one of all pictures, the others of draws."""
    mean = (alone + last) / 2
    low, high = np.quantile(mean[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Cost(*(float(value) for value in (mean[0], low, high, alone[0], last[0])))


def blame(judge: Judge) -> Blame:
    """Ask for every group alone and for all but each, rank them, and walk the frontier."""
    ranking = rank(judge)
    return Blame(ranking, tuple(walk(judge, [blamed.group for blamed in ranking])))


def rank(judge: Judge) -> tuple[Blamed, ...]:
    """The groups, worst first: by OKS where that cost is certain, the others by drift, a finer measure."""
    groups = judge.answers.groups
    blamed = [
        judge.cost(group) for group in track(groups, "blame: each layer alone and left out", len(groups))
    ]
    return tuple(sorted(blamed, key=_badness, reverse=True))


def _badness(blamed: Blamed) -> tuple[float, float]:
    return (blamed.oks.mean if blamed.certain else 0.0, blamed.drift_px.mean)


def walk(judge: Judge, groups: Sequence[Group]) -> Iterator[Point]:
    """Points of the frontier: one group more float each time until the gates hold, then twice as many."""
    floats, step, count, held = 0, 1, len(groups), False
    with progress_bar() as bar:
        task = bar.add_task("blame: the frontier", total=count)
        while True:
            point = judge.point(groups, floats)
            yield point
            bar.update(task, completed=floats)
            if floats == count:
                return
            held = held or not point.failures
            floats, step = min(count, floats + step), 2 * step if held else 1


HEAD = ("OKS", "95 % interval", "alone", "last", "drift px", "95 % interval", "MACs %")


def table(found: Blame, rows: int) -> Table:
    """The worst groups with their costs, one line each."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    result.add_column("cost of a layer's INT8", overflow="fold")
    for name in HEAD:
        result.add_column(name, justify="right", no_wrap=True)
    total = sum(each.group.macs for each in found.ranking)
    for each in found.ranking[:rows]:
        share = 100 * each.group.macs / max(1, total)
        figures = (*_cells(each.oks, 100), f"{100 * each.oks.alone:+.2f}", f"{100 * each.oks.last:+.2f}")
        mark = "! " if each.certain else ""
        result.add_row(mark + escape(each.group.name), *figures, *_cells(each.drift_px, 1), f"{share:.1f}")
    result.caption = (
        "Cost: mean of what a layer's INT8 costs alone (all others float) and last (all others INT8), with a "
        "95 % bootstrap interval over the pictures. OKS: mean of the labelled people, in hundredths; ! where "
        "that is beyond chance. Drift: of the joints from FP32's. MACs: of all INT8 ones."
    )
    result.caption_justify, result.caption_style = "left", "dim"
    return result


def _cells(cost: Cost, unit: int) -> tuple[str, str]:
    mean, low, high = (f"{unit * value:+.2f}" for value in (cost.mean, cost.low, cost.high))
    return mean, f"{low} … {high}"


def points_table(found: Blame) -> Table:
    """The frontier, one line a point."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    for name in ("layers float", "INT8 MACs %", "OKS", "AP", "Δ AP", "drift px", "gates"):
        result.add_column(name, justify="right", no_wrap=True)
    base = found.frontier[-1].row.score.ap
    for point in found.frontier:
        score, drift = point.row.score, point.row.drift
        moved = "none" if drift is None or drift.p50_px is None else f"{drift.p50_px:.2f}"
        figures = (f"{point.oks:.4f}", f"{100 * score.ap:.1f}", f"{100 * (score.ap - base):+.2f}", moved)
        result.add_row(str(point.floats), f"{100 * point.macs:.1f}", *figures, "✗" if point.failures else "✓")
    return result


def advice(found: Blame) -> str:
    """Which layers to leave float, in words."""
    islands = found.islands
    if not islands:
        return "All layers can be INT8: the gates hold."
    names = ", ".join(each.group.name for each in islands)
    return f"To hold the gates leave {len(islands)} of {len(found.ranking)} layers float: {names}"
