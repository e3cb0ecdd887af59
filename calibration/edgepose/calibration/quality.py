"""Whether a pose's score means something: it should rank poses by the OKS they reach, and be that OKS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from edgepose.calibration.oks import oks_matrix
from edgepose.calibration.sample import Person
from edgepose.calibration.score import MAX_POSES, Bools, Interval, Ints, evaluate
from edgepose.runtime.oks import F64
from edgepose.runtime.poses import Poses
from edgepose.runtime.skeleton import Skeleton

BINS = 10  # of the score, equally wide
NEAR_OKS = 0.1  # below this a pose is rather about nobody
CLAIM_SCORE, SAME_OKS = 0.1, 0.5  # poses that claim to be, and are, one person: more than one is a duplicate


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """What D poses in I pictures were expected to reach, and what they reach."""

    picture: Ints  # (D,) index of the picture
    person: Ints  # (D,) index, among all people, of the most similar one who counts; -1: there is none
    scores: F64  # (D,) predicted OKS
    oks: F64  # (D,) OKS with that person, 0 without one
    positives: Ints  # (I,) people who count

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Bools | Ints) -> Pairs:
        """The chosen poses, by mask or indices."""
        taken = (self.picture[chosen], self.person[chosen], self.scores[chosen], self.oks[chosen])
        return Pairs(*taken, self.positives)

    def matched(self) -> Pairs:
        """One pose for each person found: the most similar one, whatever its score.

        Choosing by score would let the score pick the poses it is judged on, and taking all poses above a
        threshold would compare two runs on different ones (1190 against 2475 in our own pilot).
        """
        near = self[self.oks >= NEAR_OKS]
        near = near[np.argsort(-near.oks, kind="stable")]
        return near[np.unique(near.person, return_index=True)[1]]


@dataclass(frozen=True, slots=True)
class Bin:
    """The poses, one at least, whose score lies in one tenth of 0..1."""

    low: float  # where the tenth begins
    count: int
    predicted: float  # mean score
    actual: float  # mean OKS


@dataclass(frozen=True, slots=True)
class Quality:
    """How well the scores of one run predict the OKS of its poses."""

    rho: float | None  # Spearman, score and OKS of the matched poses; None: fewer than two, or all equal
    tau: float | None  # Kendall's tau-b of the same
    bins: tuple[Bin, ...]  # the reliability curve, all poses; tenths without a pose are left out
    ece: float | None  # expected calibration error: mean of |predicted - actual| over the bins, by count
    mae: float | None  # mean of |score - OKS| over all poses
    ap_oracle: float  # AP of the same poses, were their score the OKS they reach
    ap_gap: float  # ap_oracle - AP: what a better score alone could still win
    duplicates: int  # poses that claim a person whom another one has already
    poses: int
    matched: int  # people with a pose of NEAR_OKS or more
    pairs: Pairs | None = field(default=None, compare=False, repr=False)  # not part of the JSON

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; everything but the pairs."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pairs"}
        return {**values, "bins": [asdict(each) for each in self.bins]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Quality:
        """The figures of `to_dict`; without the pairs there is no bootstrap."""
        return cls(**{**values, "bins": tuple(Bin(**each) for each in values["bins"])})


def assess(
    truth: Sequence[Sequence[Person]],
    poses: Sequence[Poses],
    skeleton: Skeleton,
    min_height_px: float = 0.0,
) -> Quality:
    """Hold the scores of each picture's poses (at most 20) against the OKS they reach.

    As in `evaluate`, poses of people who do not count are left out, and so are poses of nobody that are lower
    than `min_height_px`. Raises EdgeposeError when nobody is left to be found.
    """
    best = [found[np.argsort(-found.scores, kind="stable")[:MAX_POSES]] for found in poses]
    paired = [_pair(*both, skeleton, min_height_px) for both in zip(truth, best, strict=True)]
    oracle = [replace(b, scores=p.oks.astype(np.float32)) for b, p in zip(best, paired, strict=True)]
    ap, ap_oracle = (evaluate(truth, run, skeleton, min_height_px, sizes={}).ap for run in (best, oracle))
    pairs = _joined(best, paired, [len(people) for people in truth])
    matched, bins = pairs.matched(), reliability(pairs.scores, pairs.oks)
    return Quality(
        rho=spearman(matched.scores, matched.oks),
        tau=kendall(matched.scores, matched.oks),
        bins=bins,
        ece=_calibration_error(bins),
        mae=float(np.abs(pairs.scores - pairs.oks).mean()) if len(pairs) else None,
        ap_oracle=ap_oracle,
        ap_gap=ap_oracle - ap,
        duplicates=_duplicates(pairs),
        poses=len(pairs),
        matched=len(matched),
        pairs=pairs,
    )


class _Paired(NamedTuple):
    """The poses of one picture, best first."""

    person: Ints  # (D,) index of the most similar person who counts, -1: there is none
    oks: F64  # (D,) with that person
    kept: Bools  # (D,)
    positives: int


def _pair(people: Sequence[Person], poses: Poses, skeleton: Skeleton, min_height_px: float) -> _Paired:
    """A broken pose (not a number) is one of nobody, as in `evaluate`."""
    similar = np.nan_to_num(oks_matrix(poses.keypoints, people, skeleton.sigma_array()))  # (D, G)
    counts = np.array(
        [p.visibility.any() and not p.crowd and p.box[3] >= min_height_px for p in people], bool
    )
    nobody = np.zeros((len(poses), 1))
    wanted = np.hstack([nobody, np.where(counts, similar, 0.0)])  # (D, 1 + G)
    reached, ignored = wanted.max(axis=1), np.where(counts, 0.0, similar).max(axis=1, initial=0.0)
    low = poses.boxes[:, 3] - poses.boxes[:, 1] < min_height_px
    kept = np.where(np.maximum(reached, ignored) >= NEAR_OKS, reached >= ignored, ~low)
    return _Paired(wanted.argmax(axis=1) - 1, reached, kept, int(counts.sum()))


def _joined(poses: Sequence[Poses], paired: Sequence[_Paired], people: Sequence[int]) -> Pairs:
    """The kept poses of all pictures; `people` is the number of people in each."""
    first = np.cumsum([0, *people])
    persons = [np.where(p.person < 0, -1, p.person + start) for p, start in zip(paired, first, strict=False)]
    every = Pairs(
        picture=np.repeat(np.arange(len(poses)), [len(found) for found in poses]),
        person=np.concatenate([np.zeros(0, np.int64), *persons]),
        scores=np.concatenate([np.zeros(0), *(found.scores.astype(np.float64) for found in poses)]),
        oks=np.concatenate([np.zeros(0), *(p.oks for p in paired)]),
        positives=np.array([p.positives for p in paired], np.int64),
    )
    return every[np.concatenate([np.zeros(0, bool), *(p.kept for p in paired)])]


def _duplicates(pairs: Pairs) -> int:
    claims = pairs[(pairs.scores >= CLAIM_SCORE) & (pairs.oks >= SAME_OKS)]
    return len(claims) - len(np.unique(claims.person))


def reliability(scores: F64, oks: F64) -> tuple[Bin, ...]:
    """Mean score and mean OKS of D poses in each tenth of the score; a score of 1 is in the last one."""
    cell = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    chosen = ((index, cell == index) for index in np.unique(cell).tolist())
    return tuple(
        Bin(index / BINS, int(here.sum()), float(scores[here].mean()), float(oks[here].mean()))
        for index, here in chosen
    )


def _calibration_error(bins: Sequence[Bin]) -> float | None:
    if not bins:
        return None
    return sum(b.count * abs(b.predicted - b.actual) for b in bins) / sum(b.count for b in bins)


def spearman(a: F64, b: F64) -> float | None:
    """Rank correlation of two series (M,); None when a series is constant or shorter than two."""
    rho = float(_weighted_spearman(a, b, np.ones((1, len(a))))[0])
    return None if np.isnan(rho) else rho


def kendall(a: F64, b: F64) -> float | None:
    """tau-b of two series (M,): pairs ordered alike less pairs ordered apart, ties taken out; None as above.

    M. Kendall, "The treatment of ties in ranking problems", 1945. Takes time M², 2 s for 10 000.
    """
    tau = float(_weighted_kendall(a, b, np.ones((1, len(a))))[0])
    return None if np.isnan(tau) else tau


def _weighted_spearman(a: F64, b: F64, weights: F64, chunk: int = 50) -> F64:
    """(S,) Spearman's rho when pair i is taken weights[s, i] times; NaN where a series is constant."""
    parts = np.split(weights, range(chunk, len(weights), chunk))  # that stay in the cache
    return np.concatenate([_spearman(a, b, part) for part in parts])


def _spearman(a: F64, b: F64, weights: F64) -> F64:
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    x, y = (_ranks(values, weights) for values in (a, b))
    x, y = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / total for ranks in (x, y))
    products = [(weights * u * v).sum(axis=1) for u, v in ((x, y), (x, x), (y, y))]
    spread = np.sqrt(products[1] * products[2])
    return np.asarray(np.divide(products[0], spread, out=np.full(len(weights), np.nan), where=spread > 0))


def _weighted_kendall(a: F64, b: F64, weights: F64, block: int = 256) -> F64:
    """(S,) tau-b when pair i is taken weights[s, i] times; NaN where a series is constant."""
    agreement = np.zeros(len(weights))  # less disagreement, of ordered pairs
    for start in range(0, len(a), block):
        rows = slice(start, start + block)
        x, y = (np.sign(values[rows, None] - values) for values in (a, b))
        agreement += (weights[:, rows] * (weights @ (x * y).T)).sum(axis=1)
    spread = np.sqrt(_untied(a, weights) * _untied(b, weights))
    return np.asarray(np.divide(agreement, spread, out=np.full(len(weights), np.nan), where=spread > 0))


def _untied(values: F64, weights: F64) -> F64:
    """(S,) ordered pairs of unequal values."""
    if not len(values):
        return np.zeros(len(weights))
    order, new = _groups(values)
    sizes = np.add.reduceat(weights[:, order], new, axis=1)  # (S, distinct values)
    return np.asarray(sizes.sum(axis=1) ** 2 - (sizes**2).sum(axis=1))


def _groups(values: F64) -> tuple[Ints, Ints]:
    """The order of values (M,), and where in it each distinct value begins."""
    order = np.argsort(values, kind="stable")
    return order, np.flatnonzero(np.diff(values[order], prepend=-np.inf) > 0)


def _ranks(values: F64, weights: F64) -> F64:
    """(S, M) ranks, from 1, of values (M,) taken weights[s, i] times each; equals share their mean rank."""
    if not len(values):
        return np.zeros(weights.shape)
    order, first = _groups(values)
    sizes = np.add.reduceat(weights[:, order], first, axis=1)  # (S, distinct values)
    means = sizes.cumsum(axis=1) - (sizes - 1) / 2
    ranks = np.empty(weights.shape)
    ranks[:, order] = np.repeat(means, np.diff(first, append=len(values)), axis=1)
    return ranks


def rho_difference(
    a: Quality, b: Quality, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """The interval that holds rho(a) - rho(b) at this level, over the people matched in both runs.

    None where these are fewer than two, or have all one score.

    Pictures are drawn, not people: people in one picture share its light, its blur and one another's
    occlusion, so they are no independent draws and their interval would be too narrow. Both must come from
    `assess` over the same pictures in the same order (ValueError otherwise).
    """
    return _rank_difference(_weighted_spearman, (a, b), draws, seed, level)


def tau_difference(
    a: Quality, b: Quality, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """As `rho_difference`, of Kendall's tau-b."""
    return _rank_difference(_weighted_kendall, (a, b), draws, seed, level)


def _rank_difference(
    correlation: Callable[[F64, F64, F64], F64],
    both: tuple[Quality, Quality],
    draws: int,
    seed: int,
    level: float,
) -> Interval | None:
    a, b = both
    if a.pairs is None or b.pairs is None:
        raise ValueError("a quality read from JSON has no pairs to draw from; assess again")
    if not np.array_equal(a.pairs.positives, b.pairs.positives):
        raise ValueError("the qualities are of different pictures or people")
    left, right = a.pairs.matched(), b.pairs.matched()
    _, mine, yours = np.intersect1d(left.person, right.person, return_indices=True)
    left, right = left[mine], right[yours]
    weights = _resampled(left, draws, seed)
    known = correlation(left.scores, left.oks, weights) - correlation(right.scores, right.oks, weights)
    known = known[~np.isnan(known)]  # a draw of fewer than two people has no rank correlation
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _resampled(pairs: Pairs, draws: int, seed: int) -> F64:
    """Weights (S, M) of the pairs when the pictures are drawn again."""
    pictures, generator = len(pairs.positives), np.random.default_rng(seed)
    drawn = generator.multinomial(pictures, np.full(pictures, 1 / pictures), size=draws)
    return drawn[:, pairs.picture].astype(np.float64)
