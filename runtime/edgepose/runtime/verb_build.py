"""`edgepose build`: TensorRT engines of a bundle, built, proven and timed on the board they will run on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table

from edgepose.runtime.bench import Timing, alternate
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.trt import trtexec
from edgepose.runtime.trt.build import DEFAULT_LEVEL, Settings
from edgepose.runtime.trt.cache import default_root
from edgepose.runtime.trt.cuda import LIBRARIES
from edgepose.runtime.trt.engines import Engines, Options, Step
from edgepose.runtime.trt.precision import LADDER
from edgepose.runtime.trt.runner import TensorRtBackend

log = logging.getLogger(__name__)

PATTERN = "2:4"  # of the weights, as a bundle's provenance names it
CHOSEN = ("int8", "fp16")  # INT8 transformers are often slower than FP16, so both are built and timed


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--graph", "graphs", multiple=True, help="Only this graph of the bundle; may be repeated.")
@click.option(
    "--precision", "precisions", type=click.Choice(LADDER), multiple=True, default=CHOSEN, show_default=True
)
@click.option("--batch", default="1", show_default=True, help="One size, or smallest,best,largest.")
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
@click.option("--cuda", type=click.Choice(list(LIBRARIES)), default="pycuda", show_default=True)
@click.option("--engines", type=click.Path(path_type=Path), help="Folder of the engines.")
@click.option("--rebuild", is_flag=True, help="Also what is already there, or failed before.")
@click.option("--rounds", type=click.IntRange(3), default=50, show_default=True, help="Timed runs of each.")
@click.option("--print-trtexec", metavar="RELEASE", help="Only print the commands for that TensorRT release.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build(
    bundle: Path,
    graphs: tuple[str, ...],
    precisions: tuple[str, ...],
    batch: str,
    workspace: int,
    level: int,
    sparsity: bool | None,
    dla_core: int | None,
    cuda: str,
    engines: Path | None,
    rebuild: bool,
    rounds: int,
    print_trtexec: str | None,
    as_json: bool,
) -> None:
    """Build TensorRT engines of BUNDLE on this board, prove them on its golden vectors, and time them.

    The fastest one that reproduces the golden vectors becomes the default here. An engine is kept for exactly
    this board, TensorRT and graph; nothing is built twice.
    """
    opened = Bundle.open(bundle)
    settings = Settings(_batches(batch), workspace, level, _sparse(opened, sparsity), dla_core)
    names = graphs or opened.spec.graphs
    if print_trtexec:
        for line in _lines(opened, names, print_trtexec, precisions, settings):
            click.echo(line)
        return
    options = Options(settings, cuda, engines or default_root(), rebuild)
    made = {name: Engines(opened, name, options) for name in names}
    found = {name: _report(one, precisions, rounds) for name, one in made.items()}
    board = asdict(next(iter(made.values())).board)
    report = {"board": board, "settings": asdict(settings), "graphs": found}
    click.echo(json.dumps(report, indent=1)) if as_json else _show(report)
    if lacking := [name for name, one in found.items() if one["default"] is None]:
        raise GateFailed(
            f"no engine of {', '.join(lacking)} can be used here; ONNX Runtime runs the same model on the CPU"
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


def _lines(
    bundle: Bundle, names: tuple[str, ...], release: str, precisions: tuple[str, ...], settings: Settings
) -> Iterator[str]:
    for name in names:
        inputs = _inputs(bundle, name)
        for precision in precisions:
            yield from trtexec.commands(release, precision, name, inputs, settings)


def _batches(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.isdigit() for part in parts):
        raise EdgeposeError(
            f"--batch {text}: give one size such as 1, or smallest,best,largest such as 1,4,8"
        )
    low, best, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return low, best, high


def _inputs(bundle: Bundle, graph: str) -> dict[str, tuple[int | None, ...]]:
    from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend

    with OnnxRuntimeBackend(bundle.graph(graph, "fp32"), threads=1) as backend:
        return {name: shape for name, (shape, _) in backend.inputs.items()}


def _report(engines: Engines, precisions: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Build, prove and time; the fastest engine is remembered as the default."""
    steps: list[Step] = []
    with ExitStack() as stack:
        live: dict[str, TensorRtBackend] = {}
        for precision in precisions:
            backend, tried = engines.exactly(precision)
            steps += tried
            if backend is not None:
                live[precision] = stack.enter_context(backend)
        timings = _timed(live, engines, rounds)
    best = min(timings, key=lambda timing: timing.p50_ms).name if timings else None
    report = {
        "engines": [asdict(step) for step in steps],
        "timings": [timing.to_dict() for timing in timings],
        "default": best,
    }
    if best is not None:
        engines.keep_default(best, report)
    return report


def _timed(live: dict[str, TensorRtBackend], engines: Engines, rounds: int) -> list[Timing]:
    """In turns, with the copies to and from the GPU, at the batch the engines are to be fast for."""
    if not live:
        return []
    feeds = engines.feeds(next(iter(live.values())).inputs)
    return alternate({name: partial(backend.run, feeds) for name, backend in live.items()}, rounds)


def _show(report: dict[str, Any]) -> None:
    board, console = report["board"], Console(width=110)
    machine = f"{board['gpu']} sm_{board['sm']}, TensorRT {board['tensorrt']}, Jetson Linux {board['l4t']}"
    console.print(machine)
    for name, found in report["graphs"].items():
        console.print(_table(name, found))
        for step in found["engines"]:
            if step["problem"]:
                line = f"no {step['precision']} engine ({step['typing']}): {step['problem']}"
                console.print(line, markup=False)
        if found["default"]:
            console.print(f"default here: {found['default']}, the fastest that reproduces the golden vectors")


def _table(name: str, found: dict[str, Any]) -> Table:
    table = Table(Column(name), Column("view", overflow="fold"), box=box.SIMPLE_HEAD)
    for title in ("build s", "INT8/FP16/FP32 layers", "reformats", "from golden", "median ms", "95 % ms"):
        table.add_column(title, justify="right")
    timings = {row["name"]: row for row in found["timings"]}
    for step in found["engines"]:
        if not step["problem"]:
            figures = _figures(step["report"], timings[step["precision"]])
            table.add_row(f"{step['precision']} ({step['typing']})", step["view"], *figures)
    return table


def _figures(report: dict[str, Any], timing: dict[str, Any]) -> tuple[str, ...]:
    layers = report["layers"]
    return (
        f"{report['seconds']:.0f}",
        "/".join(str(layers["by_precision"].get(name, 0)) for name in LADDER),
        str(layers["reformats"]),
        "/".join(f"{figure:.2g}" for figure in report["golden"].values()),
        f"{timing['p50_ms']:.2f}",
        f"{timing['p95_ms']:.2f}",
    )
