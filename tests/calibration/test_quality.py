"""What scores are worth: closed forms, brute-force definitions, and detectors whose honesty is known."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.calibration.quality import (
    BINS,
    NEAR_OKS,
    Quality,
    _weighted_kendall,
    _weighted_spearman,
    assess,
    kendall,
    reliability,
    rho_difference,
    spearman,
    tau_difference,
)
from edgepose.calibration.sample import Person
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17

K, SIGMAS = len(COCO17), COCO17.sigma_array()
Run = tuple[list[list[Person]], list[Poses]]


def a_person(x: float = 0.0, height: float = 100.0, crowd: bool = False, labelled: bool = True) -> Person:
    """Somebody of a given height, all joints spread over the box."""
    place = np.random.default_rng(0).uniform(size=(K, 2))
    place[:2] = (0, 0), (1, 1)  # the joints reach the ends of the box
    keypoints = (np.array([x, 0]) + place * (0.5 * height, height)).astype(np.float32)
    flags = np.full(K, 2 if labelled else 0, np.uint8)
    return Person(keypoints, flags, (x, 0.0, 0.5 * height, height), 0.3 * height**2, crowd)


def reaching(person: Person, oks: float) -> np.ndarray:
    """Their joints, each moved so far to the right that every term of the OKS is `oks`."""
    moved = np.sqrt(-2 * math.log(oks) * person.area) * 2 * SIGMAS
    return person.keypoints + np.stack([moved, np.zeros(K)], axis=1)


def of(keypoints: list[np.ndarray], scores: list[float]) -> Poses:
    k = np.array(keypoints, np.float32).reshape(-1, K, 2)
    return Poses(k, np.ones(k.shape[:2], np.float32), np.array(scores, np.float32), boxes_of(k))


def one_each(scores: np.ndarray, oks: np.ndarray) -> Run:
    """One person and one pose a picture, the pose reaching exactly that OKS."""
    person = a_person()
    found = [of([reaching(person, o)], [s]) for s, o in zip(scores, oks, strict=True)]
    return [[person]] * len(found), found


def a_detector(seed: int, people: int = 600, noise: float = 0.1) -> Run:
    """Scores are the OKS and an error."""
    rng = np.random.default_rng(seed)
    oks = rng.uniform(0.15, 0.95, size=people)
    return one_each(np.clip(oks + noise * rng.normal(size=people), 0.01, 1), oks)


FAR = np.full((K, 2), 1e5) + 4 * np.arange(2 * K).reshape(K, 2)


def test_each_pose_is_paired_with_the_oks_it_reaches() -> None:
    scores, oks = [0.9, 0.3, 0.5], [0.2, 0.8, 0.05]
    pairs = assess(*one_each(np.array(scores), np.array(oks)), COCO17).pairs
    assert pairs is not None
    np.testing.assert_allclose(pairs.scores, scores, rtol=1e-6)
    np.testing.assert_allclose(pairs.oks, oks, rtol=1e-3)
    assert (pairs.picture.tolist(), pairs.positives.tolist()) == ([0, 1, 2], [1, 1, 1])


def test_poses_of_people_who_do_not_count_are_left_out_and_poses_of_nobody_are_not() -> None:
    person, crowd = a_person(), a_person(500, crowd=True)
    unlabelled, low = a_person(2000, labelled=False), a_person(4000, height=40)
    truth = [[person, crowd, unlabelled, low], []]
    broken = np.where(np.arange(K)[:, None] == 3, np.nan, person.keypoints)
    poses = [
        of(
            [reaching(person, 0.7), *(reaching(p, 0.9) for p in (crowd, unlabelled, low)), FAR, broken],
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        ),
        of([FAR, low.keypoints], [0.3, 0.2]),
    ]
    pairs = assess(truth, poses, COCO17, min_height_px=48).pairs
    assert pairs is not None
    # Left out: three of people who do not count, and in the empty picture one that is too low.
    np.testing.assert_allclose(pairs.scores, [0.9, 0.5, 0.4, 0.3], rtol=1e-6)
    np.testing.assert_allclose(pairs.oks, [0.7, 0, 0, 0], atol=1e-3)
    assert (pairs.person.tolist(), pairs.positives.tolist()) == ([0, -1, -1, -1], [1, 0])
    everyone = assess(truth, poses, COCO17).pairs
    assert everyone is not None
    assert len(everyone) == 6  # without the limit the low ones are people, and poses, like all others


def test_a_pose_between_two_goes_to_the_more_similar_one() -> None:
    person, crowd = a_person(), replace(a_person(8), crowd=True)
    poses = [of([reaching(person, 0.99), crowd.keypoints], [0.9, 0.8])]
    pairs = assess([[person, crowd]], poses, COCO17).pairs
    assert pairs is not None
    np.testing.assert_allclose(pairs.scores, [0.9], rtol=1e-6)


def test_only_the_twenty_best_poses_of_a_picture_are_looked_at() -> None:
    person = a_person()
    quality = assess([[person]], [of([FAR] * 20 + [person.keypoints], [0.9] * 20 + [0.8])], COCO17)
    assert (quality.poses, quality.matched, quality.ap_oracle) == (20, 0, 0.0)


def test_a_person_is_matched_by_the_most_similar_pose_whatever_its_score() -> None:
    left, right, missed = a_person(), a_person(1000), a_person(3000)
    found = of(
        [reaching(left, 0.75), reaching(left, 0.8), reaching(right, 0.7), reaching(missed, NEAR_OKS / 2)],
        [0.9, 0.3, 0.5, 0.4],
    )
    quality = assess([[left, right, missed]], [found], COCO17)
    assert quality.pairs is not None
    matched = quality.pairs.matched()
    np.testing.assert_allclose(matched.oks, [0.8, 0.7], rtol=1e-3)
    np.testing.assert_allclose(matched.scores, [0.3, 0.5], rtol=1e-6)
    assert quality.matched == 2
    assert (quality.rho, quality.tau) == pytest.approx((-1, -1))


SERIES = st.integers(2, 25).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=n, max_size=n)] * 2)
)


def plain_ranks(values: list[float]) -> list[float]:
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def plain_kendall(a: list[float], b: list[float]) -> float:
    """tau-b of Kendall's definition: pair by pair."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    alike = sum((a[i] - a[j]) * (b[i] - b[j]) > 0 for i, j in pairs)
    apart = sum((a[i] - a[j]) * (b[i] - b[j]) < 0 for i, j in pairs)
    untied = [sum(v[i] != v[j] for i, j in pairs) for v in (a, b)]
    return (alike - apart) / math.sqrt(untied[0] * untied[1])


@given(series=SERIES)
def test_correlations_are_those_of_their_definitions(series: tuple[list[float], list[float]]) -> None:
    a, b = series
    rho, tau = (measure(np.array(a), np.array(b)) for measure in (spearman, kendall))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert (rho, tau) == (None, None)
        return
    assert rho == pytest.approx(plain_rho(a, b), abs=1e-12)
    assert tau == pytest.approx(plain_kendall(a, b), abs=1e-12)


@pytest.mark.parametrize("levels", [3, 10**9])
def test_correlations_agree_with_scipy(levels: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is there only when another library brings it")
    rng = np.random.default_rng(levels)
    a, b = (rng.integers(0, levels, size=300).astype(float) for _ in range(2))
    assert spearman(a, a + b) == pytest.approx(stats.spearmanr(a, a + b).statistic, abs=1e-12)
    assert kendall(a, a + b) == pytest.approx(stats.kendalltau(a, a + b).statistic, abs=1e-12)


def test_correlations_of_nobody_and_of_one() -> None:
    for few in (np.zeros(0), np.ones(1)):
        assert (spearman(few, few), kendall(few, few)) == (None, None)


def plain_rho(a: list[float], b: list[float]) -> float:
    """Spearman's: Pearson's of the ranks."""
    return float(np.corrcoef(plain_ranks(a), plain_ranks(b))[0, 1])


@pytest.mark.parametrize(
    ("weighted", "plain"), [(_weighted_spearman, plain_rho), (_weighted_kendall, plain_kendall)]
)
@given(series=SERIES, seed=st.integers(0, 10**6))
def test_weighted_correlations_are_those_of_the_repeated_pairs(
    weighted: Callable[..., np.ndarray],
    plain: Callable[[list[float], list[float]], float],
    series: tuple[list[float], list[float]],
    seed: int,
) -> None:
    times = np.random.default_rng(seed).integers(0, 4, size=(2, len(series[0])))
    for found, repeats in zip(weighted(*map(np.array, series), times.astype(float)), times, strict=True):
        a, b = (np.repeat(values, repeats).tolist() for values in series)
        if len(set(a)) < 2 or len(set(b)) < 2:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(plain(a, b), abs=1e-12)


def test_bins_hold_every_pose_once_with_its_mean_score_and_oks() -> None:
    scores, oks = np.array([0.0, 0.05, 0.32, 0.95, 1.0]), np.array([0.0, 0.1, 0.9, 0.5, 1.0])
    first, middle, last = reliability(scores, oks)
    assert (first.low, first.count, first.predicted, first.actual) == pytest.approx((0.0, 2, 0.025, 0.05))
    assert (middle.low, middle.count, middle.predicted, middle.actual) == pytest.approx((0.3, 1, 0.32, 0.9))
    assert (last.low, last.count, last.predicted, last.actual) == pytest.approx((0.9, 2, 0.975, 0.75))
    quality = assess(*one_each(np.array([0.32, 0.38, 0.95]), np.array([0.9, 0.2, 0.5])), COCO17)
    # Bins: |.35 - .55| of two poses, |.95 - .5| of one. Poses: .58, .18, .45.
    assert quality.ece == pytest.approx((2 * 0.2 + 0.45) / 3, abs=1e-3)
    assert quality.mae == pytest.approx((0.58 + 0.18 + 0.45) / 3, abs=1e-3)


def calibrated(seed: int, people: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and OKS that spread evenly around them."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.05, 0.95, size=people)
    spread = np.minimum(scores, 1 - scores) * 0.98
    return scores, scores + rng.uniform(-1, 1, size=people) * spread


def test_a_calibrated_detector_has_no_calibration_error_and_a_boastful_one_has_what_it_adds() -> None:
    scores, oks = calibrated(0)
    honest = assess(*one_each(scores, oks), COCO17)
    # Each bin's error is a mean of n deviations of standard deviation s: about s / sqrt(n) by chance alone.
    chance = (oks - scores).std() / math.sqrt(len(oks) / BINS)
    assert honest.ece is not None
    assert honest.ece < chance < 0.03
    assert honest.mae == pytest.approx(np.abs(oks - scores).mean(), abs=1e-3)
    boastful = np.sqrt(scores)
    shown = assess(*one_each(boastful, oks), COCO17)
    assert shown.ece == pytest.approx((boastful - scores).mean(), abs=0.01)
    assert shown.ece > 5 * honest.ece
    assert shown.rho == pytest.approx(honest.rho, abs=1e-4)  # it ranks as well as before


def test_shuffled_scores_rank_nothing() -> None:
    """Negative control of the evaluation plan: |rho| < 0.1."""
    scores, oks = calibrated(1)
    assert assess(*one_each(scores, oks), COCO17).rho > 0.5
    shuffled = assess(*one_each(np.random.default_rng(0).permutation(scores), oks), COCO17)
    assert shuffled.rho is not None
    assert shuffled.tau is not None
    assert abs(shuffled.rho) < 0.1
    assert abs(shuffled.tau) < 0.1


def test_the_oracle_ranks_the_same_poses_by_what_they_reach() -> None:
    person = a_person()
    wrong_first = assess([[person]], [of([FAR, person.keypoints], [0.9, 0.1])], COCO17)
    # One hit after one miss: precision 1/2 at every recall; the oracle has it the other way round.
    assert (wrong_first.ap_oracle, wrong_first.ap_gap) == pytest.approx((1.0, 0.5))
    scores, oks = calibrated(2, 60)
    assert assess(*one_each(oks, oks), COCO17).ap_gap == pytest.approx(0.0, abs=1e-9)
    assert assess(*one_each(scores, oks), COCO17).ap_gap > 0.01


def test_planted_duplicates_are_counted() -> None:
    left, right, crowd = a_person(), a_person(1000), a_person(3000, crowd=True)
    clean = [reaching(left, 0.9), reaching(right, 0.9)]
    twice = [reaching(left, 0.7), reaching(left, 0.55)]  # two beyond the first
    others = [
        reaching(right, 0.45),  # too far to be the same person
        *[reaching(crowd, 0.9)] * 3,  # crowds take any number
        *[FAR] * 2,  # nobody twice is not somebody twice
    ]
    truth = [[left, right, crowd]]

    def duplicates(keypoints: list[np.ndarray], scores: list[float]) -> int:
        return assess(truth, [of(keypoints, scores)], COCO17).duplicates

    assert duplicates(clean, [0.9, 0.8]) == 0
    assert duplicates(clean + twice, [0.9, 0.8, 0.4, 0.3]) == 2
    assert duplicates(clean + twice, [0.9, 0.8, 0.4, 0.05]) == 1  # a score below 0.1 claims nothing
    assert duplicates(clean + others, [0.9, 0.8] + [0.5] * len(others)) == 0
    both = assess(truth * 2, [of(clean, [0.9, 0.8])] * 2, COCO17)  # the same place in two pictures
    assert both.duplicates == 0


@pytest.mark.parametrize(("difference", "figure"), [(rho_difference, "rho"), (tau_difference, "tau")])
def test_the_interval_of_a_difference_in_ranks(
    difference: Callable[..., tuple[float, float]], figure: str
) -> None:
    truth, good = a_detector(0)
    worse = a_detector(0, noise=0.3)[1]
    a, b = assess(truth, good, COCO17), assess(truth, worse, COCO17)
    low, high = difference(a, b)
    assert 0 < low < getattr(a, figure) - getattr(b, figure) < high
    assert difference(b, a) == pytest.approx((-high, -low))
    assert difference(a, b) == (low, high)  # the seed decides
    assert difference(a, b, seed=1) != (low, high)
    assert difference(a, a, draws=50) == (0.0, 0.0)
    level = difference(a, b, level=0.5)
    assert low < level.low < level.high < high


def test_the_interval_is_as_wide_as_fresh_data_would_have_it() -> None:
    def both(seed: int) -> tuple[Quality, Quality]:
        truth, good = a_detector(seed, people=50)
        return assess(truth, good, COCO17), assess(truth, a_detector(seed, 50, noise=0.3)[1], COCO17)

    fresh = [a.rho - b.rho for a, b in map(both, range(1, 41))]
    low, high = rho_difference(*both(0))
    assert 0.6 < (high - low) / (np.quantile(fresh, 0.975) - np.quantile(fresh, 0.025)) < 1.6


def test_people_of_one_picture_are_not_drawn_one_by_one() -> None:
    """Four people who all fare alike tell no more than one: the interval stays as wide."""
    truth, good = a_detector(3, people=60)
    worse = a_detector(3, people=60, noise=0.3)[1]

    def fourfold(found: list[Poses]) -> list[Poses]:
        return [of([p.keypoints[0] + (1000 * i, 0) for i in range(4)], [p.scores[0]] * 4) for p in found]

    crowded = [[a_person(1000 * i) for i in range(4)]] * len(truth)
    alone = rho_difference(*(assess(truth, found, COCO17) for found in (good, worse)))
    # Moved in float32, their OKS differ in the fifth digit.
    together = rho_difference(*(assess(crowded, fourfold(found), COCO17) for found in (good, worse)))
    assert together == pytest.approx(alone, abs=0.01)


def test_a_difference_is_over_the_people_found_in_both_runs() -> None:
    truth, good = a_detector(4, people=60)
    lost = [Poses.empty() if index % 3 else found for index, found in enumerate(good)]
    assert rho_difference(assess(truth, good, COCO17), assess(truth, lost, COCO17), draws=50) == (0.0, 0.0)


def test_what_cannot_be_compared_is_refused() -> None:
    truth, poses = a_detector(0, people=10)
    quality = assess(truth, poses, COCO17)
    with pytest.raises(ValueError, match="assess again"):
        rho_difference(quality, Quality.from_dict(quality.to_dict()))
    with pytest.raises(ValueError, match="different pictures"):
        rho_difference(quality, assess(truth[:-1], poses[:-1], COCO17))
    nothing = assess(truth, [Poses.empty()] * 10, COCO17)
    assert rho_difference(quality, nothing) is None
    with pytest.raises(EdgeposeError, match="nobody to find"):
        assess([[]], [Poses.empty()], COCO17)


def test_a_run_that_finds_nobody_has_no_figures_rather_than_wrong_ones() -> None:
    nothing = assess([[a_person()]], [Poses.empty()], COCO17)
    assert (nothing.rho, nothing.tau, nothing.bins, nothing.ece, nothing.mae) == (None, None, (), None, None)
    assert (nothing.ap_oracle, nothing.ap_gap, nothing.duplicates, nothing.poses) == (0.0, 0.0, 0, 0)
    assert Quality.from_dict(json.loads(json.dumps(nothing.to_dict(), allow_nan=False))) == nothing


def test_quality_survives_json() -> None:
    quality = assess(*a_detector(0, people=40), COCO17)
    again = Quality.from_dict(json.loads(json.dumps(quality.to_dict(), allow_nan=False)))
    assert again == quality
    assert again.pairs is None
    assert again.bins


def test_a_thousand_draws_of_five_hundred_pictures_take_seconds() -> None:
    truth, poses = a_detector(0, people=500)
    quality = assess(truth, poses, COCO17)
    start = time.process_time()
    rho_difference(quality, quality)
    assert time.process_time() - start < 10
