"""Accuracy of poses as COCO measures it (AP, AR over OKS), and how two runs over the same pictures differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgepose.calibration.oks import joint_terms, oks_matrix
from edgepose.calibration.sample import Person
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.oks import F64, similarity
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.skeleton import Skeleton

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# COCO keypoint challenge: OKS thresholds, recall grid, detections per picture, area ranges in square pixels.
THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float64)
RECALLS = np.linspace(0.0, 1.0, 101, dtype=np.float64)
MAX_POSES = 20
WHOLE_RANGE = (0.0, 1e5**2)
SIZES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
)


@dataclass(frozen=True, slots=True)
class SizeScore:
    """AP and AR among people of one area range."""

    people: int
    ap: float | None  # None when there is nobody of this size
    ar: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """What became of D detections in I pictures at T thresholds; best score first."""

    picture: Ints  # (D,) index of the picture
    scores: F64  # (D,)
    hit: Bools  # (T, D) matched to a person who counts
    counted: Bools  # (T, D) neither matched to an ignored person nor outside the size range
    positives: Ints  # (I,) people who count


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy of one run over one data set. AP and AR are fractions; 0.01 is "one point"."""

    ap: float
    ap50: float
    ap75: float
    ar: float
    ar50: float
    ar75: float
    by_size: dict[str, SizeScore]
    per_joint_oks: tuple[
        float | None, ...
    ]  # (K,) mean similarity over matched people, None: joint never labelled
    pictures: int
    people: int  # who count
    ignored: int  # crowds, people without labelled joints, people below `min_height_px`
    poses: int  # at most 20 a picture
    matched: int  # at OKS 0.5
    min_height_px: float = 0.0
    matches: Matches | None = field(default=None, compare=False, repr=False)  # not part of the JSON

    @property
    def ap_medium(self) -> float | None:
        """COCO's AP_M: areas of 32² to 96² square pixels."""
        return self.by_size["medium"].ap

    @property
    def ap_large(self) -> float | None:
        """COCO's AP_L: areas above 96² square pixels."""
        return self.by_size["large"].ap

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; everything but the matches."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "matches"}
        values["by_size"] = {name: asdict(size) for name, size in self.by_size.items()}
        values["per_joint_oks"] = list(self.per_joint_oks)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Score:
        """The figures of `to_dict`; without the matches there is no bootstrap."""
        sizes = {name: SizeScore(**size) for name, size in values["by_size"].items()}
        return cls(**{**values, "by_size": sizes, "per_joint_oks": tuple(values["per_joint_oks"])})


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """Detections (D, at most 20, best first) and people (G) of one picture."""

    poses: Poses
    people: tuple[Person, ...]
    oks: F64  # (D, G)
    hidden: Bools  # (G,) people who never count


class _Outcome(NamedTuple):
    """Matching of one picture at T thresholds."""

    person: Ints  # (T, D) index of the matched person, -1 for none
    counted: Bools  # (T, D)
    positives: int


def evaluate(
    truth: Sequence[Sequence[Person]],
    poses: Sequence[Poses],
    skeleton: Skeleton,
    min_height_px: float = 0.0,
    sizes: Mapping[str, tuple[float, float]] = SIZES,
) -> Score:
    """Score the poses of each picture against its people, as `COCOeval` with iouType keypoints does.

    People whose box is lower than `min_height_px` neither count nor cost, and, as with COCO's area ranges,
    neither do unmatched poses that are lower. Raises EdgeposeError when nobody is left to be found.
    """
    pictures = list(_pictures(truth, poses, skeleton.sigma_array(), min_height_px))
    outcomes = [_match(picture, WHOLE_RANGE, min_height_px) for picture in pictures]
    matches = _collect(pictures, outcomes)
    if not matches.positives.sum():
        raise EdgeposeError(
            f"nobody to find: {len(pictures)} pictures without a labelled person of {min_height_px:g} px "
            "or more; choose other evaluation data"
        )
    ap, recall = _average_precision(matches), _recall(matches)
    per_size = {
        name: _size_score(_collect(pictures, [_match(p, area, min_height_px) for p in pictures]))
        for name, area in sizes.items()
    }
    return Score(
        **dict(zip(("ap", "ap50", "ap75"), _figures(ap), strict=True)),
        **dict(zip(("ar", "ar50", "ar75"), _figures(recall), strict=True)),
        by_size=per_size,
        per_joint_oks=_per_joint(pictures, outcomes, skeleton),
        pictures=len(pictures),
        people=int(matches.positives.sum()),
        ignored=sum(len(p.people) for p in pictures) - int(matches.positives.sum()),
        poses=len(matches.scores),
        matched=int(matches.hit[0].sum()),
        min_height_px=min_height_px,
        matches=matches,
    )


def _figures(values: F64) -> tuple[float, float, float]:
    """(T,) -> mean over the thresholds, at 0.50, at 0.75."""
    return float(values.mean()), float(values[0]), float(values[5])


def _best(poses: Poses) -> Poses:
    """The at most 20 best poses, best first; equal scores keep their order."""
    return poses[np.argsort(-poses.scores, kind="stable")[:MAX_POSES]]


def _pictures(
    truth: Sequence[Sequence[Person]], poses: Sequence[Poses], sigmas: F64, min_height_px: float
) -> Iterator[_Picture]:
    for people, found in zip(truth, poses, strict=True):
        best = _best(found)
        hidden = [p.crowd or not p.visibility.any() or p.box[3] < min_height_px for p in people]
        yield _Picture(
            best, tuple(people), oks_matrix(best.keypoints, people, sigmas), np.array(hidden, bool)
        )


def _match(picture: _Picture, area: tuple[float, float], min_height_px: float) -> _Outcome:
    """Give each pose, best first, the most similar person still free, at all thresholds at once.

    A pose goes to an ignored person only when no other is left for it; crowds take any number of poses.
    """
    areas = np.array([person.area for person in picture.people])  # (G,)
    ignored = picture.hidden | (areas < area[0]) | (areas > area[1])
    crowd = np.array([person.crowd for person in picture.people], bool)
    free = np.ones((len(THRESHOLDS), len(areas)), bool)  # (T, G)
    person = np.full((len(THRESHOLDS), len(picture.poses)), -1)  # (T, D)
    for index, similar in enumerate(picture.oks if len(areas) else ()):  # similar (G,)
        wanted = free & (similar >= THRESHOLDS[:, None])  # (T, G)
        regular = wanted & ~ignored
        chosen = np.where(regular.any(axis=1, keepdims=True), regular, wanted)
        best = _last_argmax(np.where(chosen, similar, -1.0))  # (T,)
        person[:, index] = np.where(chosen.any(axis=1), best, -1)
        free[np.arange(len(free)), best] &= ~chosen.any(axis=1) | crowd[best]
    return _Outcome(person, _counted(picture, person, ignored, (area, min_height_px)), int((~ignored).sum()))


def _last_argmax(values: F64) -> Ints:
    """(T, G) -> (T,) index of the largest value; COCO's evaluator takes the last of equals."""
    return np.asarray(values.shape[1] - 1 - values[:, ::-1].argmax(axis=1))


def _counted(
    picture: _Picture, person: Ints, ignored: Bools, limits: tuple[tuple[float, float], float]
) -> Bools:
    """(T, D): matched to someone who counts, or unmatched and of a size that counts."""
    (low, high), min_height_px = limits
    width, height = _extent(picture.poses.keypoints).T.astype(np.float64)  # (D,) each
    inside = (width * height >= low) & (width * height <= high) & (height >= min_height_px)
    if not len(ignored):
        return np.broadcast_to(inside, person.shape)
    return np.asarray(np.where(person >= 0, ~ignored[person], inside))


def _extent(keypoints: F32) -> F64:
    """(D, K, 2) -> (D, 2) width and height of the joints. COCO's area of a detection is their product."""
    points = keypoints.astype(np.float64)
    return np.asarray(points.max(axis=1) - points.min(axis=1)) if len(points) else np.zeros((0, 2))


def _collect(pictures: Sequence[_Picture], outcomes: Sequence[_Outcome]) -> Matches:
    """All detections of all pictures, best first; equal scores keep the order of the pictures."""
    empty = np.zeros((len(THRESHOLDS), 0), bool)
    scores = np.concatenate([np.zeros(0), *(p.poses.scores.astype(np.float64) for p in pictures)])
    order = np.argsort(-scores, kind="stable")
    counted = np.concatenate([empty, *(o.counted for o in outcomes)], axis=1)[:, order]
    matched = np.concatenate([empty, *(o.person >= 0 for o in outcomes)], axis=1)[:, order]
    picture = np.repeat(np.arange(len(pictures)), [len(p.poses) for p in pictures])[order]
    positives = np.array([o.positives for o in outcomes], np.int64)
    return Matches(picture, scores[order], matched & counted, counted, positives)


def _size_score(matches: Matches) -> SizeScore:
    people = int(matches.positives.sum())
    if not people:
        return SizeScore(0, None, None)
    return SizeScore(people, float(_average_precision(matches).mean()), float(_recall(matches).mean()))


def _recall(matches: Matches) -> F64:
    """(T,) share of the people found."""
    return np.asarray(matches.hit.sum(axis=1) / matches.positives.sum())


def _average_precision(matches: Matches) -> F64:
    """(T,) of all pictures, each taken once."""
    once = np.ones((1, len(matches.positives)))
    return np.array(
        [_weighted_ap(matches, t, once, matches.positives.sum())[0] for t in range(len(THRESHOLDS))]
    )


def _weighted_ap(matches: Matches, threshold: int, weights: F64, positives: Any) -> F64:
    """(S,) average precision when picture i is taken weights[s, i] times; positives (S,) or scalar.

    The precision at recall r is the best one at any recall of r or more, averaged over COCO's 101 recalls.
    Only hits raise recall or precision, so only they are looked at.
    """
    kept = np.flatnonzero(matches.counted[threshold])
    hits = matches.hit[threshold][kept]
    taken = weights[:, matches.picture[kept]]  # (S, D)
    found = taken[:, hits].cumsum(axis=1)  # (S, H) true positives up to each hit
    precision = found / np.maximum(taken.cumsum(axis=1)[:, hits], 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.reshape(positives, (-1, 1))
    reached = np.searchsorted(RECALLS, recall, side="right")  # grid points at or below each recall
    steps = np.diff(reached, axis=1, prepend=0)
    return np.asarray((envelope * steps).sum(axis=1) / len(RECALLS))


def _per_joint(
    pictures: Sequence[_Picture], outcomes: Sequence[_Outcome], skeleton: Skeleton
) -> tuple[float | None, ...]:
    """(K,) mean similarity of the labelled joints of everyone found at the lowest threshold."""
    sigmas, total, count = skeleton.sigma_array(), np.zeros(len(skeleton)), np.zeros(len(skeleton))
    for picture, outcome in zip(pictures, outcomes, strict=True):
        for pose, person in enumerate(outcome.person[0]):
            if person < 0 or not outcome.counted[0, pose]:
                continue
            matched = picture.people[person]
            terms = joint_terms(picture.poses.keypoints[pose : pose + 1], matched, sigmas)[0]
            total += np.where(matched.visibility > 0, terms, 0)
            count += matched.visibility > 0
    return tuple(float(t / n) if n else None for t, n in zip(total, count, strict=True))


class Interval(NamedTuple):
    """A bootstrap interval of a difference."""

    low: float
    high: float


def bootstrap_difference(
    a: Score, b: Score, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval that holds AP(a) - AP(b) at this level, the same pictures being drawn again for both.

    Both scores must come from `evaluate` over the same pictures in the same order (ValueError otherwise).
    """
    if a.matches is None or b.matches is None:
        raise ValueError("a score read from JSON has no matches to draw from; evaluate again")
    if not np.array_equal(a.matches.positives, b.matches.positives):
        raise ValueError("the scores are of different pictures or people")
    generator = np.random.default_rng(seed)
    differences = [
        _mean_ap(a.matches, weights) - _mean_ap(b.matches, weights)
        for weights in _resampled(generator, a.matches.positives, draws)
    ]
    low, high = np.quantile(np.concatenate(differences), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _resampled(generator: np.random.Generator, positives: Ints, draws: int, chunk: int = 32) -> Iterator[F64]:
    """Weights (S, I): how often each of I pictures is drawn, in chunks that stay in the cache."""
    pictures = len(positives)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        weights = generator.multinomial(pictures, np.full(pictures, 1 / pictures), size=size)
        yield weights[weights @ positives > 0].astype(np.float64)  # a draw without people has no AP


def _mean_ap(matches: Matches, weights: F64) -> F64:
    """(S,) AP over the thresholds."""
    positives = weights @ matches.positives
    per_threshold = [_weighted_ap(matches, t, weights, positives) for t in range(len(THRESHOLDS))]
    return np.asarray(np.mean(per_threshold, axis=0))


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the joints of the same people move from one run to another."""

    p50_px: float | None  # None: nobody was matched
    p95_px: float | None
    matched: int  # people in both runs
    lost: int  # only in the reference
    extra: int  # only in the other


def keypoint_drift(
    reference: Sequence[Poses],
    other: Sequence[Poses],
    skeleton: Skeleton,
    threshold: float = 0.25,
    scales: Sequence[float | F64] | None = None,
) -> Drift:
    """Compare two runs over the same pictures, among poses with a score of at least `threshold`.

    Pixels are those of the source frame; with `scales`, network pixels per source pixel of each picture, or
    of each of its reference poses (P,), they are pixels of the network input.
    """
    distances, lost, extra, matched = [np.zeros(0)], 0, 0, 0
    for index, (every, other_poses) in enumerate(zip(reference, other, strict=True)):
        before, after = every.above(threshold), other_poses.above(threshold)
        scale = np.broadcast_to(scales[index] if scales else 1.0, len(every))[every.scores >= threshold]
        pairs = _pair(before, after, skeleton.sigma_array())
        firsts = [i for i, _ in pairs]
        moved = before.keypoints[firsts] - after.keypoints[[j for _, j in pairs]]  # (M, K, 2)
        far = np.linalg.norm(moved.astype(np.float64), axis=-1) * scale[firsts, None]
        distances.append(far.ravel())
        matched, lost, extra = (
            matched + len(pairs),
            lost + len(before) - len(pairs),
            extra + len(after) - len(pairs),
        )
    lengths = np.concatenate(distances)
    p50, p95 = np.quantile(lengths, [0.5, 0.95]).tolist() if len(lengths) else (None, None)
    return Drift(p50, p95, matched, lost, extra)


SAME_PERSON_OKS = 0.3  # below this two poses are rather two people than one that moved


def _pair(before: Poses, after: Poses, sigmas: F64) -> list[tuple[int, int]]:
    """Pairs (index before, index after), most similar first, each pose at most once."""
    if not len(before) or not len(after):
        return []
    offsets = before.keypoints[:, None].astype(np.float64) - after.keypoints[None]  # (P, Q, K, 2)
    areas = np.maximum(_extent(before.keypoints).prod(axis=1), 1.0)[:, None, None]  # (P, 1, 1)
    similar = np.nan_to_num(similarity(offsets, areas, sigmas).mean(axis=-1))  # (P, Q)
    pairs = []
    while similar.max() >= SAME_PERSON_OKS:
        i, j = (int(n) for n in np.unravel_index(similar.argmax(), similar.shape))
        pairs.append((i, j))
        similar[i, :] = similar[:, j] = -1
    return pairs
