"""The ledger: gates fail when they should and only then, JSON keeps everything, the table fits a terminal."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace

import pytest
from rich.console import Console

from edgepose.calibration.ledger import (
    Gates,
    Latency,
    Ledger,
    Looks,
    Row,
    accuracy_table,
    alternate,
    joints_table,
    latency,
    looks_table,
    quality_table,
    table,
)
from edgepose.calibration.quality import Bin, Quality
from edgepose.calibration.score import Drift, Interval, Score, SizeScore
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import COCO17


def a_score(ap: float) -> Score:
    sizes = {
        "small": SizeScore(0, None, None),
        "medium": SizeScore(40, ap, ap),
        "large": SizeScore(60, ap, ap),
    }
    return Score(ap, ap, ap, ap, ap, ap, sizes, (0.9,) * 16 + (None,), 50, 100, 3, 120, 90, 48.0)


def a_row(stage: str, ap: float, drift_px: float | None = 0.1) -> Row:
    drift = Drift(drift_px, drift_px and 3 * drift_px, 90, 1, 1)
    return Row(stage, a_score(ap), drift, Interval(-0.012, 0.003), Latency(20, 25.5, 100), 4_123_456)


def a_quality(duplicates: int = 3, rho: float | None = 0.841) -> Quality:
    bins = (Bin(0.1, 90, 0.15, 0.1), Bin(0.8, 30, 0.85, 0.9))
    return Quality(rho, 0.637, bins, 0.05, 0.123, 0.735, 0.035, duplicates, 120, 90)


@pytest.fixture
def ledger() -> Ledger:
    baseline = Row("torch FP32", a_score(0.7), latency=Latency(61.2, 70, 100))
    return Ledger((baseline, a_row("ONNX INT8 (CPU)", 0.695)), environment={"cpu": "x"}, data={"source": "y"})


def with_row(ledger: Ledger, row: Row) -> Ledger:
    return replace(ledger, rows=(ledger.rows[0], row))


def test_a_good_ledger_passes(ledger: Ledger) -> None:
    assert ledger.verdict() == []
    assert with_row(ledger, a_row("better", 0.9)).verdict() == []


def test_each_gate_fails_in_words(ledger: Ledger) -> None:
    assert with_row(ledger, a_row("INT8", 0.685)).verdict() == [
        "INT8: loses 1.50 points of AP, 1.00 are allowed"
    ]
    moved = with_row(ledger, a_row("INT8", 0.7, 1.25)).verdict()
    assert moved == ["INT8: joints move by 1.25 px (median), 1.00 px are allowed"]
    assert len(with_row(ledger, a_row("INT8", 0.1, 9)).verdict()) == 2
    own = replace(a_row("INT8", 0.685), max_ap_loss=0.02)
    assert with_row(ledger, own).verdict() == []
    assert with_row(ledger, replace(own, max_ap_loss=0.001)).verdict() == [
        "INT8: loses 1.50 points of AP, 0.10 are allowed"
    ]
    filmed = replace(a_row("h264:28, INT8", 0.66), camera="h264:28")  # a camera has a gate of its own
    assert with_row(ledger, filmed).verdict() == []
    strict = replace(with_row(ledger, filmed), gates=Gates(max_ap_loss=0.9, max_camera_loss=0.03))
    assert strict.verdict() == ["h264:28, INT8: loses 4.00 points of AP, 3.00 are allowed"]
    floor = replace(ledger, gates=Gates(min_ap=0.75))
    assert floor.verdict() == ["torch FP32: AP 0.700 is below 0.750"]


def duplicated(ledger: Ledger, before: int, after: int) -> Ledger:
    """The same ledger with so many duplicates in its two rows."""
    first, second = ledger.rows
    rows = replace(first, quality=a_quality(before)), replace(second, quality=a_quality(after))
    return replace(ledger, rows=rows)


def test_more_duplicates_than_the_baseline_and_a_share_of_the_people_fail(ledger: Ledger) -> None:
    assert duplicated(ledger, 3, 5).verdict() == []  # 1 % of 100 people is one more, two are chance
    assert duplicated(ledger, 3, 0).verdict() == []
    assert duplicated(ledger, 3, 94).verdict() == [
        "ONNX INT8 (CPU): 94 duplicates (poses of a person already found), 5 are allowed: "
        "3 of the baseline and 2 more among 100 people"
    ]
    assert len(duplicated(ledger, 3, 6).verdict()) == 1
    assert replace(duplicated(ledger, 3, 6), gates=Gates(max_more_duplicates=0.03)).verdict() == []
    assert "✗" in shown(table(duplicated(ledger, 3, 94)))
    unknown = replace(ledger, rows=(ledger.rows[0], duplicated(ledger, 3, 94).rows[1]))
    assert unknown.verdict() == []  # nothing to hold it against


def test_not_a_number_and_nobody_found_again_fail(ledger: Ledger) -> None:
    assert len(with_row(ledger, a_row("INT8", float("nan"))).verdict()) == 1
    assert "none of the 1 people" in with_row(ledger, a_row("INT8", 0.7, None)).verdict()[0]
    assert len(with_row(ledger, a_row("INT8", 0.7, float("nan"))).verdict()) == 1
    more = replace(a_row("INT8", 0.7), drift=Drift(None, None, 0, 0, 3))
    assert "finds 3 people where the baseline finds nobody" in with_row(ledger, more).verdict()[0]
    nobody = replace(a_row("INT8", 0.7), drift=Drift(None, None, 0, 0, 0))
    assert with_row(ledger, nobody).verdict() == []


def test_gates_are_inclusive(ledger: Ledger) -> None:
    exact = Gates(max_ap_loss=0.7 - 0.695, max_median_drift_px=0.1)
    assert replace(ledger, gates=exact).verdict() == []
    tight = Gates(max_ap_loss=0.004, max_median_drift_px=0.09)
    assert len(replace(ledger, gates=tight).verdict()) == 2


def test_json_keeps_everything(ledger: Ledger) -> None:
    values = json.loads(json.dumps(ledger.to_dict(), allow_nan=False))
    assert (values["passed"], values["verdict"]) == (True, [])
    assert Ledger.from_dict(values, "ledger.json") == ledger


def test_json_keeps_what_the_scores_are_worth(ledger: Ledger) -> None:
    judged = duplicated(ledger, 3, 94)
    ranks = {"rho_difference": Interval(-0.02, 0.01), "tau_difference": Interval(-0.03, 0.02)}
    row = replace(judged.rows[1], quality=a_quality(94, rho=None), camera="mjpeg:85", **ranks)
    judged = with_row(judged, row)
    values = json.loads(json.dumps(judged.to_dict(), allow_nan=False))
    assert values["rows"][0]["quality"]["rho"] == 0.841
    assert values["rows"][1]["quality"]["bins"][1] == {
        "low": 0.8,
        "count": 30,
        "predicted": 0.85,
        "actual": 0.9,
    }
    assert not values["passed"]
    assert Ledger.from_dict(values, "ledger.json") == judged


def test_a_ledger_from_before_scores_were_judged_still_opens(ledger: Ledger) -> None:
    values = json.loads(json.dumps(ledger.to_dict()))
    del values["gates"]["max_more_duplicates"], values["gates"]["max_camera_loss"]
    for row in values["rows"]:
        del row["quality"], row["rho_difference"], row["tau_difference"], row["camera"]
    assert Ledger.from_dict(values, "ledger.json") == ledger
    values["rows"][1]["quality"] = {"rho": 0.8}
    with pytest.raises(EdgeposeError, match="damaged ledger"):
        Ledger.from_dict(values, "ledger.json")


@pytest.mark.parametrize(
    "values", [None, [], {}, {"version": 2}, {"version": 1}, {"version": 1, "rows": [{}]}]
)
def test_a_foreign_ledger_is_refused(values: object) -> None:
    with pytest.raises(EdgeposeError, match=r"ledger\.json: .*edgepose verify"):
        Ledger.from_dict(values, "ledger.json")


def test_a_ledger_without_rows_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="baseline"):
        Ledger(())


def shown(renderable: object) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_tables_fit_100_columns_and_lose_no_figure(ledger: Ledger) -> None:
    wide = replace(a_row("ONNX INT8 (TensorRT view)", 0.12, 12.34), latency=Latency(1234.5, 2345.6, 9))
    text = shown(table(with_row(ledger, wide)))
    assert max(map(len, text.splitlines())) <= 100
    for figure in (
        "ONNX INT8 (TensorRT view)",
        "✗",
        "12.0",
        "-58.00",
        "-1.20 … +0.30",
        "12.34 / 37.02",
        "1234.5 / 2345.6",
    ):
        assert figure in text
    assert "4.12" in text
    assert "50 pictures, 100 people of 48 px or more" in text
    assert "✓" in shown(table(ledger))
    assert "medium (40)" in shown(accuracy_table(ledger))
    nothing = replace(ledger.rows[1].score, per_joint_oks=(0.9 - 1e-7,) * 16 + (None,))
    joints = shown(joints_table(with_row(ledger, Row("same", nothing)), COCO17.joints))
    assert "+0.00" in joints
    assert "-0.00" not in joints


def test_the_table_of_scores_fits_and_loses_no_figure(ledger: Ledger) -> None:
    first, second = duplicated(ledger, 3, 12345).rows
    wide = replace(
        second,
        stage="ONNX INT8 (TensorRT view)",
        quality=a_quality(12345, rho=None),
        rho_difference=Interval(-0.0187, 0.0264),
    )
    text = shown(quality_table(replace(ledger, rows=(first, wide, a_row("unjudged", 0.7)))))
    assert max(map(len, text.splitlines())) <= 100
    above = next(line for line in text.splitlines() if "torch FP32" in line)
    below = next(line for line in text.splitlines() if "ONNX INT8" in line)
    assert above.split()[2:] == ["0.841", "0.637", "0.050", "0.123", "3.5", "3", "120"]
    figures = ["-0.019", "…", "+0.026", "0.637", "0.050", "0.123", "3.5", "12345", "120"]
    assert below.split()[4:] == figures  # no rho
    assert "unjudged" not in text


def test_latency_is_measured_in_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    measured = alternate(calls, rounds=4, warmup=1)
    assert "".join(order) == "ab" + "abbaabba"
    assert {name: value.calls for name, value in measured.items()} == {"a": 4, "b": 4}


def test_latency_is_in_milliseconds() -> None:
    measured = latency(lambda: time.sleep(0.01), rounds=5, warmup=0)
    assert 10 <= measured.p50_ms <= measured.p95_ms < 200
    assert Latency.of([0.001, 0.002, 0.003]).p50_ms == pytest.approx(2)


def looking(ledger: Ledger, refined: float, overlap: float | None) -> Ledger:
    """The ledger of a network that looks twice, whose baseline looks again at 40 % of 100 people."""
    first, second = ledger.rows
    rows = (replace(first, looks=Looks(100, 0.4)), replace(second, looks=Looks(100, refined, overlap)))
    return replace(ledger, rows=rows)


@pytest.mark.parametrize(
    ("refined", "overlap", "said"),
    [
        (0.44, 0.91, ""),
        (0.36, 0.91, ""),
        (0.46, 0.91, "looks again at 46.0% of the people, the baseline at 40.0%; 5.0% apart are allowed"),
        (0.34, 0.91, "looks again at 34.0%"),
        (0.4, 0.89, "shares 0.890 of the regions seen sharp with the baseline, 0.900 are asked for"),
        (float("nan"), 0.95, "looks again at nan%"),
        (0.4, float("nan"), "shares nan of the regions"),
    ],
)
def test_the_second_look_is_held_to_the_baselines(
    ledger: Ledger, refined: float, overlap: float, said: str
) -> None:
    verdict = looking(ledger, refined, overlap).verdict()
    assert len(verdict) == bool(said)
    assert said in "".join(verdict)


def test_gates_of_the_second_look_are_given(ledger: Ledger) -> None:
    twice = looking(ledger, 0.46, 0.89)
    assert replace(twice, gates=Gates(min_region_overlap=0.8, max_refined_shift=0.1)).verdict() == []
    assert len(replace(twice, gates=Gates(min_region_overlap=0.8)).verdict()) == 1


def test_looks_are_kept_in_json_and_shown(ledger: Ledger) -> None:
    twice = looking(ledger, 0.437, 0.953)
    assert Ledger.from_dict(json.loads(json.dumps(twice.to_dict())), "x") == twice
    assert Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())), "x").rows[1].looks is None
    older = ledger.to_dict()
    for row in older["rows"]:
        del row["looks"]
    assert Ledger.from_dict(older, "x") == ledger
    console = Console(file=io.StringIO(), width=100)
    console.print(looks_table(twice))
    printed = console.file.getvalue()
    assert "40.0" in printed
    assert all(figure in printed for figure in ("43.7", "+3.7", "95.3"))
