"""A single-stage network finds the people, a two-stage one looks again at whom that helps, in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from edgepose.runtime.oks import mean_of_two, seen_likeness, silhouettes, suppress
from edgepose.runtime.poses import F32, STAGES, Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.topdown.costs import Costs
from edgepose.runtime.topdown.crop import F64, Crops, Regions
from edgepose.runtime.topdown.pair import Pair
from edgepose.runtime.topdown.people import boxes_around
from edgepose.runtime.topdown.score import poses
from edgepose.runtime.topdown.twostage import MOST, Glance, Rows

POLICIES = ("always", "auto", "never")
FIRST, COARSE, FINE = range(len(STAGES))
INFINITE = float("inf")
LEARNING = 3  # looks at a blank crop before the first frame


@dataclass(frozen=True, slots=True)
class Dial:
    """Between accuracy and time."""

    # always: both looks at everybody. auto: a look at those whom the first model doubts, a second one at
    # those whom that look doubts and a second one may help. never: the first model alone.
    policy: str = "auto"
    budget_s: float = INFINITE  # of a frame, the first model's time included
    least: float = 0.0  # expected OKS below which a pose is nobody's and stays as it is


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """A frame's poses, and what was done for them."""

    poses: Poses  # best first, each person once; with `stages` unless the policy is `never`
    people: int = 0  # whom the policy would look at
    looked: int = 0  # of these, at whom there was time to look
    again: int = 0  # of these, twice
    broken: int = 0  # of these, whose new pose is no numbers: the first model's stays
    seconds: float = 0.0  # beyond the first model's


@dataclass(slots=True)
class _Spent:
    """What the parts of a look take."""

    glance: Costs = field(default_factory=Costs)  # crops cut and seen
    again: Costs = field(default_factory=Costs)  # seen a second time
    reading: Costs = field(default_factory=Costs)  # from heatmaps to poses

    def of(self, count: int) -> float:
        """Seconds that both looks at `count` people are expected to take."""
        return self.glance.of(count) + self.again.of(count) + self.reading.of(count)

    def ease(self) -> None:
        """There was no time for anybody."""
        for part in fields(self):
            getattr(self, part.name).ease()


class Cascade:
    """Refines the poses of frames. The backends stay with their owner."""

    def __init__(
        self,
        pair: Pair,
        dial: Dial,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Looks at a blank crop, to learn what that takes. `clock` is in seconds."""
        self._first, self._second, self._gauge = pair
        self._dial, self._clock = dial, clock
        self._spent = _Spent()
        if dial.policy != "never":
            self._learn()

    def _learn(self) -> None:
        width, height = self._second.spec.width, self._second.spec.height
        frame, box = np.zeros((height, width, 3), np.uint8), np.array([[0.0, 0, width, height]])
        for turn in range(1 + LEARNING):
            self._look(frame, box, lambda quality: np.arange(len(quality)), INFINITE)
            if turn == 0:  # it paid for set-up that no later one sees
                self._spent = _Spent()

    def __call__(self, frame: U8) -> Refined:
        """Poses of a (H, W, 3) BGR frame, in its pixels.

        The worst poses are refined first, as many as the budget allows: a look is begun only when it is
        expected to end in time. Where the first model's pose is expected to be the better one, it stays.
        """
        start = self._clock()
        found = self._first(frame)
        if self._dial.policy == "never":
            return Refined(found)
        middle = self._clock()
        boxes, whose = boxes_around(found, (frame.shape[1], frame.shape[0]))
        chosen = self._worth(found.scores[whose])
        people = whose[chosen]
        looks = list(self._looks(frame, boxes[chosen], found.scores[people], start + self._dial.budget_s))
        best, done = replace(found, stages=np.full(len(found), FIRST, np.uint8)), 0
        for seen in looks:
            best = _better(best, people[done : done + len(seen)], seen)
            done += len(seen)
        # People are as large as the first model found them: one joint thousands of pixels away, from a
        # heatmap without a hill, would make everybody the same person.
        sizes = mean_of_two(silhouettes(found))
        best = suppress(best, seen_likeness(best, self._second.spec.joints().sigma_array(), sizes))
        again = sum(int(np.count_nonzero(seen.stages == FINE)) for seen in looks)
        broken = sum(int(np.isnan(seen.scores).sum()) for seen in looks)
        return Refined(best, len(people), done, again, broken, self._clock() - middle)

    def _expected(self, scores: F32, quality: F32, stage: int) -> F32:
        """(N,) OKS expected of a pose of the stage, by the first model's scores (N,) and the quality (N,)."""
        return self._gauge.expected(scores, quality, np.full(len(scores), stage, np.uint8))

    def _worth(self, scores: F32) -> Rows:
        """Whom to look at, by their first scores (N,): their places, worst first.

        `auto` leaves out those whose pose even a first look that needs no second one would not better.
        """
        worth = scores >= self._dial.least
        if self._dial.policy == "auto":
            promised = np.full(len(scores), self._second.limit, np.float32)
            worth &= scores < self._expected(scores, promised, COARSE)
        return np.flatnonzero(worth)[np.argsort(scores[worth], kind="stable")]

    def _doubted(self, scores: F32, quality: F32) -> Rows:
        """Whom to look at again, by their first scores (N,) and quality (N,): their places, worst first.

        `auto` leaves out those for whom the network promises enough, and those whose second pose would not
        be expected to be better than what is there.
        """
        worth: npt.NDArray[np.bool_] = np.ones(len(scores), np.bool_)
        if self._dial.policy == "auto":
            there = np.maximum(scores, self._expected(scores, quality, COARSE))
            worth = (quality < self._second.limit) & (self._expected(scores, quality, FINE) >= there)
        return np.flatnonzero(worth)[np.argsort(quality[worth], kind="stable")]

    def _looks(self, frame: U8, boxes: F64, scores: F32, deadline: float) -> Iterator[Poses]:
        """What is seen of the people in `boxes`, MOST of them at a time at most, until the deadline.

        The poses' scores are the OKS expected of them; not a number for a pose that is none.
        """
        done = 0
        while done < len(boxes):
            now = self._clock()
            count = _most(min(len(boxes) - done, MOST), deadline - now, self._spent.of)
            if not count:
                break
            part = slice(done, done + count)
            seen = self._look(frame, boxes[part], partial(self._doubted, scores[part]), deadline)
            assert seen.stages is not None
            yield replace(seen, scores=self._gauge.expected(scores[part], seen.scores, seen.stages))
            done += count
        if len(boxes) and not done:
            self._spent.ease()

    def _look(self, frame: U8, boxes: F64, again: Callable[[F32], Rows], deadline: float) -> Poses:
        """Poses of N people, their scores the quality seen; not a number for a pose that is none.

        `again` tells from the quality (N,) whom to look at again, if there is time, in what order.
        """
        start = self._clock()
        regions = Regions.around(boxes, (self._second.spec.width, self._second.spec.height))
        crops = Crops(frame, regions, self._second.spec)
        glance = self._second.glance(crops)
        glanced = self._clock()
        rows = again(glance.quality)
        left = deadline - glanced - self._spent.reading.of(len(boxes))
        rows = rows[: _most(len(rows), left, self._spent.again.of)]
        if len(rows):
            glance.heatmaps[rows] = self._second.look_again(crops, glance, rows)
        seen = self._clock()
        answer = _read(glance, rows, regions)
        self._spent.reading.add(len(boxes), self._clock() - seen)
        self._spent.glance.add(len(boxes), glanced - start)
        if len(rows):
            self._spent.again.add(len(rows), seen - glanced)
        return answer


def _most(most: int, left: float, cost: Callable[[int], float]) -> int:
    """The largest number up to `most` that costs no more than is `left`; 0: none does."""
    return next((count for count in range(most, 0, -1) if cost(count) <= left), 0)


def _read(glance: Glance, again: Rows, regions: Regions) -> Poses:
    """Poses of the glance's heatmaps, those of the rows `again` being the second look's."""
    stages = np.full(len(regions), COARSE, np.uint8)
    stages[again] = FINE
    seen = poses(glance.heatmaps, regions, glance.quality)
    scores = np.where(seen.finite(), glance.quality, np.nan).astype(np.float32)
    return replace(seen, keypoint_scores=seen.keypoint_scores.clip(0, 1), scores=scores, stages=stages)


def _better(found: Poses, people: Rows, seen: Poses) -> Poses:
    """The poses `found` with those of `people` (N,) replaced that are `seen` to be expected no worse."""
    taken = seen.scores >= found.scores[people]
    arrays = []
    for values, others in zip(found.arrays(), seen.arrays(), strict=True):
        values = values.copy()
        values[people[taken]] = others[taken]
        arrays.append(values)
    return Poses(*arrays)
