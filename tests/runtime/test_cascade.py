"""The cascade with a clock and networks that do as told: who is looked at, when, and whose pose stays."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told_people import COLUMNS, PLACES, PLAIN, SIDE, SPEC, Look, World, corner

from edgepose.runtime.backend import Array, Chosen
from edgepose.runtime.bundle import publish
from edgepose.runtime.poses import STAGES, Poses, boxes_of
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown import pair
from edgepose.runtime.topdown.cascade import COARSE, FINE, FIRST, LEARNING, Cascade, Dial, Refined
from edgepose.runtime.topdown.costs import EASING, Costs
from edgepose.runtime.topdown.crop import Regions, prepare
from edgepose.runtime.topdown.heatmaps import decode
from edgepose.runtime.topdown.pair import Pair
from edgepose.runtime.topdown.twostage import MOST, TwoStage


def by_person(result: Refined) -> dict[int, tuple[str, float]]:
    """Stage and score by person, each of whom is there once."""
    centres = result.poses.keypoints.mean(1) // SIDE
    people = [int(x + y * COLUMNS) for x, y in centres]
    assert len(set(people)) == len(people)
    assert result.poses.stages is not None
    stages = [STAGES[stage] for stage in result.poses.stages]
    return dict(zip(people, zip(stages, result.poses.scores.tolist(), strict=True), strict=True))


SCORES = st.floats(0, 1, width=32)
PEOPLE = st.lists(
    st.tuples(SCORES, st.one_of(st.floats(-0.125, 1.25, width=32), st.just(np.nan))), max_size=24
)


@given(PEOPLE, st.sampled_from(["auto", "always"]), st.floats(0, 1.2), st.floats(0, 1))
@settings(max_examples=40)
def test_everybody_is_kept_once_with_the_better_expectation(
    people: list[tuple[float, float]], policy: str, limit: float, least: float
) -> None:
    world = World([score for score, _ in people], [quality for _, quality in people])
    result = world.cascade(policy, limit=limit, least=least)(world.frame())
    found = by_person(result)
    assert found.keys() == set(range(len(people)))
    good = min(np.float32(limit), 1)  # nothing better can be promised
    worth = [s >= np.float32(least) and (policy == "always" or s < good) for s, _ in people]
    for person, (score, quality) in enumerate(people):
        promised = np.clip(quality, 0, 1)
        again = policy == "always" or not quality >= np.float32(limit)
        if worth[person] and promised >= score:
            assert found[person] == ("fine" if again else "coarse", pytest.approx(promised))
        else:
            assert found[person] == ("first", pytest.approx(score))
    assert result.people == result.looked == sum(worth)
    assert result.broken == sum(np.isnan(q) for (_, q), chosen in zip(people, worth, strict=True) if chosen)
    assert result.poses.scores.tolist() == sorted(result.poses.scores.tolist(), reverse=True)


@given(PEOPLE, st.floats(0.001, 0.2), st.tuples(st.floats(0, 0.01), st.floats(0.0001, 0.02)))
@settings(max_examples=40)
def test_the_worst_come_first_and_the_budget_holds(
    people: list[tuple[float, float]], budget_s: float, costs: tuple[float, float]
) -> None:
    world = World([s for s, _ in people], [q for _, q in people], costs, first_s=0.01)
    cascade = world.cascade("auto", budget_s)
    start = world.now
    result = cascade(world.frame())
    assert world.now - start <= max(budget_s, 0.01) + 1e-9  # what looks take never changes: no surprise
    seen = world.looked_at(COARSE)
    scores = np.array(world.scores, np.float32)
    assert seen == np.argsort(scores, kind="stable")[: len(seen)].tolist()
    assert len(seen) == result.looked
    assert all(len(whom) <= MOST for _, whom in world.runs)
    if result.looked < result.people:  # not even one more was to be had
        each = sum(costs)
        assert world.now + 2 * each > start + budget_s - 1e-9


@given(PEOPLE.filter(len), st.lists(st.floats(1, 1.5), min_size=40, max_size=40), st.floats(0.02, 0.2))
@settings(max_examples=40)
def test_the_budget_is_exceeded_by_no_more_than_one_look_was_misjudged(
    people: list[tuple[float, float]], factors: list[float], budget_s: float
) -> None:
    """A run takes up to half as long again; nothing is ever expected to take less than it does at best."""
    world = World([s for s, _ in people], [q for _, q in people], (0.002, 0.003), 0.01)
    cascade = world.cascade("always", budget_s)
    for _ in range(3):
        world.runs.clear()
        world.factors[:] = factors
        start = world.now
        cascade(world.frame())
        last = max((len(whom) for _, whom in world.runs[-2:]), default=0)  # both runs of the last look
        assert world.now - start <= max(budget_s, 0.01) + 2 * 0.5 * (0.002 + 0.003 * last) + 1e-9


def test_never_is_the_first_model_alone() -> None:
    world = World([0.3, 0.6], [0.9, 0.9])
    frame = world.frame()
    result = world.cascade("never")(frame)
    expected = world.first(frame)
    assert not world.runs
    assert result.poses.stages is None
    for mine, theirs in zip(result.poses.arrays(), expected.arrays(), strict=True):
        assert mine.tobytes() == theirs.tobytes()


def test_poses_come_from_where_their_look_saw_them() -> None:
    world = World([0.5, 0.9, 0.4], [0.85, 0.1, 0.6])  # seen once; good enough; seen twice
    result = world.cascade("auto", limit=0.8)(world.frame())
    assert by_person(result) == {
        0: ("coarse", pytest.approx(0.85)),
        1: ("first", pytest.approx(0.9)),
        2: ("fine", pytest.approx(0.6)),
    }
    # A person's joints span 10..30 of their square, with a margin of 1.6 (people.BODY) and a quarter around
    # it all: 29 pixels from 5.5 on. A heatmap's 24 pixels are 29/23 apart.
    for person, stage in ((0, COARSE), (2, FINE)):
        place = result.poses.keypoints[result.poses.stages == stage][0]
        expected = np.array(corner(person)) + 5.5 + PLACES[stage] * 29 / 23
        np.testing.assert_allclose(place, expected, atol=0.01)


def test_two_poses_of_one_person_become_one() -> None:
    world = World([0.5, 0.4], [0.9])
    frame = world.frame()
    found = world.first(frame)
    keypoints = np.stack([found.keypoints[0], found.keypoints[0, ::-1]])  # head and feet exchanged
    world.first = lambda frame: Poses(keypoints, found.keypoint_scores, found.scores, boxes_of(keypoints))
    assert len(world.cascade("never")(frame).poses) == 2
    refined = world.cascade("always")(frame)
    assert refined.looked == 2
    assert refined.poses.scores.tolist() == pytest.approx([0.9])


def test_a_joint_that_lies_far_off_takes_no_neighbour_away() -> None:
    """A map that is no hill: the step from its largest pixel ends thousands of pixels away."""
    maps = np.random.default_rng(0).uniform(0, 0.01, (1, 400, 24, 24)).astype(np.float32)
    flat = maps[0, np.abs(decode(maps)[0][0]).max(1).argmax()]
    world = World([0.5, 0.4, 0.3], [0.9, 0.8, 0.7])
    look = Look(world, FINE)
    run = look.run

    def unsure(feeds: Mapping[str, Array]) -> dict[str, Array]:
        heatmaps = run(feeds)["heatmaps"]
        heatmaps[world.runs[-1][1].index(0), 3] = flat
        return {"heatmaps": heatmaps}

    look.run = unsure  # type: ignore[method-assign]
    second = TwoStage(Look(world, COARSE), look, SPEC, 0.8)
    result = Cascade(Pair(world.first, second, PLAIN), Dial("always"), lambda: world.now)(world.frame())
    assert np.abs(result.poses.keypoints[0, 3]).max() > 1000
    assert result.poses.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize("policy", ["auto", "always"])
def test_nobody(policy: str) -> None:
    world = World([], [])
    result = world.cascade(policy)(world.frame())
    assert (len(result.poses), result.people, result.looked, world.runs) == (0, 0, 0, [])


def test_people_outside_the_frame_and_without_size_stay_as_they_are() -> None:
    world = World([0.5, 0.4, 0.3, 0.2], [0.9] * 4)
    found = world.first(world.frame())
    keypoints = found.keypoints.copy()
    keypoints[0] += 5000
    keypoints[1] = 7  # all joints in one place
    keypoints[2, 3] = np.nan
    world.first = lambda frame: Poses(keypoints, found.keypoint_scores, found.scores, boxes_of(keypoints))
    result = world.cascade("always")(world.frame())
    assert (result.people, result.looked, result.broken) == (1, 1, 0)
    assert result.poses.stages.tolist() == [FINE, FIRST, FIRST, FIRST]
    assert result.poses.scores.tolist() == pytest.approx([0.9, 0.5, 0.4, 0.3])


def test_200_people_are_seen_a_few_at_a_time() -> None:
    world = World([0.2 + 0.003 * p for p in range(200)], [0.9] * 200, costs=(0.001, 0.001), first_s=0.01)
    result = world.cascade("always")(world.frame())
    assert result.looked == result.again == 200
    assert max(len(whom) for _, whom in world.runs) == MOST
    assert len(world.runs) == 2 * -(-200 // MOST)
    world.now = 0.0
    result = world.cascade("always", budget_s=0.1)(world.frame())
    assert 20 <= result.looked < 200
    assert world.now - (LEARNING + 1) * 2 * 0.002 <= 0.1 + 1e-9


@pytest.mark.parametrize(("limit", "stages"), [(9.0, {"fine"}), (-1.0, {"first"})])
def test_a_limit_beyond_all_qualities_refines_everybody_or_nobody(limit: float, stages: set[str]) -> None:
    world = World([0.3, 0.5, 0.7], [0.7, 0.8, 0.9])
    result = world.cascade("auto", limit=limit)(world.frame())
    assert {stage for stage, _ in by_person(result).values()} == stages


def test_a_network_that_answers_no_numbers_changes_nothing() -> None:
    world = World([0.3, 0.5], [0.9, 0.9])
    broken = Look(world, FINE)
    run = broken.run
    broken.run = lambda feeds: {"heatmaps": np.full_like(run(feeds)["heatmaps"], np.nan)}  # type: ignore[method-assign]
    second = TwoStage(Look(world, COARSE), broken, SPEC, 0.95)
    result = Cascade(Pair(world.first, second, PLAIN), Dial(), lambda: world.now)(world.frame())
    assert result.broken == result.again == 2
    assert by_person(result) == {0: ("first", pytest.approx(0.3)), 1: ("first", pytest.approx(0.5))}


class Cutter(Look):
    """A backend that cuts people out of the frame itself, and takes no crops."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("it was fed crops that somebody else had cut")

    def see_regions(
        self, frame: np.ndarray, regions: Regions, feeds: Mapping[str, Array]
    ) -> dict[str, Array]:
        return super().run({"images": prepare(frame, regions, SPEC), **feeds})


def test_who_cuts_people_out_of_the_frame_makes_no_difference() -> None:
    """More people than fit into one run, some of them looked at twice."""
    results, runs = [], []
    for look in (Look, Cutter):
        world = World(np.linspace(0.1, 0.6, MOST + 7).tolist(), np.linspace(0.7, 0.9, MOST + 7).tolist())
        second = TwoStage(look(world, COARSE), look(world, FINE), SPEC, 0.8)
        cascade = Cascade(Pair(world.first, second, PLAIN), Dial())
        results.append(by_person(cascade(world.frame())))
        boxes = np.array([[*corner(person), SIDE, SIDE] for person in range(MOST + 7)], float)
        poses = second(world.frame(), boxes, np.ones(len(boxes)))
        runs.append((world.runs, poses.keypoints.tolist()))
    assert results[0] == results[1]
    assert {stage for stage, _ in results[0].values()} == {"coarse", "fine"}
    assert runs[0] == runs[1]


def test_a_look_refused_for_long_is_tried_again() -> None:
    """One slow moment while it learned must not end all refining."""
    world = World([0.3], [0.9], costs=(0.0, 0.01), first_s=0.01)
    world.factors[:] = [1, 1] + [8, 8] * LEARNING
    cascade = world.cascade("always", budget_s=0.05)
    frames = 1
    while not cascade(world.frame()).looked:
        frames += 1
        assert frames < 200
    assert frames == pytest.approx(np.log(0.04 / 0.16) / np.log(EASING), abs=2)
    assert cascade(world.frame()).looked == 1


def test_after_a_slow_first_look_there_is_no_second_one() -> None:
    world = World([0.3], [0.7], costs=(0.0, 0.01), first_s=0.01)
    cascade = world.cascade("always", budget_s=0.06)
    world.factors[:] = [4.5]
    assert by_person(cascade(world.frame())) == {0: ("coarse", pytest.approx(0.7))}
    assert by_person(cascade(world.frame())) == {0: ("fine", pytest.approx(0.7))}


def test_costs_are_guessed_from_other_counts() -> None:
    costs = Costs()
    assert costs.of(3) == 0
    costs.add(2, 0.2)
    assert [costs.of(count) for count in (1, 2, 6)] == pytest.approx([0.2, 0.2, 0.6])
    costs.add(8, 0.5)
    assert [costs.of(count) for count in (4, 6, 8, 16)] == pytest.approx([0.4, 0.5, 0.5, 1.0])


def test_one_slow_moment_says_nothing_but_two_do() -> None:
    costs = Costs()
    for seconds in (0.1, 0.1, 5.0):
        costs.add(1, seconds)
    assert costs.of(1) == 0.1
    costs.add(1, 5.0)
    assert costs.of(1) == 5.0
    for _ in range(4):
        costs.add(1, 0.1)
    assert costs.of(1) == 0.1


def test_the_limit_is_that_of_the_precision_which_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An INT8 engine that gave way to FP16 promises other qualities."""
    first = Spec("qrpose", "first", 32, 32)
    second = Spec(
        *("sharpose", "second", 24, 32),
        graphs=("coarse", "fine"),
        resize="crop",
        refine_below=0.9,
        refine_below_int8=0.5,
    )
    (tmp_path / "content").mkdir()
    bundles = [publish(tmp_path / "content", tmp_path / spec.model, spec, {}) for spec in (first, second)]
    for runs, limit in (("int8", 0.5), ("fp16", 0.9)):
        monkeypatch.setattr(
            pair,
            "choose",
            lambda *_, runs=runs: Chosen(contextlib.nullcontext(), runs),  # type: ignore[arg-type]
        )
        with pair.open_pair(bundles[0], bundles[1], "int8", device="gpu") as opened:
            assert opened.second.limit == limit
