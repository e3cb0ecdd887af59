"""`edgepose bench`: graphs, and PyTorch, against each other, timed in turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table

from edgepose.runtime.backend import CPU_VIEWS, Array
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bench import Timing, alternate
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, require

TORCH = "torch:"


@click.command()
@click.argument("graphs", nargs=-1, required=True)
@click.option("--rounds", type=click.IntRange(3), default=30, show_default=True, help="Runs of each graph.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures a run.")
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="0: as many as cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the timings as JSON.")
def bench(graphs: tuple[str, ...], rounds: int, batch: int, threads: int, as_json: bool) -> None:
    """Time GRAPHS in turns on ONNX Runtime's CPU, the first one being the measure of the others.

    A graph is an ONNX file, or a bundle's precision: BUNDLE:fp32, BUNDLE:int8; of a bundle of several graphs
    BUNDLE:coarse:fp32. torch:MODEL is that model in PyTorch, op by op, with random weights. Every round runs
    all of them, so the ratios hold on a busy machine too.
    """
    if len(set(graphs)) < len(graphs):
        raise EdgeposeError("a graph is named twice; name each one once")
    with ExitStack() as stack:
        candidates: dict[str, Callable[[], object]] = {}
        for name in graphs:
            if name.startswith(TORCH):
                candidates[name] = eager(name.removeprefix(TORCH), batch, threads)
                continue
            backend = stack.enter_context(OnnxRuntimeBackend(graph_file(name), threads))
            candidates[name] = partial(backend.run, _feeds(backend, batch))
        timings = alternate(candidates, rounds)
    if as_json:
        rows = [timing.to_dict() for timing in timings]
        click.echo(
            json.dumps({"rounds": rounds, "batch": batch, "threads": threads, "graphs": rows}, indent=1)
        )
    else:
        Console(width=100).print(_table(timings))


def eager(model: str, batch: int, threads: int) -> Callable[[], object]:
    """One run of the network `model` in PyTorch, for pictures or crops of noise.

    Raises EdgeposeError when there is no such model, MissingLibrary on a board, which has no PyTorch.
    """
    torch = require("torch")
    from edgepose.training.models import build  # it needs torch, which the graphs do without

    network: Any = build(model).eval()
    width, height = network.config.size
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    if threads:
        torch.set_num_threads(threads)
    without_gradients: Callable[[], object] = torch.no_grad()(partial(network, images))
    return without_gradients


def _feeds(backend: OnnxRuntimeBackend, batch: int) -> dict[str, Array]:
    """Noise for floats; for whole numbers an order of as many things as there are."""
    generator, feeds = np.random.default_rng(0), {}
    for name, (sizes, kind) in backend.inputs.items():
        shape = [size or batch for size in sizes]
        floats = kind is np.float32
        noise = generator.standard_normal(shape, np.float32) if floats else np.arange(shape[-1])
        feeds[name] = np.broadcast_to(noise, shape).astype(kind)
    return feeds


def graph_file(name: str) -> Path:
    """The ONNX file that `name` means. Raises EdgeposeError when there is none, or more than one."""
    place, _, precision = name.rpartition(":")
    if precision in CPU_VIEWS and place:
        return _graph_of(name, place, precision)
    path = Path(name)
    if not path.is_file():
        raise EdgeposeError(
            f"{name}: no such ONNX file; name one, or a bundle's precision such as build/demo/bundle:int8"
        )
    return path


def _graph_of(name: str, place: str, precision: str) -> Path:
    """The graph of a bundle that PLACE or PLACE:GRAPH means."""
    folder, _, graph = place.rpartition(":")
    if not folder or Path(place).exists():
        folder, graph = place, ""
    bundle = Bundle.open(Path(folder))
    graphs = bundle.spec.graphs
    if not graph and len(graphs) > 1:
        raise EdgeposeError(f"{name}: has several graphs; name {folder}:{graphs[0]}:{precision}, say")
    return bundle.graph(graph or graphs[0], CPU_VIEWS[precision])


def _table(timings: list[Timing]) -> Table:
    table = Table(Column("graph", overflow="fold"), box=box.SIMPLE_HEAD)
    for title in ("median ms", "95 % ms", "of the first's time", "middle half"):
        table.add_column(title, justify="right")
    for timing in timings:
        figures = (f"{timing.p50_ms:.2f}", f"{timing.p95_ms:.2f}", f"× {timing.ratio:.3f}")
        table.add_row(timing.name, *figures, f"{timing.low:.3f} .. {timing.high:.3f}")
    return table
