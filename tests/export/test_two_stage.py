"""What it means that two looks differ, and what the ledger says of whom a network looks at again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.calibration.boxes import Boxes
from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates, Looks
from edgepose.calibration.measure import Artefact, ledger_of, run_all
from edgepose.calibration.watch import Look, Watch, compared
from edgepose.compression.execution import Outputs
from edgepose.compression.graph import Array
from edgepose.runtime.agreement import LookDifference, look_difference, shared_cells
from edgepose.runtime.backend import Backend
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import Regions

K, CELLS = 4, 12
SPEC = Spec(
    "sharpose", "sharpose_tiny_128x96", 96, 128, graphs=("coarse", "fine"), resize="crop", sharp_cells=K
)


def coarse(seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    return {
        "coarse_heatmaps": rng.normal(0, 0.3, (2, 17, 32, 24)).clip(-1, 1).astype(np.float32),
        "quality": rng.uniform(0, 1, 2).astype(np.float32),
        "region_order": np.stack([rng.permutation(CELLS) for _ in range(2)]).astype(np.int32),
        "reuse_features": rng.normal(0, 5, (2, CELLS, 8)).astype(np.float32),
        "coarse_embedding": rng.normal(0, 5, (2, CELLS, 8)).astype(np.float32),
    }


@given(st.permutations(range(K)), st.permutations(range(K, CELLS)))
def test_order_among_the_chosen_and_among_the_others_does_not_matter(
    first: list[int], rest: list[int]
) -> None:
    a = coarse()
    b = a | {"region_order": a["region_order"][:, [*first, *rest]]}
    assert look_difference(a, b, K) == LookDifference(0, 0, 0, 0)


@given(st.integers(0, K))
def test_every_exchanged_cell_counts(count: int) -> None:
    a = coarse()
    order = a["region_order"].copy()
    order[1, :count], order[1, K : K + count] = order[1, K : K + count].copy(), order[1, :count].copy()
    found = look_difference(a, a | {"region_order": order}, K)
    assert found.regions == pytest.approx(count / K)
    np.testing.assert_allclose(shared_cells(a["region_order"], order, K), [1, 1 - count / K])


def test_each_kind_of_output_has_its_figure() -> None:
    a = coarse()
    b = {name: value.copy() for name, value in a.items()}
    b["coarse_heatmaps"][1, 3, 4, 5] += 0.125
    b["quality"][0] -= 0.25
    b["reuse_features"][0, 0, 0] += np.abs(a["reuse_features"]).max() / 8
    found = look_difference(a, b, K)
    assert (found.heatmaps, found.quality, found.context) == pytest.approx((0.125, 0.25, 0.125), abs=1e-6)
    tall = {"heatmaps": np.full((1, 17, 4, 4), 4, np.float32)}
    assert look_difference(tall, {"heatmaps": tall["heatmaps"] + 1}, K).heatmaps == pytest.approx(0.25)
    sick = {"heatmaps": tall["heatmaps"] * np.float32(np.nan)}
    assert not look_difference(tall, sick, K).within(LookDifference(9, 9, 9, 9))


class Says(Backend):
    """A first look of known answers, a batch a call."""

    def __init__(self, *answers: tuple[list[float], list[list[int]]]) -> None:
        self.answers = list(answers)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        quality, order = self.answers.pop(0)
        return {"quality": np.array(quality, np.float32), "region_order": np.array(order, np.int32)}


def test_a_watch_tells_what_was_said_since_it_was_asked() -> None:
    watch = Watch(Says(([0.5], [[1, 0]]), ([0.1, 0.9], [[0, 1], [1, 0]]), ([0.2], [[0, 1]])), 0.4)
    watch.run({})
    watch.run({})
    first = watch.seen()
    assert first.refined.tolist() == [False, True, False]
    assert first.order.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert watch.seen().refined.tolist() == []
    watch.run({})
    assert watch.seen().refined.tolist() == [True]


def test_figures_are_means_over_people() -> None:
    def look(refined: list[bool], *orders: list[int]) -> Look:
        return Look(np.array(refined, np.bool_), np.array(orders, np.int32).reshape(len(refined), 4))

    nobody = look([])
    baseline = [look([True, False], [0, 1, 2, 3], [3, 2, 1, 0]), nobody, look([True], [0, 2, 1, 3])]
    mine = [look([True, True], [1, 0, 3, 2], [3, 1, 2, 0]), nobody, look([True], [1, 3, 0, 2])]
    assert compared(baseline, None, 2) == Looks(3, pytest.approx(2 / 3))
    assert compared(mine, baseline, 2) == Looks(3, 1, pytest.approx((1 + 0.5 + 0) / 3))
    assert compared([], [], 2) is None
    assert compared([nobody], [nobody], 2) is None


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return open_dataset("synthetic:count=5,seed=5,size=320x240")


def shown(pictures: Dataset) -> Shown:
    people = [
        np.array([person.box for person in pictures.people(i)]).reshape(-1, 4) for i in range(len(pictures))
    ]
    return Shown(pictures, [Boxes(boxes, np.ones(len(boxes))) for boxes in people], "truth")


def test_drift_is_in_pixels_of_each_persons_crop(pictures: Dataset) -> None:
    """Every pose moved by a hundredth of its crop's width: the same drift for large people and small ones."""

    def estimate(moved: float) -> Any:
        def poses(image: Array, boxes: Array, scores: Array) -> Poses:
            regions = Regions.around(boxes, (SPEC.width, SPEC.height))
            joints = np.random.default_rng(1).uniform(-0.2, 0.2, (len(boxes), 17, 2))
            joints[:, 0], joints[:, 1] = -0.2, 0.2  # the boxes' middles are the regions'
            places = regions.centres[:, None] + regions.sides[:, None] * (joints + np.array([moved, 0]))
            keypoints = places.astype(np.float32)
            return Poses(
                keypoints,
                np.ones((len(boxes), 17), np.float32),
                scores.astype(np.float32),
                boxes_of(keypoints),
            )

        return poses

    found = [Artefact("torch FP32", estimate(0.0), 1), Artefact("moved", estimate(0.01), 1)]
    ledger = ledger_of(run_all(found, shown(pictures)), shown(pictures), SPEC, Gates(), 0.0)
    drift = ledger.rows[1].drift
    assert drift is not None
    assert drift.matched > 5
    assert drift.p50_px == pytest.approx(0.01 * (SPEC.width - 1), rel=1e-3)
    assert drift.p95_px == pytest.approx(0.01 * (SPEC.width - 1), rel=1e-3)
    assert ledger.data == {"evaluation": pictures.source, "boxes": "truth"}
