"""The dial's curve, with a second network that is right by construction and a first one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from told_people import Told, World

from edgepose.calibration.score import Interval
from edgepose.export.dial import Curve, Point, measure, precision_of, settings, table
from edgepose.export.plots import accuracy_against_time
from edgepose.runtime.bundle import publish
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.cascade import Dial

LEAST = 0.25


@pytest.fixture(scope="module")
def points() -> dict[str, Point]:
    # The last one is below the threshold: nobody looks there, and AP counts the first network's pose.
    world = World([0.5, 0.6, 0.7, 0.1], [0.9] * 4)
    dials = [
        Dial("never", least=LEAST),
        Dial("always", least=LEAST),
        Dial("always", 1e-9, LEAST),
        Dial("auto", 3600.0, 0.0),
    ]
    found = measure(world.pair(9.0), Told(world), dials)
    return dict(zip(("never", "always", "no time", "everybody"), found, strict=True))


def test_accuracy_is_that_of_who_was_looked_at(points: dict[str, Point]) -> None:
    assert points["never"].score.ap == points["no time"].score.ap == 0
    assert points["everybody"].score.ap == 1
    # Nine of twelve people are right, before the others: precision 1 at 76 of the 101 recalls.
    assert points["always"].score.ap == pytest.approx(76 / 101)
    assert points["never"].difference is None
    assert points["everybody"].difference == Interval(1.0, 1.0)
    assert points["everybody"].quality.ece == pytest.approx(0.1, abs=1e-3)  # promised 0.9, reached 1


def test_shares_are_of_the_people_whom_the_first_network_shows(points: dict[str, Point]) -> None:
    shares = {name: (point.looked, point.again) for name, point in points.items()}
    assert shares == {
        "never": (0, 0),
        "always": (1, 1),
        "no time": (0, 0),
        "everybody": (pytest.approx(4 / 3), pytest.approx(4 / 3)),  # more than it shows: nothing was too low
    }
    assert all(point.p95_ms >= point.mean_ms / 2 > 0 for point in points.values())


def test_the_second_look_is_counted_apart() -> None:
    world = World([0.5, 0.6], [0.9, 0.7])
    _, auto = measure(world.pair(0.8), Told(world), [Dial("never"), Dial("auto")])
    assert (auto.looked, auto.again, auto.broken) == (1, 0.5, 0)


def test_json_round_trips_and_everything_is_drawn(points: dict[str, Point]) -> None:
    curve = Curve(tuple(points.values()), {"first": "one", "second": "two", "precision": "fp32"})
    again = Curve.from_dict(json.loads(json.dumps(curve.to_dict())))
    assert again == curve
    assert table(again).row_count == len(points)
    image = cv2.imdecode(np.frombuffer(accuracy_against_time(again), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[0] > 300


def test_budgets_are_chosen_between_both_networks_times() -> None:
    world = World([0.5] * 8, [0.9] * 8)
    dials = settings(world.pair(9.0), Told(world), LEAST)
    assert [dial.policy for dial in dials] == ["never", *["auto"] * 4, *["always"] * 4]
    budgets = [dial.budget_s for dial in dials[1:5]]
    assert budgets == sorted(budgets) == [dial.budget_s for dial in dials[5:]]
    assert 0 < budgets[0] < budgets[2] < 60
    assert {dial.least for dial in dials} == {LEAST}
    chosen = settings(world.pair(9.0), Told(world), LEAST, (40.0, 20.0))
    assert [dial.budget_s for dial in chosen[1:4]] == [0.02, 0.04, float("inf")]


def test_int8_only_if_all_graphs_have_it(tmp_path: Path) -> None:
    bundles = []
    for index, names in enumerate((("pose.fp32", "pose.int8.ort"), ("coarse.int8.ort", "fine.fp32"))):
        (content := tmp_path / f"content{index}").mkdir()
        for name in names:
            (content / f"{name}.onnx").touch()
        graphs = ("pose",) if index == 0 else ("coarse", "fine")
        bundles.append(
            publish(content, tmp_path / str(index), Spec("qrpose", "x", 32, 32, graphs=graphs), {})
        )
    assert precision_of(bundles[0]) == "int8"
    assert precision_of(*bundles) == "fp32"
