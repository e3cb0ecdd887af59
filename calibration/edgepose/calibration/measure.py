"""Every artefact over the same pictures with one evaluator: the rows of the ledger."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgepose.calibration.evaluation import Shown, require_skeleton, require_unseen
from edgepose.calibration.ledger import Gates, Latency, Ledger, Row
from edgepose.calibration.quality import assess, rho_difference, tau_difference
from edgepose.calibration.sample import Person
from edgepose.calibration.score import bootstrap_difference, evaluate, keypoint_drift
from edgepose.calibration.watch import Look, Watch, compared
from edgepose.runtime.backend import CPU_VIEWS, Backend, open_backend
from edgepose.runtime.bundle import LEDGER, Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.oks import F64
from edgepose.runtime.poses import Poses
from edgepose.runtime.progress import track
from edgepose.runtime.spec import Spec
from edgepose.runtime.stream.camera_path import CameraPath
from edgepose.runtime.topdown.twostage import TwoStage

ONNX_FP32, ONNX_INT8 = "ONNX FP32 (CPU)", "ONNX INT8 (CPU)"


@dataclass(frozen=True, slots=True)
class Artefact:
    """One form of the model that can be asked for poses."""

    stage: str
    # Of a picture, and of the boxes and scores of its people where the network sees one person at a time.
    estimate: Callable[..., Poses]
    size_bytes: int
    watch: Watch | None = None  # of a network that looks twice
    camera: CameraPath | None = None  # what its pictures go through first; no part of its time

    def asked(self, picture: tuple[Any, ...]) -> tuple[Any, ...]:
        """What `estimate` takes for a picture of `Shown`."""
        return picture if self.camera is None else (self.camera.through(picture[0]), *picture[1:])

    def behind(self, camera: CameraPath) -> Artefact:
        """The same, seeing its pictures as the camera delivers them."""
        return replace(self, stage=f"{camera.name}, {self.stage}", camera=camera)


def artefact_of(stage: str, backends: Sequence[Backend], spec: Spec, precision: str, size: int) -> Artefact:
    """The estimator of the spec's graphs, whose `backends` are in their order."""
    if spec.resize == "crop":
        coarse, fine = backends
        limit = spec.limit(precision)
        watch = Watch(coarse, limit)
        return Artefact(stage, TwoStage(watch, fine, spec, limit), size, watch)
    (backend,) = backends
    return Artefact(stage, Estimator(backend, spec), size)


@contextmanager
def cpu_artefacts(bundle: Bundle, threads: int) -> Iterator[list[Artefact]]:
    """What of the bundle ONNX Runtime runs here, FP32 first."""
    spec, found = bundle.spec, []
    with ExitStack() as stack:
        for stage, precision in ((ONNX_FP32, "fp32"), (ONNX_INT8, "int8")):
            names = [f"{graph}.{CPU_VIEWS[precision]}.onnx" for graph in spec.graphs]
            if bundle.files.keys() >= set(names):
                backends = [
                    stack.enter_context(open_backend(bundle, precision, graph, threads))
                    for graph in spec.graphs
                ]
                size = sum((bundle.folder / name).stat().st_size for name in names)
                found.append(artefact_of(stage, backends, spec, precision, size))
        yield found


@dataclass(slots=True)
class Run:
    """What one artefact said and how long it took, picture by picture."""

    artefact: Artefact
    poses: list[Poses] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)  # of networks that look twice


def run_all(found: Sequence[Artefact], shown: Shown) -> list[Run]:
    """Show every picture to every artefact in turns, so that a slow moment of the machine hits them all."""
    runs = [Run(artefact) for artefact in found]
    first = shown[0]
    for artefact in found:
        artefact.estimate(*artefact.asked(first))  # the first call pays for set-up that no later one sees
        if artefact.watch is not None:
            artefact.watch.seen()
    for index in track(range(len(shown)), "verify"):
        picture = shown[index]
        for run in runs:
            asked = run.artefact.asked(picture)
            start = time.perf_counter()
            poses = run.artefact.estimate(*asked)
            run.seconds.append(time.perf_counter() - start)
            run.poses.append(poses)
            if run.artefact.watch is not None:
                run.looks.append(run.artefact.watch.seen())
    return runs


def ledger_of(runs: Sequence[Run], shown: Shown, spec: Spec, gates: Gates, min_height_px: float) -> Ledger:
    """Score every run against the labels and against the first run."""
    data = shown.pictures
    truth = [data.people(index) for index in range(len(data))]
    scales = [shown.scale(index, poses, spec) for index, poses in enumerate(runs[0].poses)]
    rows = [_row(run, runs[0], (truth, scales), spec, min_height_px) for run in runs]
    rows = [rows[0], *(_with_intervals(row, rows[0]) for row in rows[1:])]
    boxes = {"boxes": shown.found_by} if shown.found_by else {}
    return Ledger(tuple(rows), gates, environment(), {"evaluation": data.source, **boxes})


def held_against(  # noqa: PLR0913  as ledger_of, of two bundles
    bundle: Bundle, other: Bundle, shown: Shown, gates: Gates, min_height_px: float, threads: int
) -> Ledger:
    """What the CPU runs of the bundle, held against the FP32 graph of another one, the ledger's baseline.

    Raises EdgeposeError when the two are not shown the same or do not find the same joints, and GateFailed
    when the other one was calibrated on one of the pictures.
    """
    require_skeleton(shown.pictures, other.spec)
    require_unseen(shown.pictures, other)
    if shown.people is not None or other.spec.resize == "crop":
        _require_same_crops(bundle, other)
    with cpu_artefacts(other, threads) as theirs, cpu_artefacts(bundle, threads) as ours:
        baseline = replace(theirs[0], stage=f"{other.path.name}: {theirs[0].stage}")
        runs = run_all([baseline, *ours], shown)
        return ledger_of(runs, shown, bundle.spec, gates, min_height_px)


def _require_same_crops(bundle: Bundle, other: Bundle) -> None:
    kinds = [(one.spec.family, one.spec.resize, one.spec.width, one.spec.height) for one in (bundle, other)]
    if kinds[0] != kinds[1]:
        raise EdgeposeError(
            f"{other.path} is a {other.spec.model} of {other.spec.width}x{other.spec.height}, {bundle.path} "
            f"a {bundle.spec.model} of {bundle.spec.width}x{bundle.spec.height}: networks that are shown one "
            "person at a time are compared with their own kind and size only"
        )


def _row(
    run: Run,
    baseline: Run,
    labels: tuple[list[tuple[Person, ...]], list[float | F64]],
    spec: Spec,
    min_height_px: float,
) -> Row:
    truth, scales = labels
    camera = run.artefact.camera
    drift = None
    if run is not baseline:
        drift = keypoint_drift(baseline.poses, run.poses, spec.joints(), spec.score_threshold, scales)
    return Row(
        stage=run.artefact.stage,
        score=evaluate(truth, run.poses, spec.joints(), min_height_px),
        drift=drift,
        latency=Latency.of(run.seconds),
        size_bytes=run.artefact.size_bytes,
        quality=assess(truth, run.poses, spec.joints(), min_height_px),
        looks=compared(run.looks, None if run is baseline else baseline.looks, spec.sharp_cells or 0),
        camera=None if camera is None else camera.name,
    )


def _with_intervals(row: Row, baseline: Row) -> Row:
    """With what bootstraps say of its difference from the baseline."""
    row = replace(row, difference=bootstrap_difference(row.score, baseline.score))
    if row.quality is None or baseline.quality is None:
        return row
    both = row.quality, baseline.quality
    return replace(row, rho_difference=rho_difference(*both), tau_difference=tau_difference(*both))


def environment() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def ledger_in(bundle: Bundle) -> Ledger | None:
    """What was measured of the bundle before, if anything was."""
    if LEDGER not in bundle.files:
        return None
    return Ledger.from_dict(bundle.read(LEDGER, "a ledger"), f"{bundle.path}/{LEDGER}")


def with_ledger(bundle: Bundle, ledger: Ledger) -> Bundle:
    """Publish the bundle with this ledger inside."""
    text = json.dumps(ledger.to_dict(), indent=1, allow_nan=False) + "\n"
    return bundle.with_files({LEDGER: text.encode()})
