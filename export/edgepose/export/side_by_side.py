"""One network quantized by several tools on the same pictures, side by side: accuracy, drift, time, layers.

    python -m edgepose.export.side_by_side BUNDLE --calibration SET --data DATA --out build/side

Everything runs on ONNX Runtime's CPU through the same backend, in turns, in one process. Leaves side.json and
the ONNX files in the folder. nvidia-modelopt takes part where it can be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
from onnx import ModelProto
from rich import box
from rich.console import Console
from rich.table import Table

from edgepose.calibration.calibration_set import (
    Manifest,
    audit,
    load_calibration_set,
    require_apart,
    require_useful,
)
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.evaluation import MANIFEST, Shown, require_skeleton
from edgepose.calibration.ledger import Gates, Ledger, Row
from edgepose.calibration.measure import Artefact, environment, ledger_of, run_all
from edgepose.compression.artefact import open_compressed
from edgepose.compression.execution import INPUT, Feeds
from edgepose.compression.graph import WEIGHTED, Graph, copy, load_onnx
from edgepose.compression.groups import is_int8_layer
from edgepose.compression.plan import float_plan
from edgepose.compression.quantize import quantize, quiet_bars
from edgepose.compression.shown import pictures_shown
from edgepose.compression.trt_target import load_nncf
from edgepose.export.cpu_kernels import as_calibrated
from edgepose.export.views import cpu_view
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bench import Timing, alternate
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.drafts import draft_file, write_json
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.preprocess import normalise, prepare

FP32, QAT = "FP32", "NNCF, edgepose qat"


@dataclass(frozen=True, slots=True)
class Job:
    """What every tool is given."""

    model: ModelProto
    feeds: Sequence[Feeds]  # of one calibration picture each
    family: str
    path: Path  # where to write


def _edgepose(job: Job) -> None:
    """NNCF with the TensorRT table and the float plan, as `compress` does; the view for this runtime."""
    onnx.save(cpu_view(quantize(job.model, job.feeds, job.family).model), job.path)


def _nncf(job: Job) -> None:
    """NNCF as it comes."""
    nncf = load_nncf()
    with quiet_bars():
        onnx.save(
            nncf.quantize(copy(job.model), nncf.Dataset(job.feeds), subset_size=len(job.feeds)), job.path
        )


def _onnxruntime(job: Job, *, planned: bool) -> None:
    """ONNX Runtime's tool with the types it advises for x86, with or without our float plan."""
    tool = require("onnxruntime.quantization")

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._left = iter(job.feeds)

        def get_next(self) -> Feeds | None:
            return next(self._left, None)

    tool.quantize_static(
        copy(job.model),
        job.path,
        Reader(),
        per_channel=True,
        activation_type=tool.QuantType.QUInt8,
        weight_type=tool.QuantType.QInt8,
        nodes_to_exclude=list(float_plan(job.model, job.family)) if planned else None,
    )


def _modelopt(job: Job) -> None:
    """NVIDIA's own tool for ONNX files, by the largest values met, with float32 outside INT8."""
    tool = require("modelopt.onnx.quantization")
    pictures = np.concatenate([feed[INPUT] for feed in job.feeds])
    shape = "x".join(map(str, pictures[:1].shape))
    with TemporaryDirectory(prefix="edgepose-") as folder:  # it writes more than its result
        fp32, int8 = (str(Path(folder) / f"{name}.onnx") for name in ("fp32", "int8"))
        onnx.save(job.model, fp32)
        tool.quantize(
            fp32,
            quantize_mode="int8",
            calibration_data={INPUT: pictures},
            calibration_method="max",
            calibration_shapes=f"{INPUT}:{shape}",
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=int8,
        )
        onnx.save(onnx.load(int8), job.path)


def _qat(folder: Path, job: Job) -> None:
    """What `edgepose qat` made of the same graph; the view for this runtime."""
    found = open_compressed(folder)
    (name,) = found.spec.graphs
    if found.fp32(name) != job.model:
        raise EdgeposeError(f"{folder}: is of another FP32 graph; name what came of this bundle")
    onnx.save(cpu_view(found.quantized(name)), job.path)


TOOLS: dict[str, Callable[[Job], None]] = {
    "NNCF, edgepose": _edgepose,
    "NNCF, defaults": _nncf,
    "onnxruntime": partial(_onnxruntime, planned=False),
    "onnxruntime, our float plan": partial(_onnxruntime, planned=True),
}
if find_spec("modelopt") is not None:  # no dependency: the README says how to install it beside ours
    TOOLS["modelopt"] = _modelopt


@dataclass(frozen=True, slots=True)
class Contender:
    """One tool's file."""

    row: Row
    timing: Timing
    int8: int  # layers whose both operands are INT8
    layers: int  # weighted layers in all

    def to_dict(self, ledger: Ledger) -> dict[str, Any]:
        """JSON-able."""
        row = self.row
        return {
            "tool": row.stage,
            "ap": row.score.ap,
            "ap_difference": row.difference and row.difference._asdict(),
            "drift_px": row.drift and asdict(row.drift),
            "duplicates": row.quality and row.quality.duplicates,
            "timing": self.timing.to_dict(),
            "int8_layers": self.int8,
            "float_layers": self.layers - self.int8,
            "failures": ledger.failures(row),
        }


def int8_layers(model: ModelProto) -> tuple[int, int]:
    """How many layers multiply INT8 by INT8, and how many there are that have weights."""
    graph = Graph(as_calibrated(model))
    layers = [node for node in graph.nodes if node.op_type in WEIGHTED]
    return sum(is_int8_layer(graph, node.name) for node in layers), len(layers)


def contest(
    bundle: Bundle, files: Mapping[str, Path], shown: Shown, rounds: int
) -> tuple[Ledger, list[Contender]]:
    """Score and time the files, FP32 first, one thread each. `rounds`: runs of each that are timed."""
    spec = bundle.spec
    with ExitStack() as stack:
        backends = {name: stack.enter_context(OnnxRuntimeBackend(path, 1)) for name, path in files.items()}
        found = [
            Artefact(name, Estimator(backend, spec), files[name].stat().st_size)
            for name, backend in backends.items()
        ]
        ledger = ledger_of(run_all(found, shown), shown, spec, Gates(), 0.0)
        feeds = {INPUT: prepare(shown.pictures[0].image, spec)[0]}
        timings = alternate({name: partial(one.run, feeds) for name, one in backends.items()}, rounds)
    counts = [int8_layers(load_onnx(path)) for path in files.values()]
    return ledger, [
        Contender(row, timing, *count)
        for row, timing, count in zip(ledger.rows, timings, counts, strict=True)
    ]


def table(ledger: Ledger, contenders: Sequence[Contender]) -> Table:
    """One line a tool."""
    score = ledger.baseline.score
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    result.caption = (
        f"{score.pictures} pictures, {score.people} people. Δ AP in points with its 95 % bootstrap interval, "
        "drift of the joints in pixels of the input (median / 95 %), time of a run as a ratio to FP32's, "
        "median of the rounds; ✗ fails a gate of verify."
    )
    result.caption_justify, result.caption_style = "left", "dim"
    result.add_column("tool", no_wrap=True)
    for name in ("AP", "Δ AP", "95 % interval", "drift px", "doubles", "time", "float layers"):
        result.add_column(name, justify="right", no_wrap=True)
    for each in contenders:
        row, mark = each.row, " ✗" if ledger.failures(each.row) else ""
        change = "" if row.difference is None else f"{-100 * ledger.ap_loss(row):+.1f}"
        between = row.difference and " … ".join(f"{100 * end:+.1f}" for end in row.difference)
        drift = row.drift
        moved = "" if drift is None or drift.p50_px is None else f"{drift.p50_px:.2f} / {drift.p95_px:.2f}"
        doubles = "" if row.quality is None else str(row.quality.duplicates)
        figures = (f"{100 * row.score.ap:.1f}", change, between or "", moved, doubles)
        floats = f"{each.layers - each.int8} of {each.layers}"
        result.add_row(row.stage + mark, *figures, f"× {each.timing.ratio:.2f}", floats)
    return result


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--calibration", required=True, type=click.Path(path_type=Path), help="From `edgepose calibrate`."
)
@click.option(
    "--data",
    default="synthetic:count=100,seed=7",
    show_default=True,
    help="Evaluation pictures, as of verify.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of files and results.")
@click.option(
    "--qat", "learnt", type=click.Path(path_type=Path), help="What `edgepose qat` wrote: takes part, too."
)
@click.option("--rounds", type=click.IntRange(3), default=50, show_default=True, help="Runs that are timed.")
def main(  # noqa: PLR0913  the options of a command
    bundle: Path, calibration: Path, data: str, out: Path, learnt: Path | None, rounds: int
) -> None:
    """Quantize BUNDLE's FP32 graph with every tool on the same pictures, and compare what comes out."""
    opened, shown = Bundle.open(bundle), Shown(open_dataset(data))
    if len(opened.spec.graphs) > 1:
        raise EdgeposeError(f"{bundle}: has several graphs; these tools are compared on one alone")
    require_skeleton(shown.pictures, opened.spec)
    pictures = load_calibration_set(calibration)
    require_useful(pictures)
    audit(calibration, shown.pictures)
    if learnt is not None:
        calibrated = open_compressed(learnt).manifest()
        require_apart(Manifest.from_dict(calibrated, learnt / MANIFEST), shown.pictures)
    fp32 = opened.graph(opened.spec.graphs[0], "fp32")
    feeds = [{INPUT: normalise(frame, opened.spec)} for frame in pictures_shown(pictures, opened.spec)]
    files = {FP32: fp32}
    tools: dict[str, Callable[[Job], None]] = (
        dict(TOOLS) if learnt is None else {**TOOLS, QAT: partial(_qat, learnt)}
    )
    for name, tool in tools.items():
        files[name] = out / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
        with draft_file(files[name]) as draft:
            tool(Job(load_onnx(fp32), feeds, opened.spec.family, draft))
    ledger, contenders = contest(opened, files, shown, rounds)
    facts = {
        "evaluation": shown.pictures.source,
        "calibration": len(pictures),
        "environment": environment() | {name: version(name) for name in ("nncf", "onnxruntime")},
        "tools": [each.to_dict(ledger) for each in contenders],
    }
    write_json(out / "side.json", facts)
    Console(width=110).print(table(ledger, contenders))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(standalone_mode=False)))
