"""What every artefact costs against the FP32 baseline in accuracy, drift, time and bytes; does it pass?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from edgepose.calibration.quality import Quality
from edgepose.calibration.score import Drift, Interval, Score
from edgepose.runtime.errors import EdgeposeError

VERSION = 1
SAME_BOARD = ("gpu", "sm", "tensorrt", "jetson_linux", "power_mode")
CHANCE_DUPLICATES = 2  # more of them say nothing: on a few people a share would be less than one


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of one call in milliseconds."""

    p50_ms: float
    p95_ms: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """From single measurements."""
        p50, p95 = np.quantile(np.array(seconds) * 1e3, [0.5, 0.95]).tolist()
        return cls(p50, p95, len(seconds))


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, Latency]:
    """Time several calls in turns, so that a machine that slows down or speeds up does so for all of them."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        order = list(calls.items())
        for name, call in (
            order if turn % 2 == 0 else reversed(order)
        ):  # nobody always follows the same neighbour
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: Latency.of(values) for name, values in seconds.items()}


def latency(call: Callable[[], object], rounds: int, warmup: int = 3) -> Latency:
    """Time one call."""
    return alternate({"call": call}, rounds, warmup)["call"]


@dataclass(frozen=True, slots=True)
class Looks:
    """What a two-stage network chose to look at a second time."""

    people: int
    refined: float  # share of them who were looked at again
    overlap: float | None = None  # mean share of the cells to be seen sharp that are the baseline's, too


@dataclass(frozen=True, slots=True)
class Row:
    """One artefact. The first row of a ledger is the baseline: it has no drift and no AP difference."""

    stage: str  # such as "torch FP32" or "ONNX INT8 (CPU)"
    score: Score
    drift: Drift | None = None  # against the baseline, in pixels of the network input
    difference: Interval | None = None  # bootstrap interval of AP - AP of the baseline
    latency: Latency | None = None  # of one picture
    size_bytes: int | None = None
    quality: Quality | None = None  # of the scores; ledgers from before it was measured have none
    looks: Looks | None = None  # of networks that look twice
    # Where, in what power mode and at what clocks, if not where the ledger was made. Its drift and difference
    # are then against ONNX FP32 there.
    board: dict[str, str] | None = None
    max_ap_loss: float | None = None  # of this row alone, in place of the ledger's gate
    # Bootstrap intervals as `difference`, of rho and tau of the people matched in both.
    rho_difference: Interval | None = None
    tau_difference: Interval | None = None
    camera: str | None = None  # such as "h264:28": what its pictures went through first


@dataclass(frozen=True, slots=True)
class Gates:
    """What an artefact may cost. AP is a fraction: 0.010 is one point."""

    max_ap_loss: float = 0.010
    max_median_drift_px: float = 1.0
    min_ap: float | None = None  # of the baseline itself
    max_more_duplicates: float = 0.01  # than the baseline has, as a share of the people
    min_region_overlap: float = 0.9  # of the cells seen sharp with the baseline's
    max_refined_shift: float = 0.05  # of the share of people looked at again, to either side
    max_camera_loss: float = 0.05  # of AP, of a row whose pictures a camera delivers, in place of max_ap_loss


@dataclass(frozen=True, slots=True)
class Ledger:
    """All artefacts of one model over one data set. JSON round-trips exactly."""

    rows: tuple[Row, ...]
    gates: Gates = field(default_factory=Gates)
    environment: dict[str, str] = field(default_factory=dict)  # machine, versions, threads
    data: dict[str, str] = field(default_factory=dict)  # evaluation source, calibration manifest

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a ledger needs at least its baseline row")

    @property
    def baseline(self) -> Row:
        """What the other rows are held against."""
        return self.rows[0]

    def ap_loss(self, row: Row) -> float:
        """AP of the baseline less that of the row; positive is worse."""
        return self.baseline.score.ap - row.score.ap

    def failures(self, row: Row) -> list[str]:
        """The gates this row fails, in words."""
        gates = self.gates
        if row is self.baseline:
            low = gates.min_ap is not None and row.score.ap < gates.min_ap
            return [f"{row.stage}: AP {row.score.ap:.3f} is below {gates.min_ap:.3f}"] if low else []
        failed = []
        allowed = gates.max_camera_loss if row.camera else gates.max_ap_loss
        allowed = allowed if row.max_ap_loss is None else row.max_ap_loss
        if not self.ap_loss(row) <= allowed:
            failed.append(
                f"{row.stage}: loses {100 * self.ap_loss(row):.2f} points of AP, "
                f"{100 * allowed:.2f} are allowed"
            )
        failed += _drift_failures(row, gates) + _duplicate_failures(row, self.baseline, gates)
        return failed + _look_failures(row, self.baseline, gates)

    def verdict(self) -> list[str]:
        """All failed gates in words; empty when the ledger passes."""
        return [failure for row in self.rows for failure in self.failures(row)]

    def appended(self, rows: Sequence[Row]) -> Ledger:
        """With more rows, in the place of those of the same artefact on the same board."""
        new = {(row.stage, _place(row)) for row in rows}
        kept = [row for row in self.rows if (row.stage, _place(row)) not in new]
        return replace(self, rows=(*kept, *rows))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the verdict for readers that do not compute it."""
        rows = [_row_to_dict(row) for row in self.rows]
        verdict = self.verdict()
        return {
            "version": VERSION,
            "passed": not verdict,
            "verdict": verdict,
            "gates": asdict(self.gates),
            "environment": self.environment,
            "data": self.data,
            "rows": rows,
        }

    @classmethod
    def from_dict(cls, values: Any, origin: str) -> Ledger:
        """Raises EdgeposeError naming `origin` when the values are no ledger of this version."""
        version = values.get("version") if isinstance(values, dict) else None
        if version != VERSION:
            raise EdgeposeError(
                f"{origin}: not a ledger of version {VERSION} (its version is {version!r}); "
                "measure again: edgepose verify"
            )
        try:
            rows = tuple(_row_from_dict(row) for row in values["rows"])
            return cls(rows, Gates(**values["gates"]), values["environment"], values["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise EdgeposeError(
                f"{origin}: damaged ledger ({error!r}); measure again: edgepose verify"
            ) from error


def _place(row: Row) -> tuple[str, ...] | None:
    """What tells boards apart; clocks do not."""
    return None if row.board is None else tuple(row.board.get(name, "") for name in SAME_BOARD)


def _drift_failures(row: Row, gates: Gates) -> list[str]:
    drift = row.drift
    if drift is None:
        return []
    if drift.p50_px is None:
        if drift.lost:
            return [f"{row.stage}: none of the {drift.lost} people of the baseline is found again"]
        found = f"{row.stage}: finds {drift.extra} people where the baseline finds nobody"
        return [found] if drift.extra else []
    if drift.p50_px <= gates.max_median_drift_px:
        return []
    allowed = f"{gates.max_median_drift_px:.2f} px are allowed"
    return [f"{row.stage}: joints move by {drift.p50_px:.2f} px (median), {allowed}"]


def _duplicate_failures(row: Row, baseline: Row, gates: Gates) -> list[str]:
    if row.quality is None or baseline.quality is None:
        return []
    found, before, people = row.quality.duplicates, baseline.quality.duplicates, baseline.score.people
    allowed = before + max(CHANCE_DUPLICATES, int(gates.max_more_duplicates * people))
    if found <= allowed:
        return []
    return [
        f"{row.stage}: {found} duplicates (poses of a person already found), {allowed} are allowed: "
        f"{before} of the baseline and {allowed - before} more among {people} people"
    ]


def _look_failures(row: Row, baseline: Row, gates: Gates) -> list[str]:
    if row.looks is None or baseline.looks is None:
        return []
    failed, overlap = [], row.looks.overlap
    if overlap is not None and not overlap >= gates.min_region_overlap:
        failed.append(
            f"{row.stage}: shares {overlap:.3f} of the regions seen sharp with the baseline, "
            f"{gates.min_region_overlap:.3f} are asked for"
        )
    now, before = row.looks.refined, baseline.looks.refined
    if not abs(now - before) <= gates.max_refined_shift:
        failed.append(
            f"{row.stage}: looks again at {now:.1%} of the people, the baseline at {before:.1%}; "
            f"{gates.max_refined_shift:.1%} apart are allowed"
        )
    return failed


def _row_to_dict(row: Row) -> dict[str, Any]:
    return {
        "stage": row.stage,
        "score": row.score.to_dict(),
        "drift": row.drift and asdict(row.drift),
        "difference": row.difference and row.difference._asdict(),
        "rho_difference": row.rho_difference and row.rho_difference._asdict(),
        "tau_difference": row.tau_difference and row.tau_difference._asdict(),
        "latency": row.latency and asdict(row.latency),
        "size_bytes": row.size_bytes,
        "quality": row.quality and row.quality.to_dict(),
        "looks": row.looks and asdict(row.looks),
        "board": row.board,
        "max_ap_loss": row.max_ap_loss,
        "camera": row.camera,
    }


def _row_from_dict(values: Mapping[str, Any]) -> Row:
    def maybe(kind: Callable[..., Any], key: str) -> Any:
        return kind(**values[key]) if values.get(key) else None

    return Row(
        stage=values["stage"],
        score=Score.from_dict(values["score"]),
        drift=maybe(Drift, "drift"),
        difference=maybe(Interval, "difference"),
        rho_difference=maybe(Interval, "rho_difference"),
        tau_difference=maybe(Interval, "tau_difference"),
        latency=maybe(Latency, "latency"),
        size_bytes=values["size_bytes"],
        quality=Quality.from_dict(values["quality"]) if values.get("quality") else None,
        looks=maybe(Looks, "looks"),
        board=values.get("board"),
        max_ap_loss=values.get("max_ap_loss"),
        camera=values.get("camera"),
    )


# For the terminal: 100 columns.


def _sheet(*columns: str, caption: str | None = None) -> Table:
    """An empty table: the first column is text, the others are figures."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    result.caption, result.caption_justify, result.caption_style = caption, "left", "dim"
    result.add_column(columns[0], no_wrap=True, overflow="ellipsis", max_width=30)
    for name in columns[1:]:
        result.add_column(name, justify="right", no_wrap=True)
    return result


def table(ledger: Ledger) -> Table:
    """One line per artefact with its verdict: accuracy against cost."""
    score = ledger.baseline.score
    caption = (
        f"{score.pictures} pictures, {score.people} people{_height(score)}. Δ AP in points, with its 95 % "
        "bootstrap interval. Drift of the joints in pixels of the input and time per picture: median / 95 %."
    )
    result = _sheet("  artefact", "AP", "Δ AP", "95 % interval", "drift px", "ms", "MB", caption=caption)
    for row in ledger.rows:
        failed = bool(ledger.failures(row))
        mark = "[red]✗[/]" if failed else "•" if row is ledger.baseline else "[green]✓[/]"
        stage = f"[red]{escape(row.stage)}[/]" if failed else escape(row.stage)
        result.add_row(f"{mark} {stage}", _points(row.score.ap), *_change(ledger, row), *_costs(row))
    return result


def _height(score: Score) -> str:
    return f" of {score.min_height_px:g} px or more" if score.min_height_px else ""


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _signed(value: float, digits: int) -> str:
    """With its sign; what rounds to nothing is +0."""
    return f"{round(100 * value, digits) + 0.0:+.{digits}f}"


def _change(ledger: Ledger, row: Row) -> tuple[str, str]:
    """AP against the baseline and the interval it lies in, in points."""
    if row is ledger.baseline:
        return "", ""
    between = row.difference and f"{_signed(row.difference.low, 2)} … {_signed(row.difference.high, 2)}"
    return _signed(-ledger.ap_loss(row), 2), between or ""


def _costs(row: Row) -> tuple[str, str, str]:
    """Drift, time and size."""
    drift, spent = row.drift, row.latency
    moved = (
        ""
        if drift is None
        else "none"
        if drift.p50_px is None
        else f"{drift.p50_px:.2f} / {drift.p95_px:.2f}"
    )
    took = "" if spent is None else f"{spent.p50_ms:.1f} / {spent.p95_ms:.1f}"
    return moved, took, "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}"


def accuracy_table(ledger: Ledger) -> Table:
    """COCO's figures and AP by the size of the people, one line per artefact."""
    sizes = ledger.baseline.score.by_size
    groups = (f"AP {name} ({size.people})" for name, size in sizes.items())
    result = _sheet(
        "artefact", "AP50", "AP75", "AR", *groups, caption="Sizes as COCO has them; people in brackets."
    )
    for row in ledger.rows:
        score = row.score
        figures = (score.ap50, score.ap75, score.ar, *(score.by_size[name].ap for name in sizes))
        result.add_row(escape(row.stage), *map(_points, figures))
    return result


def quality_table(ledger: Ledger) -> Table:
    """What the scores of each artefact are worth, one line each."""
    caption = (
        "The score is an expected OKS. ρ, τ: does it rank the matched people's poses by the OKS they reach? "
        "Δ ρ: its 95 % bootstrap interval over the people matched in both. "
        "ECE, MAE: how far is it from that OKS? AP gap: points that a perfect score would add. "
        "Doubles: poses of a person already found."
    )
    names = ("ρ", "Δ ρ", "τ", "ECE", "MAE", "AP gap", "doubles", "poses")
    result = _sheet("artefact", *names, caption=caption)
    for row in ledger.rows:
        if row.quality is not None:
            result.add_row(escape(row.stage), *_worth(row.quality, row.rho_difference))
    return result


def _worth(quality: Quality, gained: Interval | None) -> Iterator[str]:
    rho, *others = (
        "" if value is None else f"{value:.3f}"
        for value in (quality.rho, quality.tau, quality.ece, quality.mae)
    )
    yield from (rho, "" if gained is None else f"{gained.low:+.3f} … {gained.high:+.3f}", *others)
    yield _points(quality.ap_gap)
    yield from (str(quality.duplicates), str(quality.poses))


def looks_table(ledger: Ledger) -> Table:
    """What each artefact of a two-stage network looked at again, one line each."""
    caption = (
        "Again: share of the people who were looked at a second time. Regions: mean share of the cells seen "
        "sharp that are the baseline's, too."
    )
    result = _sheet("artefact", "people", "again %", "Δ again", "regions %", caption=caption)
    for row in ledger.rows:
        if row.looks is not None:
            result.add_row(escape(row.stage), *_looked(row.looks, ledger.baseline.looks))
    return result


def _looked(looks: Looks, baseline: Looks | None) -> Iterator[str]:
    yield from (str(looks.people), _points(looks.refined))
    yield "" if looks is baseline or baseline is None else _signed(looks.refined - baseline.refined, 1)
    yield _points(looks.overlap)


def joints_table(ledger: Ledger, joints: Sequence[str]) -> Table:
    """Mean OKS of each joint of the people found: the baseline's, and what the others add, in points."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    result.add_column("OKS per joint", no_wrap=True)
    for row in ledger.rows:
        result.add_column(escape(row.stage), justify="right", max_width=14)
    for index, joint in enumerate(joints):
        base, *others = (row.score.per_joint_oks[index] for row in ledger.rows)
        gains = ("" if base is None or other is None else _signed(other - base, 2) for other in others)
        result.add_row(joint, _points(base), *gains)
    return result
