"""Every artefact of a bundle over the same pictures with one evaluator: the rows of the ledger."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from edgepose.calibration.dataset import Dataset
from edgepose.calibration.ledger import Gates, Latency, Ledger, Row
from edgepose.calibration.quality import assess
from edgepose.calibration.sample import Person
from edgepose.calibration.score import bootstrap_difference, evaluate, keypoint_drift
from edgepose.compression.artefact import open_compressed
from edgepose.compression.source_model import load_bundled_model
from edgepose.compression.torch_quantize import load_quantized_torch
from edgepose.runtime.backend import Array, open_backend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8, Letterbox
from edgepose.runtime.progress import track
from edgepose.runtime.spec import Spec

TORCH_FP32, TORCH_INT8 = "torch FP32", "torch INT8 (NNCF)"
ONNX_FP32, ONNX_INT8 = "ONNX FP32 (CPU)", "ONNX INT8 (CPU)"


class TorchBackend:
    """A torch model behind the protocol of `runtime.backend`, so that one estimator serves all rows."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model.eval()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for the input `images`."""
        with torch.inference_mode():
            outputs = self._model(torch.from_numpy(np.asarray(feeds["images"])))
        return {name: value.numpy() for name, value in outputs.items()}

    def close(self) -> None:
        """Free the model."""
        del self._model

    def __enter__(self) -> TorchBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Artefact:
    """One form of the model that can be asked for poses."""

    stage: str
    estimate: Callable[[U8], Poses]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the artefacts of one ledger come from."""

    bundle: Bundle
    weights: Path
    compressed: Path | None = None  # what `edgepose compress` wrote: adds the quantized torch row
    threads: int = 1


@contextmanager
def artefacts(sources: Sources) -> Iterator[list[Artefact]]:
    """All artefacts, torch FP32 first. Raises EdgeposeError when the weights are not the bundle's."""
    bundle, spec = sources.bundle, sources.bundle.spec
    torch.set_num_threads(sources.threads)
    model = load_bundled_model(bundle, sources.weights)
    with ExitStack() as stack:
        found = [Artefact(TORCH_FP32, Estimator(TorchBackend(model), spec), sources.weights.stat().st_size)]
        if sources.compressed is not None:
            found.append(_quantized_torch(sources.compressed, model, spec))
        for stage, precision, view in ((ONNX_FP32, "fp32", "fp32"), (ONNX_INT8, "int8", "int8.ort")):
            if f"pose.{view}.onnx" in bundle.files:
                backend = stack.enter_context(open_backend(bundle, precision, threads=sources.threads))
                size = bundle.graph("pose", view).stat().st_size
                found.append(Artefact(stage, Estimator(backend, spec), size))
        yield found


def _quantized_torch(compressed: Path, model: torch.nn.Module, spec: Spec) -> Artefact:
    folder = open_compressed(compressed).torch()
    quantized = load_quantized_torch(folder, model, torch.zeros(1, 3, spec.height, spec.width))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Artefact(TORCH_INT8, Estimator(TorchBackend(quantized), spec), size)


@dataclass(slots=True)
class Run:
    """What one artefact said and how long it took, picture by picture."""

    artefact: Artefact
    poses: list[Poses] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run_all(found: Sequence[Artefact], dataset: Dataset) -> list[Run]:
    """Show every picture to every artefact in turns, so that a slow moment of the machine hits them all."""
    runs = [Run(artefact) for artefact in found]
    first = dataset[0].image
    for artefact in found:
        artefact.estimate(first)  # the first call pays for set-up that no later one sees
    for index in track(range(len(dataset)), "verify"):
        image = dataset[index].image
        for run in runs:
            start = time.perf_counter()
            poses = run.artefact.estimate(image)
            run.seconds.append(time.perf_counter() - start)
            run.poses.append(poses)
    return runs


def ledger_of(
    runs: Sequence[Run], dataset: Dataset, spec: Spec, gates: Gates, min_height_px: float
) -> Ledger:
    """Score every run against the labels and against the first run."""
    truth = [dataset.people(index) for index in range(len(dataset))]
    scales = [Letterbox.fit(dataset.size(i), (spec.width, spec.height)).scale_x for i in range(len(dataset))]
    rows = [_row(run, runs[0], (truth, scales), spec, min_height_px) for run in runs]
    rows = [rows[0], *(_with_interval(row, rows[0]) for row in rows[1:])]
    return Ledger(tuple(rows), gates, environment(), {"evaluation": dataset.source})


def _row(
    run: Run,
    baseline: Run,
    labels: tuple[list[tuple[Person, ...]], list[float]],
    spec: Spec,
    min_height_px: float,
) -> Row:
    truth, scales = labels
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
    )


def _with_interval(row: Row, baseline: Row) -> Row:
    return replace(row, difference=bootstrap_difference(row.score, baseline.score))


def environment() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def with_ledger(bundle: Bundle, ledger: Ledger) -> Bundle:
    """Publish the bundle with this ledger inside."""
    text = json.dumps(ledger.to_dict(), indent=1, allow_nan=False) + "\n"
    return bundle.with_files({"ledger.json": text.encode()})
