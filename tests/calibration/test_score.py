"""The evaluator against pycocotools, and the comparisons of two runs against slow plain versions."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgepose.calibration.oks import joint_terms, oks
from edgepose.calibration.sample import Person
from edgepose.calibration.score import (
    THRESHOLDS,
    Score,
    _mean_ap,
    bootstrap_difference,
    evaluate,
    keypoint_drift,
)
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17

K = len(COCO17)
NAMES = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")


def a_person(rng: np.random.Generator, kind: str = "plain") -> Person:
    """A person of 8 to 250 px; `kind` crowd is a region, unlabelled has no joints."""
    x, y, height = rng.uniform(0, 300), rng.uniform(0, 200), 8 * 30 ** rng.uniform()
    width = height * rng.uniform(0.3, 0.8)
    keypoints = np.array([x, y]) + rng.uniform(size=(K, 2)) * (width, height)
    visibility = rng.choice([0, 1, 2], size=K, p=[0.2, 0.2, 0.6])
    if kind == "unlabelled" or (kind == "crowd" and rng.uniform() < 0.7):
        visibility, keypoints = np.zeros(K), np.zeros((K, 2))
    box = (float(x), float(y), float(width), float(height))
    area = float(width * height * rng.uniform(0.3, 0.9))
    return Person(keypoints.astype(np.float32), visibility.astype(np.uint8), box, area, kind == "crowd")


def a_pose(rng: np.random.Generator, people: list[Person]) -> np.ndarray:
    """(K, 2): a person moved a little or a lot, or somebody who is not there."""
    person = people[rng.integers(len(people))] if people and rng.uniform() < 0.85 else a_person(rng)
    noise = rng.choice([0, 0.01, 0.03, 0.1]) * np.sqrt(person.area)
    return person.keypoints + rng.normal(size=(K, 2)) * noise


def found(rng: np.random.Generator, people: list[Person], count: int, levels: int = 1000) -> Poses:
    """`count` poses; few `levels` of the score make ties."""
    if not count:
        return Poses.empty()
    keypoints = np.stack([a_pose(rng, people) for _ in range(count)]).astype(np.float32)
    scores = (rng.integers(1, levels + 1, size=count) / levels).astype(np.float32)
    return Poses(keypoints, np.ones((count, K), np.float32), scores, boxes_of(keypoints))


def a_run(seed: int, pictures: int = 6, levels: int = 1000) -> tuple[list[list[Person]], list[Poses]]:
    rng = np.random.default_rng(seed)
    kinds = ["plain", "plain", "plain", "crowd", "unlabelled"]
    truth = [[a_person(rng, rng.choice(kinds)) for _ in range(rng.integers(0, 6))] for _ in range(pictures)]
    return truth, [found(rng, people, rng.choice([0, 1, 4, 9, 25]), levels) for people in truth]


def pycocotools_scores(truth: list[list[Person]], poses: list[Poses]) -> list[float]:
    """The ten figures of COCOeval; -1 where there is nobody."""
    annotations = [
        {
            "id": 100 * image + index + 1,
            "image_id": image,
            "category_id": 1,
            "keypoints": np.column_stack([p.keypoints, p.visibility]).astype(float).ravel().tolist(),
            "num_keypoints": int((p.visibility > 0).sum()),
            "bbox": list(p.box),
            "area": p.area,
            "iscrowd": int(p.crowd),
        }
        for image, people in enumerate(truth)
        for index, p in enumerate(people)
    ]
    results = [
        {
            "image_id": image,
            "category_id": 1,
            "score": float(found.scores[i]),
            "keypoints": np.column_stack([found.keypoints[i], np.ones(K)]).astype(float).ravel().tolist(),
        }
        for image, found in enumerate(poses)
        for i in range(len(found))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(truth))],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}],
        }
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def our_scores(score: Score) -> list[float]:
    medium, large = score.by_size["medium"], score.by_size["large"]
    values = (score.ap, score.ap50, score.ap75, medium.ap, large.ap)
    recalls = (score.ar, score.ar50, score.ar75, medium.ar, large.ar)
    return [-1.0 if value is None else value for value in (*values, *recalls)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pictures=st.integers(1, 8), levels=st.sampled_from([1, 3, 1000]))
def test_agrees_with_pycocotools(seed: int, pictures: int, levels: int) -> None:
    truth, poses = a_run(seed, pictures, levels)
    assume(any(p.visibility.any() and not p.crowd for people in truth for p in people))
    assume(any(map(len, poses)))  # COCOeval cannot be asked about nobody; see the tests of nobody below
    assert our_scores(evaluate(truth, poses, COCO17)) == pytest.approx(
        pycocotools_scores(truth, poses), abs=1e-6
    )


def test_agreement_is_tested_on_figures_that_mean_something() -> None:
    scores = [evaluate(*a_run(seed, 30), COCO17) for seed in range(4)]
    assert all(0.05 < score.ap < 0.95 for score in scores)
    assert all(size.people > 0 for score in scores for size in score.by_size.values())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_oks_is_the_mean_of_its_terms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    person = a_person(rng)
    keypoints = a_pose(rng, [person])[None].astype(np.float32)
    plain = [
        np.exp(
            -np.sum((keypoints[0, k].astype(float) - person.keypoints[k]) ** 2) / (8 * person.area * s * s)
        )
        for k, s in enumerate(COCO17.sigmas)
        if person.visibility[k]
    ]
    if plain:
        assert oks(keypoints, person, COCO17.sigma_array())[0] == pytest.approx(np.mean(plain), rel=1e-9)


def test_perfect_poses_score_one_and_none_score_zero() -> None:
    rng = np.random.default_rng(0)
    truth = [[replace(a_person(rng), visibility=np.full(K, 2, np.uint8))] for _ in range(5)]
    perfect = [
        Poses(
            p.keypoints[None],
            np.ones((1, K), np.float32),
            np.ones(1, np.float32),
            boxes_of(p.keypoints[None]),
        )
        for (p,) in truth
    ]
    best = evaluate(truth, perfect, COCO17)
    assert (best.ap, best.ar, best.matched) == (1.0, 1.0, 5)
    assert best.per_joint_oks == (1.0,) * K
    worst = evaluate(truth, [Poses.empty()] * 5, COCO17)
    assert (worst.ap, worst.ar, worst.poses, worst.per_joint_oks) == (0.0, 0.0, 0, (None,) * K)


def test_nobody_to_find_is_an_error_not_a_zero() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(EdgeposeError, match="nobody to find"):
        evaluate([[], [a_person(rng, "unlabelled")]], [Poses.empty()] * 2, COCO17)
    with pytest.raises(EdgeposeError, match="9000 px or more"):
        evaluate([[a_person(rng)]], [Poses.empty()], COCO17, min_height_px=9000)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_low_people_neither_count_nor_cost(seed: int) -> None:
    """Ignoring by height is ignoring by crowd flag, once nobody is left who could match without being low."""
    truth, poses = a_run(seed, 5)
    truth = [[p for p in people if not p.crowd] for people in truth]
    assume(any(p.visibility.any() and p.box[3] >= 48 for people in truth for p in people))
    score = evaluate(truth, poses, COCO17, min_height_px=48)
    high = sum(p.box[3] >= 48 and p.visibility.any() for people in truth for p in people)
    assert (score.people, score.people + score.ignored) == (high, sum(map(len, truth)))
    assert score.ap == pytest.approx(slow_ap(truth, poses, 48), abs=1e-9)


def slow_ap(truth: list[list[Person]], poses: list[Poses], min_height: float) -> float:
    """AP with people below a height ignored: loops and lists, one threshold after the other."""
    return float(np.mean([slow_ap_at(t, truth, poses, min_height) for t in THRESHOLDS]))


def slow_ap_at(threshold: float, truth: list[list[Person]], poses: list[Poses], min_height: float) -> float:
    records, positives = [], 0
    for people, found in zip(truth, poses, strict=True):
        low = [p.box[3] < min_height or not p.visibility.any() for p in people]
        positives += low.count(False)
        taken: set[int] = set()
        for d in np.argsort(-found.scores, kind="stable")[:20]:
            values = [oks(found.keypoints[d : d + 1], p, COCO17.sigma_array())[0] for p in people]
            able = [g for g, v in enumerate(values) if v >= threshold and g not in taken]
            able = [g for g in able if not low[g]] or able
            height = np.ptp(found.keypoints[d, :, 1].astype(float))
            if able:
                best = max(able, key=lambda g: (values[g], g))
                taken.add(best)
                if not low[best]:
                    records.append((-found.scores[d], True))
            elif height >= min_height:
                records.append((-found.scores[d], False))
    records.sort(key=lambda record: record[0])
    hits = np.cumsum([hit for _, hit in records])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / positives
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))


def test_per_joint_oks_is_that_of_the_matched_pairs() -> None:
    rng = np.random.default_rng(3)
    person = replace(a_person(rng), visibility=np.array([2] * 16 + [0], np.uint8))
    shifted = person.keypoints.copy()
    shifted[5] += 0.1 * np.sqrt(person.area)
    pose = Poses(shifted[None], np.ones((1, K), np.float32), np.ones(1, np.float32), boxes_of(shifted[None]))
    per_joint = evaluate([[person]], [pose], COCO17).per_joint_oks
    assert per_joint[:5] == (1.0,) * 5
    assert per_joint[5] == pytest.approx(np.exp(-(2 * 0.1**2) / (8 * COCO17.sigmas[5] ** 2)), rel=1e-3)
    assert per_joint[16] is None
    assert joint_terms(shifted[None], person, COCO17.sigma_array())[0, 5] == pytest.approx(per_joint[5])


def test_an_unlabelled_joint_leaves_the_mean_of_that_joint_alone() -> None:
    rng = np.random.default_rng(4)
    people = [replace(a_person(rng), visibility=np.full(K, 2, np.uint8)) for _ in range(2)]
    people[1].visibility[16] = 0
    keypoints = np.stack([p.keypoints for p in people])
    poses = [of(k[None], [0.9]) for k in keypoints]
    assert evaluate([[p] for p in people], poses, COCO17).per_joint_oks == (1.0,) * K


def test_score_survives_json() -> None:
    score = evaluate(*a_run(1, 10), COCO17)
    again = Score.from_dict(json.loads(json.dumps(score.to_dict(), allow_nan=False)))
    assert again == score
    assert again.matches is None
    with pytest.raises(ValueError, match="evaluate again"):
        bootstrap_difference(score, again)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_weighted_ap_is_the_ap_of_the_repeated_pictures(seed: int) -> None:
    truth, poses = a_run(seed, 6, levels=10**6)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 6, size=6)
    assume(any(p.visibility.any() and not p.crowd for i in drawn for p in truth[i]))
    score = evaluate(truth, poses, COCO17)
    repeated = evaluate([truth[i] for i in drawn], [poses[i] for i in drawn], COCO17)
    weights = np.bincount(drawn, minlength=6).astype(float)[None]
    assert score.matches is not None
    assert _mean_ap(score.matches, weights)[0] == pytest.approx(repeated.ap, abs=1e-9)


def shaken(poses: list[Poses], pixels: float, seed: int) -> list[Poses]:
    rng = np.random.default_rng(seed)
    moved = [(p.keypoints + rng.normal(size=p.keypoints.shape) * pixels).astype(np.float32) for p in poses]
    return [replace(p, keypoints=k, boxes=boxes_of(k)) for p, k in zip(poses, moved, strict=True)]


def test_bootstrap_holds_the_difference_and_sees_a_real_loss() -> None:
    truth, poses = a_run(5, 60)
    a, worse = evaluate(truth, poses, COCO17), evaluate(truth, shaken(poses, 3, 0), COCO17)
    low, high = bootstrap_difference(a, worse, draws=400)
    assert 0 < low < a.ap - worse.ap < high
    assert bootstrap_difference(a, a, draws=50) == (0.0, 0.0)
    assert bootstrap_difference(a, worse, draws=400) == (low, high)  # the seed decides
    with pytest.raises(ValueError, match="different pictures"):
        bootstrap_difference(a, evaluate(truth[:-1], poses[:-1], COCO17))


def test_bootstrap_of_few_people_among_many_pictures() -> None:
    """Draws that hold nobody have no AP and are left out."""
    rng = np.random.default_rng(2)
    alone = replace(a_person(rng), visibility=np.full(K, 2, np.uint8))
    perfect = of(alone.keypoints[None], [0.9])
    truth, poses = [[alone], [], [], []], [perfect, *[Poses.empty()] * 3]
    none = [Poses.empty()] * 4
    difference = bootstrap_difference(
        evaluate(truth, poses, COCO17), evaluate(truth, none, COCO17), draws=200
    )
    assert difference == (1.0, 1.0)


def test_bootstrap_spread_is_that_of_fresh_data() -> None:
    """The interval's width is about that of the difference over independent draws of the data itself."""
    differences = []
    for seed in range(30):
        truth, poses = a_run(1000 + seed, 40)
        differences.append(
            evaluate(truth, poses, COCO17).ap - evaluate(truth, shaken(poses, 2, seed), COCO17).ap
        )
    truth, poses = a_run(1, 40)
    low, high = bootstrap_difference(
        evaluate(truth, poses, COCO17), evaluate(truth, shaken(poses, 2, 1), COCO17), draws=400
    )
    fresh = np.quantile(differences, 0.975) - np.quantile(differences, 0.025)
    assert 0.5 < (high - low) / fresh < 2


def of(keypoints: np.ndarray, scores: list[float]) -> Poses:
    k = keypoints.astype(np.float32)
    return Poses(k, np.ones(k.shape[:2], np.float32), np.array(scores, np.float32), boxes_of(k))


def test_drift_pairs_the_same_people_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    three = np.stack([a_person(rng).keypoints + 400 * i for i in range(3)])
    three = three + rng.uniform(0, 60, size=three.shape)
    before = of(three, [0.9, 0.8, 0.7])
    after = of(three[[2, 0, 1]] + (3, 4), [0.9, 0.8, 0.7])
    drift = keypoint_drift([before, Poses.empty()], [after, of(three[:1], [0.9])], COCO17)
    assert (drift.matched, drift.lost, drift.extra) == (3, 0, 1)
    assert (drift.p50_px, drift.p95_px) == pytest.approx((5, 5), abs=1e-4)
    halved = keypoint_drift([before], [after], COCO17, scales=[0.5])
    assert halved.p50_px == pytest.approx(2.5, abs=1e-4)


def test_drift_gives_each_pose_to_one_person_only() -> None:
    keypoints = np.random.default_rng(0).uniform(0, 100, size=(1, K, 2))
    twins = np.concatenate([keypoints, keypoints + 1])
    merged = keypoint_drift([of(twins, [0.9, 0.8])], [of(keypoints, [0.9])], COCO17)
    assert (merged.matched, merged.lost, merged.extra, merged.p50_px) == (1, 1, 0, 0.0)
    split = keypoint_drift([of(keypoints, [0.9])], [of(twins, [0.9, 0.8])], COCO17)
    assert (split.matched, split.lost, split.extra, split.p50_px) == (1, 0, 1, 0.0)
    broken = of(np.where(np.arange(K)[:, None] == 3, np.nan, keypoints), [0.9])
    assert keypoint_drift([of(keypoints, [0.9])], [broken], COCO17).lost == 1


def test_drift_counts_who_disappears_and_says_nothing_about_nobody() -> None:
    keypoints = np.random.default_rng(0).uniform(0, 100, size=(1, K, 2))
    drift = keypoint_drift([of(keypoints, [0.9])], [of(keypoints, [0.1])], COCO17)
    assert (drift.p50_px, drift.matched, drift.lost, drift.extra) == (None, 0, 1, 0)
    far = keypoint_drift([of(keypoints, [0.9])], [of(keypoints + 500, [0.9])], COCO17)
    assert (far.matched, far.lost, far.extra) == (0, 1, 1)
