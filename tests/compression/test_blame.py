"""Blame: a planted bad layer is named first, a killed run ends as an unbroken one, costs are closed forms."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from onnx import ModelProto
from rich.console import Console
from standin_people import PICTURES, SPEC, network

from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates
from edgepose.calibration.sample import Person, Sample
from edgepose.compression import answers as module
from edgepose.compression.answers import Answers
from edgepose.compression.blame import Blame, Judge, advice, blame, points_table, table, walk
from edgepose.compression.graph import Graph, copy, set_constant
from edgepose.compression.groups import Group, switches_of
from edgepose.export.plots import frontier
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17


def corrupted(model: ModelProto, layer: str) -> ModelProto:
    """The layer's weights are eight times as large as they should be."""
    result = copy(model)
    graph = Graph(result)
    dequantize = graph.producers[graph.named[layer].input[1]]
    dequantize.input[1] = set_constant(result, "corrupted", 8 * graph.value(dequantize.input[1]))
    return result


def judge(folder: Path, int8: ModelProto, gates: Gates) -> Judge:
    fp32, _, own = network()
    switches = switches_of({"pose": fp32}, {"pose": int8}, (64, 64))
    return Judge(Answers(folder, switches, Shown(own), SPEC), gates)


LAX = Gates(max_ap_loss=0.2)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Blame:
    return blame(judge(tmp_path_factory.mktemp("blame") / "answers", network()[1].model, LAX))


@pytest.mark.parametrize("layer", ["layer1.second.0", "inst.0"])
def test_a_planted_bad_layer_is_named_first_and_left_float(layer: str, tmp_path: Path) -> None:
    found = blame(judge(tmp_path / "answers", corrupted(network()[1].model, layer), LAX))
    first, second = found.ranking[:2]
    assert first.group.name == layer
    assert first.certain
    assert first.oks.mean > 1.5 * second.oks.mean
    assert f" float: {layer}" in advice(found)


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(
    unbroken: Blame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def counted(*arguments: object):
        nonlocal asked
        asked += 1
        if asked == 9:
            raise KeyboardInterrupt
        return original(*arguments)

    original = module.estimator
    monkeypatch.setattr(module, "estimator", counted)
    folder = tmp_path / "answers"
    with pytest.raises(KeyboardInterrupt):
        blame(judge(folder, network()[1].model, LAX))
    kept = sorted(folder.glob("*.npz"))
    assert len(kept) == 8
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # as a full disk would leave it
    again = blame(judge(folder, network()[1].model, LAX))
    assert again.to_dict() == unbroken.to_dict()
    choices = len(list(folder.glob("*.npz")))
    assert asked == 9 + choices - 7
    assert blame(judge(folder, network()[1].model, LAX)).to_dict() == unbroken.to_dict()
    assert asked == 9 + choices - 7  # all is known


def test_answers_to_another_question_are_refused(tmp_path: Path) -> None:
    judge(tmp_path / "answers", network()[1].model, LAX)
    with pytest.raises(EdgeposeError, match="other graphs or to other pictures"):
        judge(tmp_path / "answers", corrupted(network()[1].model, "inst.0"), LAX)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(EdgeposeError, match="other things than answers"):
        judge(tmp_path / "other", network()[1].model, LAX)


def test_json_tables_and_plot_say_the_same(unbroken: Blame) -> None:
    values = json.loads(json.dumps(unbroken.to_dict(), allow_nan=False))
    assert [each["name"] for each in values["ranking"]] == [each.group.name for each in unbroken.ranking]
    ends = values["frontier"][0], values["frontier"][-1]
    assert ends[0]["int8_macs"] > 0.9
    assert (ends[1]["int8_macs"], ends[1]["oks"]) == (0, pytest.approx(1.0))  # its own people
    assert ends[1]["drift_px"]["p95_px"] == 0
    assert values["islands"] == [each.group.name for each in unbroken.islands]
    console = Console(width=100, record=True)
    console.print(table(unbroken, 5), points_table(unbroken))
    text = console.export_text()
    assert unbroken.ranking[4].group.name in text
    assert unbroken.ranking[5].group.name not in text
    assert all(len(line) <= 100 for line in text.splitlines())
    image = cv2.imdecode(np.frombuffer(frontier(unbroken), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[0] > 300


class Planned:
    """Two groups over six pictures of one person: one shifts all joints, the other loses the person."""

    SHIFT_PX, AREA = 4.0, 1000.0

    def __init__(self) -> None:
        self.spec, self.shown = SPEC, Shown(self)
        self.groups = [Group("shifts", ("shifts",), 30), Group("loses", ("loses",), 10)]
        self.switches = {"pose": SimpleNamespace(macs=50)}
        self.source, self.skeleton = "planned", COCO17
        self.joints = np.stack([np.arange(17.0), 3 * np.arange(17.0)], 1).astype(np.float32)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, open_dataset(PICTURES)[index].image, self.people(index))

    def people(self, index: int) -> tuple[Person, ...]:
        return (Person(self.joints, np.full(17, 2, np.uint8), (0, 0, 16, 48), self.AREA),)

    def size(self, index: int) -> tuple[int, int]:
        return 128, 128  # twice the network's

    def of(self, floats: Collection[str]) -> list[Poses]:
        moved = self.joints + np.array([0 if "shifts" in floats else self.SHIFT_PX, 0], np.float32)
        pose = Poses(moved[None], np.ones((1, 17), np.float32), np.ones(1, np.float32), boxes_of(moved[None]))
        return [pose if "loses" in floats or index % 2 else Poses.empty() for index in range(6)]


def test_costs_are_the_closed_forms() -> None:
    judge = Judge(Planned(), Gates())  # type: ignore[arg-type]
    shifts, loses = (judge.cost(group) for group in judge.answers.groups)
    sigmas = COCO17.sigma_array()
    oks = float(np.exp(-(Planned.SHIFT_PX**2) / (2 * Planned.AREA * (2 * sigmas) ** 2)).mean())
    assert shifts.oks.alone == pytest.approx(1 - oks)
    assert shifts.oks.last == pytest.approx((1 - oks) / 2)  # the others are lost anyway
    assert shifts.oks.mean == pytest.approx(0.75 * (1 - oks))
    assert (loses.oks.alone, loses.oks.last) == pytest.approx((0.5, oks / 2))
    assert shifts.drift_px.alone == shifts.drift_px.last == pytest.approx(2.0)  # of the network's input
    assert (loses.drift_px.alone, loses.drift_px.last) == (0, 0)
    # Shifting costs every picture that shows somebody the same, losing half of them everything.
    assert shifts.drift_px.low == shifts.drift_px.high == pytest.approx(2.0)
    assert loses.oks.low < loses.oks.mean < loses.oks.high


class Rare(Planned):
    """Forty pictures; one group loses the person of seven of them, the others do nothing."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = [Group("loses", (), 10), *(Group(f"idle{place}", (), 0) for place in range(1, groups))]

    def __len__(self) -> int:
        return 40

    def of(self, floats: Collection[str]) -> list[Poses]:
        lost = 0 if "loses" in floats else 7
        found = super().of({"shifts", "loses"})[0]
        return [Poses.empty()] * lost + [found] * (40 - lost)


@pytest.mark.parametrize(("groups", "certain"), [(2, True), (98, False)])
def test_as_many_layers_as_there_are_to_look_at_are_drawn_for(groups: int, certain: bool) -> None:
    """(33/40)**40: 0.05 % of all draws take none of the seven; chance has 0.025 % for each of 98 layers."""
    judge = Judge(Rare(groups), Gates())  # type: ignore[arg-type]
    found = judge.cost(judge.answers.groups[0])
    assert found.oks.mean == pytest.approx(7 / 40)
    assert found.oks.low > 0
    assert found.certain is certain


def test_the_frontier_is_walked_one_by_one_until_the_gates_hold_and_then_faster() -> None:
    groups = Planned().groups * 6

    def point(given: list[Group], floats: int) -> SimpleNamespace:
        assert given == groups
        return SimpleNamespace(floats=floats, failures=("lost",) if floats < 3 else ())

    points = walk(SimpleNamespace(point=point), groups)  # type: ignore[arg-type]
    assert [point.floats for point in points] == [0, 1, 2, 3, 4, 6, 10, 12]


def test_the_islands_are_the_fewest_groups_that_hold_the_gates() -> None:
    judge = Judge(Planned(), Gates(max_ap_loss=0.3))  # type: ignore[arg-type]
    worst_first = [judge.cost(group) for group in judge.answers.groups[::-1]]
    points = tuple(walk(judge, [each.group for each in worst_first]))
    assert [point.macs for point in points] == [0.8, 0.6, 0]
    assert "points of AP" in points[0].failures[0]
    found = Blame(tuple(worst_first), points)
    assert [each.group.name for each in found.islands] == ["loses", "shifts"]
    assert "leave 2 of 2 layers float: loses, shifts" in advice(found)
    free = Judge(Planned(), Gates(max_ap_loss=1, max_median_drift_px=9))  # type: ignore[arg-type]
    assert advice(Blame(tuple(worst_first), tuple(walk(free, free.answers.groups)))).startswith(
        "All layers can be INT8"
    )
