"""Recording golden vectors: a few pictures and what each view answered here."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from onnx import ModelProto

from edgepose.compression.execution import Outputs, feeds_of, outputs_of
from edgepose.compression.graph import Array
from edgepose.runtime.agreement import Difference
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.golden import Golden, apart
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import Spec


def record(views: Iterable[tuple[str, ModelProto]], frames: U8, spec: Spec) -> Golden:
    """Run every view on `frames`; a graph's FP32 view comes before the graphs that read its outputs.

    Raises EdgeposeError when one cannot run or answers not-a-number.
    """
    recorded = Golden(frames, {})
    for name, model in views:
        answers = _answers(recorded, name, model, spec)
        if not all(np.isfinite(array).all() for outputs in answers for array in outputs.values()):
            raise EdgeposeError(
                f"{name}: answers a golden picture with something not finite; train or calibrate again"
            )
        recorded.expected[name] = answers
    return recorded


def _answers(recorded: Golden, view: str, model: ModelProto, spec: Spec) -> list[Outputs]:
    """TensorRT's views are run node by node, as they are written.

    ONNX Runtime 1.31 quantizes float biases when it optimises (WeightBiasQuantization), on a scale that half
    precision rounds to nothing: the typed view's keypoints were 3 px off in the median.
    """
    feeds = [feeds_of(model, known) for known in recorded.known(spec)]
    return outputs_of(model, feeds, optimised="int8.trt" not in view)


def to_bytes(golden: Golden) -> bytes:
    """The npz file: `frames`, and `<view>/<output>` (F, ...) for each view."""
    arrays: dict[str, Array] = {"frames": golden.frames}
    for view, answers in golden.expected.items():
        arrays |= {f"{view}/{name}": np.concatenate([a[name] for a in answers]) for name in answers[0]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def deviation(golden: Golden, view: str, model: ModelProto, spec: Spec) -> Difference:
    """How far `model` is here from what was recorded for `view`."""
    return apart(golden.expected[view], _answers(golden, view, model, spec), spec)
