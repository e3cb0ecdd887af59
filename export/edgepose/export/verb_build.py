"""`edgepose build`: TensorRT engines of a bundle, built, proven and timed on the board they will run on."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table

from edgepose.calibration.onboard import ap_losses
from edgepose.runtime.bench import Timing, alternate
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.flags import FiniteRange
from edgepose.runtime.trt import trtexec
from edgepose.runtime.trt.board import require_board
from edgepose.runtime.trt.build import DEFAULT_LEVEL, Settings
from edgepose.runtime.trt.cache import default_root
from edgepose.runtime.trt.cuda import LIBRARIES
from edgepose.runtime.trt.engines import Engines, Options, Step, batches_for
from edgepose.runtime.trt.implicit import (
    SCALES,
    cache_text,
    has_calibrators,
    scales_file,
    scales_of,
    source_of,
)
from edgepose.runtime.trt.precision import LADDER, NO_ENGINE, attempts
from edgepose.runtime.trt.runner import TensorRtBackend
from edgepose.runtime.trt.selftest import Moved

log = logging.getLogger(__name__)

PATTERN = "2:4"  # of the weights, as a bundle's provenance names it
_COSTS = ("from golden", "drift px", "Δ AP")
CHOSEN = ("int8", "fp16")  # INT8 transformers are often slower than FP16, so both are built and timed


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--graph", "graphs", multiple=True, help="Only this graph of the bundle; may be repeated.")
@click.option(
    "--precision", "precisions", type=click.Choice(LADDER), multiple=True, default=CHOSEN, show_default=True
)
@click.option(
    "--batch", help="One size, or smallest,best,largest.  [default: 1; 1,4,16 of networks that see crops]"
)
@click.option("--workspace", type=click.IntRange(1), default=1024, show_default=True, help="MiB for kernels.")
@click.option(
    "--level", type=click.IntRange(0, 5), default=DEFAULT_LEVEL, show_default=True, help="Search effort."
)
@click.option(
    "--sparsity/--no-sparsity",
    default=None,
    help="Use 2:4 sparse weights.  [default: where the bundle says that it has them]",
)
@click.option("--dla-core", type=click.IntRange(0), help="Run on this DLA core, the rest on the GPU.")
@click.option(
    "--implicit-int8",
    metavar="scales|golden|FOLDER",
    help="INT8 without Q/DQ, for TensorRT 8.x and 10.x: by the bundle's scales, or by TensorRT's calibrator "
    "on the golden pictures or those in FOLDER. With --dla-core it is scales.",
)
@click.option("--cuda", type=click.Choice(list(LIBRARIES)), default="pycuda", show_default=True)
@click.option("--engines", type=click.Path(path_type=Path), help="Folder of the engines.")
@click.option("--rebuild", is_flag=True, help="Also what is already there, or failed before.")
@click.option("--rounds", type=click.IntRange(3), default=50, show_default=True, help="Timed runs of each.")
@click.option(
    "--max-drift",
    type=FiniteRange(0),
    default=1.0,
    show_default=True,
    help="Gate: median pixels of the input that joints may be from FP32's in the golden pictures.",
)
@click.option("--data", help="Labelled pictures, synthetic:… or COCO files: adds the gate on AP.")
@click.option(
    "--max-ap-loss",
    type=FiniteRange(0, 100),
    default=1.0,
    show_default=True,
    help="Gate, with --data: points of AP that may be lost to FP32.",
)
@click.option("--print-trtexec", metavar="RELEASE", help="Only print the commands for that TensorRT release.")
@click.option(
    "--print-calibration-cache",
    metavar="VERSION",
    help="Only print the bundle's scales as a calibration cache of that TensorRT, such as 10.3.0, as its "
    "`trtexec --calib=FILE` reads it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build(
    bundle: Path,
    graphs: tuple[str, ...],
    precisions: tuple[str, ...],
    batch: str | None,
    workspace: int,
    level: int,
    sparsity: bool | None,
    dla_core: int | None,
    implicit_int8: str | None,
    cuda: str,
    engines: Path | None,
    rebuild: bool,
    rounds: int,
    max_drift: float,
    data: str | None,
    max_ap_loss: float,
    print_trtexec: str | None,
    print_calibration_cache: str | None,
    as_json: bool,
) -> None:
    """Build TensorRT engines of BUNDLE on this board, prove them on its golden vectors, and time them.

    The fastest one that reproduces the golden vectors and is within the accuracy gate becomes the default
    here. An engine is kept for exactly this board, TensorRT and graph; nothing is built twice.
    """
    opened = Bundle.open(bundle)
    batches = batches_for(opened.spec) if batch is None else _batches(batch)
    settings = Settings(batches, workspace, level, _sparse(opened, sparsity), dla_core)
    names = graphs or opened.spec.graphs
    if print_trtexec is not None and print_calibration_cache is not None:
        raise click.UsageError("give --print-trtexec or --print-calibration-cache, not both")
    if print_trtexec is not None and implicit_int8:
        raise EdgeposeError(
            "--print-trtexec: trtexec is given scales as a file, which --print-calibration-cache VERSION "
            "prints, for --calib=FILE --int8 with the FP32 graph; leave out --implicit-int8"
        )
    if print_trtexec is not None:
        click.echo("\n".join(_lines(opened, names, print_trtexec, precisions, settings)))
        return
    if print_calibration_cache is not None:
        for name in names:
            click.echo(cache_text(scales_of(opened, name), print_calibration_cache), nl=False)
        return
    options = Options(settings, cuda, engines or default_root(), rebuild)
    made = {name: _engines(opened, name, options, implicit_int8) for name in names}
    losses = ap_losses(opened, made, precisions, data) if data else {}
    gate = Gate(max_drift, max_ap_loss, losses)
    found = {name: _report(one, gate, precisions, rounds) for name, one in made.items()}
    board = asdict(next(iter(made.values())).board)
    gates = {"max_drift_px": max_drift, "max_ap_loss": max_ap_loss, "data": data}
    report = {"board": board, "settings": asdict(settings), "gates": gates, "graphs": found}
    click.echo(json.dumps(report, indent=1)) if as_json else _show(report)
    if lacking := [name for name, one in found.items() if one["default"] is None]:
        raise GateFailed(
            f"no engine of {', '.join(lacking)} can be used here, or none within the gate; ONNX Runtime runs "
            "the same model on the CPU"
        )


def _sparse(bundle: Bundle, asked: bool | None) -> bool:
    """Whether TensorRT may use zeros: as asked, or as the bundle's weights follow the pattern."""
    there = bundle.provenance.get("sparsity") == PATTERN
    if asked and not there:
        log.warning(
            "%s: does not say that its weights follow %s, so --sparsity will find little",
            bundle.path,
            PATTERN,
        )
    return there if asked is None else asked


@dataclass(frozen=True, slots=True)
class Gate:
    """What an engine may cost to become the default."""

    max_drift_px: float  # median over the joints that FP32 shows in the golden pictures
    max_ap_loss: float  # points
    ap_losses: Mapping[str, float]  # points, by precision; without labelled pictures there are none

    def failure(self, precision: str, drift: Moved) -> str:
        """In words; empty for an engine within it."""
        if drift.p50_px is not None and not drift.p50_px <= self.max_drift_px:
            return f"joints move by {drift.p50_px:.2f} px (median), {self.max_drift_px:.2f} px are allowed"
        loss = self.ap_losses.get(precision, 0.0)
        if not loss <= self.max_ap_loss:
            return f"loses {loss:.2f} points of AP, {self.max_ap_loss:.2f} are allowed"
        return ""


def _engines(bundle: Bundle, graph: str, options: Options, implicit: str | None) -> Engines:
    """With the source of INT8's scales where it is not Q/DQ: asked for, or for a DLA, which reads no Q/DQ."""
    require_board()
    if implicit is None and options.settings.dla_core is not None and scales_file(graph) in bundle.files:
        implicit = SCALES if has_calibrators() else None
    if implicit is not None:
        options = replace(options, implicit=source_of(bundle, graph, implicit))
    return Engines(bundle, graph, options)


def _lines(
    bundle: Bundle, names: tuple[str, ...], release: str, precisions: tuple[str, ...], settings: Settings
) -> Iterator[str]:
    """The commands for the files that the bundle has. Raises EdgeposeError for a precision without any."""
    for name in names:
        inputs = _inputs(bundle, name)
        for precision in precisions:
            files = [f"{name}.{way.view}.onnx" for way in attempts(precision, trtexec.ways(release))]
            if not bundle.files.keys() & files:
                raise EdgeposeError(
                    f"{bundle.path}: has no {' or '.join(files)}, which TensorRT {release} would build "
                    f"{precision} of; choose another --precision, or export it with --compressed"
                )
            lines = trtexec.commands(release, precision, name, inputs, settings)
            yield from (line for file, line in zip(files, lines, strict=True) if file in bundle.files)


def _batches(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\d{1,6}", part) for part in parts):
        raise EdgeposeError(
            f"--batch {text}: give one size such as 1, or smallest,best,largest such as 1,4,8"
        )
    low, best, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return low, best, high


def _inputs(bundle: Bundle, graph: str) -> dict[str, tuple[int | None, ...]]:
    from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend

    with OnnxRuntimeBackend(bundle.graph(graph, "fp32"), threads=1) as backend:
        return {name: shape for name, (shape, _) in backend.inputs.items()}


def _report(engines: Engines, gate: Gate, precisions: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Build, prove, judge and time; the fastest engine within the gate is remembered as the default."""
    steps: list[Step] = []
    with ExitStack() as stack:
        live: dict[str, TensorRtBackend] = {}
        for precision in precisions:
            backend, tried = engines.exactly(precision)
            steps += tried
            if backend is not None:
                live[precision] = stack.enter_context(backend)
        judged = {
            precision: _judged(engines, gate, precision, backend) for precision, backend in live.items()
        }
        timings = _timed(live, engines, rounds)
    within = [timing for timing in timings if not judged[timing.name]["failure"]]
    best = min(within, key=lambda timing: timing.p50_ms).name if within else None
    report = {
        "engines": [asdict(step) for step in steps],
        "accuracy": judged,
        "timings": [timing.to_dict() for timing in timings],
        "default": best,
    }
    engines.keep_default(best or NO_ENGINE, report)
    return report


def _judged(engines: Engines, gate: Gate, precision: str, backend: TensorRtBackend) -> dict[str, Any]:
    """What an engine costs, and why that is too much."""
    drift = engines.examined(backend, precision).drift
    loss = gate.ap_losses.get(precision)
    return {"drift": asdict(drift), "ap_loss": loss, "failure": gate.failure(precision, drift)}


def _timed(live: dict[str, TensorRtBackend], engines: Engines, rounds: int) -> list[Timing]:
    """In turns, with the copies to and from the GPU, at the batch the engines are to be fast for."""
    if not live:
        return []
    feeds = engines.feeds(next(iter(live.values())).inputs)
    return alternate({name: partial(backend.run, feeds) for name, backend in live.items()}, rounds)


def _show(report: dict[str, Any]) -> None:
    board, console = report["board"], Console(width=130)
    machine = f"{board['gpu']} sm_{board['sm']}, TensorRT {board['tensorrt']}, Jetson Linux {board['l4t']}"
    console.print(machine)
    for name, found in report["graphs"].items():
        console.print(_table(name, found))
        for step in found["engines"]:
            if step["problem"]:
                line = f"no {step['precision']} engine ({step['typing']}): {step['problem']}"
                console.print(line, markup=False)
        for precision, judged in found["accuracy"].items():
            if judged["failure"]:
                console.print(f"{precision} is outside the gate: {judged['failure']}", markup=False)
        if found["default"]:
            console.print(f"default here: {found['default']}, the fastest within the gate")


def _table(name: str, found: dict[str, Any]) -> Table:
    table = Table(Column(name), Column("view", overflow="fold"), box=box.SIMPLE_HEAD)
    for title in ("build s", "INT8/FP16/FP32 layers", "reformats", *_COSTS, "median ms", "95 % ms"):
        table.add_column(title, justify="right")
    timings = {row["name"]: row for row in found["timings"]}
    for step in found["engines"]:
        if not step["problem"]:
            judged = found["accuracy"][step["precision"]]
            figures = _figures(step["report"], judged, timings[step["precision"]])
            table.add_row(f"{step['precision']} ({step['typing']})", step["view"], *figures)
    return table


def _figures(report: dict[str, Any], judged: dict[str, Any], timing: dict[str, Any]) -> tuple[str, ...]:
    layers, drift, loss = report["layers"], judged["drift"]["p50_px"], judged["ap_loss"]
    return (
        f"{report['seconds']:.0f}",
        "/".join(str(layers["by_precision"].get(name, 0)) for name in LADDER),
        str(layers["reformats"]),
        "/".join(f"{figure:.2g}" for figure in report["golden"].values()),
        "" if drift is None else f"{drift:.2f}",
        "" if loss is None else f"{-loss:+.1f}",
        f"{timing['p50_ms']:.2f}",
        f"{timing['p95_ms']:.2f}",
    )
