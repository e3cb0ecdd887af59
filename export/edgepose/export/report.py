"""The demo's HTML report: one file, every figure measured in the run it describes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.ledger import Ledger, Row
from edgepose.export import dial, plots
from edgepose.export.demo import Outcome, Streamed
from edgepose.export.streamcheck import GOOD_OKS
from edgepose.runtime.backend import open_backend
from edgepose.runtime.drafts import draft_file
from edgepose.runtime.errors import require
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.overlay import draw
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import Spec

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHOWN_PICTURES, SHOWN_FRAMES, STUDIED = 8, 4, 100
STREAM_GATE = 0.8  # share of the people who must be found in the stream


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture inside the page."""

    uri: str
    caption: str


def write_report(path: Path, outcome: Outcome) -> None:
    """Write the page; complete or not at all."""
    template = (
        require("jinja2").Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    )
    html = template.render(**_content(outcome))
    with draft_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def failures(outcome: Outcome) -> list[str]:
    """All gates the demo fails, in words."""
    score = outcome.streamed.score
    failed = outcome.ledger.verdict()
    if score.share < STREAM_GATE:
        failed.append(
            f"stream: {score.share:.1%} of {score.people} people found, {STREAM_GATE:.0%} are asked for"
        )
    return failed


def stream_sentence(streamed: Streamed) -> str:
    """What the client saw, in one sentence."""
    score, paired = streamed.score, sum(frame.poses is not None for frame in streamed.frames)
    return (
        f"A GStreamer RTSP client read {len(streamed.frames)} frames, {paired} with their poses; of "
        f"{score.people} unoccluded people taller than a quarter of the picture, {score.found} "
        f"({score.share:.1%}) came out with an OKS of {GOOD_OKS} or more."
    )


def watch_lines(outcome: Outcome) -> list[str]:
    """The commands that show the stream, and what it says."""
    bundle = outcome.bundle.path
    return [
        f".venv/bin/edgepose stream --source synthetic:seed=1 --bundle {bundle} --rtsp :8554/pose",
        "ffplay rtsp://127.0.0.1:8554/pose",
        ".venv/bin/edgepose watch rtsp://127.0.0.1:8554/pose --poses -",
    ]


def _content(outcome: Outcome) -> dict[str, Any]:
    ledger = outcome.ledger
    return {
        "model": outcome.bundle.spec.model,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "environment": ", ".join(f"{name} {value}" for name, value in ledger.environment.items()),
        "failures": failures(outcome),
        "data": _data_sentence(ledger),
        "ledger_head": (
            "artefact",
            "AP",
            "AP50",
            "AP75",
            "AR",
            "AP - FP32",
            "drift px",
            "ρ",
            "ECE",
            "duplicates",
            "ms",
            "MB",
        ),
        "ledger_rows": [_cells(row, ledger) for row in ledger.rows],
        "plots": _plots(outcome),
        "refining": None if outcome.curve is None else _refining(outcome.curve),
        "pictures": list(_side_by_side(outcome)),
        "calibration": _calibration_sentence(outcome.calibration),
        "stream": stream_sentence(outcome.streamed),
        "stream_good": outcome.streamed.score.share >= STREAM_GATE,
        "received": list(_received(outcome.streamed.frames)),
        "timeline": _uri(
            plots.timeline([line["latency_ms"] for line in outcome.streamed.lines if "latency_ms" in line])
        ),
        "watch": watch_lines(outcome),
        "commands": outcome.commands,
    }


def _data_sentence(ledger: Ledger) -> str:
    score = ledger.baseline.score
    return (
        f"{ledger.data['evaluation']}: {score.pictures} pictures, {score.people} people of "
        f"{score.min_height_px:g} px or more; {score.ignored} others neither count nor cost. "
        "Drift: median and 95th percentile of the joints' distance to FP32, in pixels of the input. "
        "ρ: does the score rank poses by the OKS they reach (1: always)? ECE: how far it is from that OKS. "
        "Duplicates: poses of a person already found."
    )


def _cells(row: Row, ledger: Ledger) -> tuple[str, ...]:
    score = row.score
    points = tuple(f"{100 * value:.1f}" for value in (score.ap, score.ap50, score.ap75, score.ar))
    loss = "" if row is ledger.baseline else f"{round(-100 * ledger.ap_loss(row), 2) + 0.0:+.2f}"
    if row.difference is not None:
        loss += f" ({100 * row.difference.low:+.1f} … {100 * row.difference.high:+.1f})"
    drift = (
        ""
        if row.drift is None or row.drift.p50_px is None
        else f"{row.drift.p50_px:.2f} / {row.drift.p95_px:.2f}"
    )
    spent = "" if row.latency is None else f"{row.latency.p50_ms:.1f} / {row.latency.p95_ms:.1f}"
    size = "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}"
    return (row.stage, *points, loss, drift, *_worth(row), spent, size)


def _worth(row: Row) -> tuple[str, str, str]:
    """What the scores are worth: rank correlation, calibration error, duplicates."""
    quality = row.quality
    if quality is None:
        return "", "", ""
    rho, error = ("" if value is None else f"{value:.3f}" for value in (quality.rho, quality.ece))
    return rho, error, str(quality.duplicates)


def _calibration_sentence(calibration: dict[str, Any]) -> str:
    strata, exclusion = calibration["coverage"], calibration["exclusion"]
    covered = sum(stratum["chosen"] > 0 for stratum in strata.values())
    return (
        f"{calibration['images']} pictures with {calibration['people']} people, covering {covered} of "
        f"{len(strata)} kinds (scale, visibility, crowding) that the source has. None is among the "
        f"{exclusion['compared']} evaluation pictures (sha256 of their pixels); "
        f"{exclusion['near_duplicates']} look alike. Manifest sha256 {calibration['sha256'][:16]}…"
    )


def _side_by_side(outcome: Outcome) -> Iterator[Figure]:
    """What FP32 and INT8 see in the first evaluation pictures, and in those of them with most people."""
    bundle, data = outcome.bundle, open_dataset(outcome.plan.evaluation)
    indices, half = range(min(STUDIED, len(data))), SHOWN_PICTURES // 2
    crowded = sorted(indices, key=lambda index: -len(data.people(index)))
    with open_backend(bundle, "fp32") as fp32, open_backend(bundle, "int8") as int8:
        estimators = [Estimator(backend, bundle.spec) for backend in (fp32, int8)]
        for index in dict.fromkeys([*crowded[:half], *indices[:half]]):
            image = data[index].image
            pair = [_annotated(image, estimate(image), bundle.spec) for estimate in estimators]
            yield Figure(_picture(np.concatenate(pair, axis=1)), f"picture {index}: FP32 left, INT8 right")


def _annotated(image: U8, poses: Poses, spec: Spec) -> U8:
    copy: U8 = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    draw(copy, _enlarged(poses.above(spec.score_threshold), 2), spec.joints())
    return copy


def _enlarged(poses: Poses, factor: float) -> Poses:
    keypoints = ((poses.keypoints + 0.5) * factor - 0.5).astype(np.float32)
    return Poses(keypoints, poses.keypoint_scores, poses.scores, poses.boxes * np.float32(factor))


def _plots(outcome: Outcome) -> list[Figure]:
    ledger, spec = outcome.ledger, outcome.bundle.spec
    return [
        Figure(_uri(plots.accuracy(ledger)), "AP of every artefact."),
        Figure(_uri(plots.latency(ledger)), "Time a picture, all artefacts shown every picture in turns."),
        Figure(_uri(plots.per_joint(ledger, spec.joints())), "Where accuracy goes, joint by joint."),
        Figure(_uri(plots.reliability(ledger)), "Is the score the OKS that the pose reaches?"),
    ]


def _refining(curve: dial.Curve) -> dict[str, Any]:
    """The accuracy-against-time curve, as a picture and as figures."""
    never, about = curve.points[0], curve.about
    best = max(curve.points, key=lambda point: point.score.ap)
    sentence = (
        f"{about['second']} looks again at the people of {about['first']} ({about['precision'].upper()}, "
        f"{about['data']}: {never.score.people} people). Without it AP is {100 * never.score.ap:.1f} in "
        f"{never.mean_ms:.1f} ms, at best {100 * best.score.ap:.1f} in {best.mean_ms:.1f} ms ({best.name}). "
        "Looked, twice: % of the people shown."
    )
    caption = "Accuracy against time: policies and budgets, with the share of the people looked at."
    return {
        "sentence": sentence,
        "plot": Figure(_uri(plots.accuracy_against_time(curve)), caption),
        "head": ("policy, budget", *dial.HEAD),
        "rows": [(point.name, *dial.cells(point, never)) for point in curve.points],
    }


def _received(frames: Sequence[Any]) -> Iterator[Figure]:
    chosen = np.linspace(0, len(frames) - 1, SHOWN_FRAMES).astype(int)
    for place in chosen:
        line = frames[place].poses or {}
        people = line.get("people") or []
        caption = (
            f"received frame {place}: {len(people)} people, {line.get('latency_ms', '?')} ms after capture"
        )
        yield Figure(_picture(frames[place].image), caption)


def _picture(image: U8) -> str:
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return _uri(encoded.tobytes(), "jpeg")


def _uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
