"""An engine on the golden pictures: how far from ONNX Runtime here, and its joints from those of FP32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgepose.runtime.agreement import AGREEMENTS, Array, Difference
from edgepose.runtime.backend import CPU_VIEWS
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.golden import REFERENCE, Golden, apart, read
from edgepose.runtime.spec import Spec
from edgepose.runtime.trt.frames import FrameEngine
from edgepose.runtime.trt.runner import TensorRtBackend

Answers = Sequence[dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Moved:
    """How far joints are from those of FP32, in pixels of the network input."""

    joints: int  # that FP32 shows
    p50_px: float | None  # None: FP32 shows nobody in the golden pictures
    p95_px: float | None
    most_px: float | None


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What an engine makes of the golden pictures, beyond reproducing its own view's answers."""

    onnx_runtime: (
        Difference | None
    )  # from ONNX Runtime here, of the same precision; None: it has no such view
    drift: Moved

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def examine(
    backend: TensorRtBackend | FrameEngine, bundle: Bundle, graph: str, precision: str, batch: int
) -> SelfTest:
    """Show an engine of a graph the golden pictures, `batch` times each. Raises EdgeposeError without any."""
    golden, spec = read(bundle), bundle.spec
    feeds = [{name: known[name] for name in backend.inputs} for known in golden.known(spec)]
    answers = [_first(backend.run(_repeated(one, batch))) for one in feeds]
    return SelfTest(
        onnx_runtime=_from_onnx_runtime(bundle, f"{graph}.{precision}", feeds, answers),
        drift=moved(golden, graph, answers, spec),
    )


def _repeated(feeds: dict[str, Array], batch: int) -> dict[str, Array]:
    return {name: np.repeat(array, batch, 0) for name, array in feeds.items()}


def _first(answers: dict[str, Array]) -> dict[str, Array]:
    return {name: array[:1] for name, array in answers.items()}


def _from_onnx_runtime(bundle: Bundle, name: str, feeds: Answers, answers: Answers) -> Difference | None:
    """FP16 is held against FP32: ONNX Runtime's CPU kernels have no half precision."""
    graph, _, precision = name.partition(".")
    view = CPU_VIEWS.get(precision, CPU_VIEWS["fp32"])
    if f"{graph}.{view}.onnx" not in bundle.files:
        return None
    with OnnxRuntimeBackend(bundle.graph(graph, view), threads=1) as backend:
        expected = [backend.run(one) for one in feeds]
    return apart(expected, answers, bundle.spec)


def moved(golden: Golden, graph: str, answers: Answers, spec: Spec) -> Moved:
    """The joints of answers to the golden pictures against FP32's recorded ones."""
    drift = AGREEMENTS[spec.family].drift
    expected = golden.expected[f"{graph}.{REFERENCE}"]
    pairs = zip(expected, answers, strict=True)
    lengths = np.concatenate([np.zeros(0), *(drift(one, other, spec) for one, other in pairs)])
    if not len(lengths):
        return Moved(0, None, None, None)
    p50, p95, most = np.quantile(lengths, [0.5, 0.95, 1]).tolist()
    return Moved(len(lengths), p50, p95, most)
