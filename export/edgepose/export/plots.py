"""The report's plots, drawn from measured rows; each comes back as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from edgepose.calibration.ledger import Ledger, Row
from edgepose.compression.blame import Blame
from edgepose.export.dial import Curve, Point
from edgepose.runtime.errors import require
from edgepose.runtime.skeleton import Skeleton

LEAST_RANGE = 4.0  # points of AP that an axis shows at least
INK, ACCENT, SOFT, WARM = "#1b2a3a", "#1f77b4", "#9db8cf", "#d9822b"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # The object interface with the Agg canvas: nothing global, no display.
    figure = require("matplotlib.figure").Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def accuracy(ledger: Ledger) -> bytes:
    """AP of each artefact, with the bootstrap interval of its difference to the first row."""
    figure, axes = _figure(5.0, 0.8 + 0.45 * len(ledger.rows))
    reference = ledger.rows[0].score.ap
    for place, row in enumerate(ledger.rows):
        axes.barh(place, 100 * row.score.ap, color=ACCENT if place == 0 else SOFT, height=0.6)
        axes.text(
            100 * row.score.ap + 2.5, place, f"{100 * row.score.ap:.1f}", va="center", fontsize=8, color=INK
        )
        if row.difference is not None:
            ends = [100 * (reference + end) for end in (row.difference.low, row.difference.high)]
            axes.plot(ends, [place, place], color=WARM, linewidth=2)
    axes.set_yticks(range(len(ledger.rows)), [row.stage for row in ledger.rows])
    axes.invert_yaxis()
    axes.set_xlabel("AP in points (orange: 95 % interval of the difference to FP32)", fontsize=8, color=INK)
    axes.set_xlim(0, 100)
    return _png(figure)


def latency(ledger: Ledger) -> bytes:
    """Median and 95th percentile of each artefact's latency."""
    figure, axes = _figure(5.0, 0.8 + 0.45 * len(ledger.rows))
    timed = [(row.stage, row.latency) for row in ledger.rows if row.latency is not None]
    for place, (_, spent) in enumerate(timed):
        axes.barh(place, spent.p95_ms, color=SOFT, height=0.6)
        axes.barh(place, spent.p50_ms, color=ACCENT, height=0.6)
        axes.text(spent.p95_ms, place, f"  {spent.p50_ms:.1f} ms", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(timed)), [stage for stage, _ in timed])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("ms a picture with preprocessing: median (dark), 95th percentile (light)", fontsize=8)
    return _png(figure)


def _ends(ledger: Ledger) -> tuple[Row, Row]:
    """The baseline, and what came of it: the last artefact that sees the pictures as they are."""
    return ledger.rows[0], [row for row in ledger.rows if row.camera is None][-1]


def per_joint(ledger: Ledger, skeleton: Skeleton) -> bytes:
    """Mean OKS term of every joint, of both `_ends`."""
    figure, axes = _figure(5.0, 3.4)
    first, last = _ends(ledger)
    for row, colour, offset in ((first, ACCENT, -0.2), (last, WARM, 0.2)):
        values = [value or 0.0 for value in row.score.per_joint_oks]
        axes.bar([joint + offset for joint in range(len(values))], values, 0.4, color=colour, label=row.stage)
    axes.set_xticks(
        range(len(skeleton)), [joint.replace("_", " ") for joint in skeleton.joints], rotation=60, ha="right"
    )
    axes.set_ylabel("mean OKS term of matched people", fontsize=8)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return _png(figure)


def reliability(ledger: Ledger) -> bytes:
    """Predicted against reached OKS, of both `_ends`: on the diagonal the score is true."""
    figure, axes = _figure(5.0, 3.8)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    first, last = _ends(ledger)
    pair = ((first, ACCENT, 0.03), (last, WARM, 0.07))
    shown = [(r.stage, r.quality, tint, at) for r, tint, at in pair if r.quality and r.quality.bins]
    most = max((each.count for _, quality, _, _ in shown for each in quality.bins), default=0)
    for stage, quality, tint, at in shown:
        places, heights = zip(*((b.low + at, 0.25 * b.count / most) for b in quality.bins), strict=True)
        axes.bar(places, heights, 0.04, color=tint, alpha=0.25)
        points = zip(*((b.predicted, b.actual) for b in quality.bins), strict=True)
        label = f"{stage}: calibration error {quality.ece:.3f}"
        axes.plot(*points, marker="o", markersize=4, color=tint, label=label, clip_on=False)
    faint = {"va": "top", "fontsize": 8, "color": INK, "alpha": 0.55}
    axes.text(0.03, 0.95, "reaches more\nthan it says", **faint)
    axes.text(0.97, 0.47, "says more\nthan it reaches", ha="right", **faint)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel(f"predicted OKS, the score (bars: poses, the tallest {most})", fontsize=8, color=INK)
    axes.set_ylabel("reached OKS", fontsize=8, color=INK)
    if shown:
        axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _png(figure)


def accuracy_against_time(curve: Curve) -> bytes:
    """AP and mean time of each setting of a cascade; bands reach to the 95th percentile of the time."""
    figure, axes = _figure(6.4, 4.2)
    never = curve.points[0]
    for policy, tint, above in (("always", WARM, False), ("auto", ACCENT, True)):
        points = sorted((p for p in curve.points if p.policy == policy), key=lambda point: point.mean_ms)
        line = [never, *points]
        axes.plot([p.mean_ms for p in line], [100 * p.score.ap for p in line], color=tint, label=policy)
        for point in points:
            _setting(axes, point, tint, above)
    alone = f"{curve.about['first']} alone"
    axes.plot(never.mean_ms, 100 * never.score.ap, "o", color=INK, markersize=7, label=alone)
    heights = [100 * point.score.ap for point in curve.points]
    spare = max(LEAST_RANGE, max(heights) - min(heights)) / 2  # half a point of difference is no cliff
    axes.set_ylim(min(heights) - spare, max(heights) + spare)
    axes.margins(x=0.1)
    axes.set_xlabel("ms a picture, mean (bands: to the 95th percentile)", fontsize=8, color=INK)
    axes.set_ylabel("AP in points", fontsize=8, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return _png(figure)


def _setting(axes: Any, point: Point, tint: str, above: bool) -> None:
    """One setting with its band, and its budget and the share of the people looked at in words."""
    height, free = 100 * point.score.ap, point.budget_ms is None
    axes.plot([point.mean_ms, point.p95_ms], [height, height], color=tint, linewidth=3, alpha=0.2)
    axes.plot(point.mean_ms, height, "o", color=tint, markersize=7 if free else 4)
    axes.annotate(
        f"{point.budget}, {100 * point.looked:.0f} %",
        (point.mean_ms, height),
        xytext=(-4, 5) if above else (4, -5),  # away from both lines, which rise to the right
        textcoords="offset points",
        rotation=-30,
        rotation_mode="anchor",
        ha="right" if above else "left",
        va="center",
        fontsize=7,
        color=tint,
    )


def frontier(found: Blame) -> bytes:
    """AP and OKS against FP32's by the share of multiplications in INT8: a point a choice of floats."""
    figure, axes = _figure(6.4, 4.2)
    points, best = found.frontier, found.frontier[-1]
    macs = [100 * point.macs for point in points]
    ap = [100 * (point.row.score.ap - best.row.score.ap) for point in points]
    oks = [100 * (point.oks - best.oks) for point in points]
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for point, share in zip(points, macs, strict=True):
        if point.row.difference is not None:
            axes.plot([share, share], [100 * end for end in point.row.difference], color=WARM, alpha=0.35)
    axes.plot(macs, ap, "o-", color=WARM, markersize=4, label="AP (bars: 95 % interval)")
    axes.plot(macs, oks, "o-", color=ACCENT, markersize=4, label="mean OKS × 100")
    small = {"fontsize": 7, "color": INK, "ha": "center"}
    for index, (point, share) in enumerate(zip(points, macs, strict=True)):
        # Neighbours may be near: three rows below the top edge.
        axes.text(
            share, 0.96 - 0.05 * (index % 3), point.floats, transform=axes.get_xaxis_transform(), **small
        )
    floats = len(found.islands)
    held = next(place for place, point in enumerate(points) if point.floats == floats)
    axes.plot(macs[held], ap[held], "o", color=WARM, markersize=8)
    said = {
        "xytext": (0, -42),
        "textcoords": "offset points",
        "arrowprops": {"arrowstyle": "-", "color": INK},
    }
    axes.annotate(f"{floats} layers float: gates hold", (macs[held], ap[held]), **said, **small)
    axes.margins(x=0.12, y=0.3)
    axes.set_xlabel(
        "% of all multiplications in INT8; at the top, how many layers are float", fontsize=8, color=INK
    )
    axes.set_ylabel("points against FP32", fontsize=8, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return _png(figure)


def timeline(latencies_ms: Sequence[float]) -> bytes:
    """Latency of each streamed frame from capture to pose."""
    figure, axes = _figure(8.0, 2.0)
    axes.plot(latencies_ms, color=ACCENT, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("frame", fontsize=8)
    axes.set_ylabel("ms, capture to pose", fontsize=8)
    return _png(figure)
