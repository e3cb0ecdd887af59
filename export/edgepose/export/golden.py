"""Recording golden vectors: a few pictures and what each view answered here."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from edgepose.export.execution import outputs_of
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.golden import Difference, Golden, Outputs, difference, largest
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.spec import Spec


def record(views: Mapping[str, ModelProto], frames: U8, spec: Spec) -> Golden:
    """Run every view on `frames`. Raises EdgeposeError when one cannot run or answers not-a-number."""
    images = [normalise(frame, spec) for frame in frames]
    expected = {name: _answers(name, model, images) for name, model in views.items()}
    for name, answers in expected.items():
        if not all(np.isfinite(array).all() for outputs in answers for array in outputs.values()):
            raise EdgeposeError(
                f"{name}: answers a golden picture with something not finite; train or calibrate again"
            )
    return Golden(frames, expected)


def _answers(view: str, model: ModelProto, images: list[F32]) -> list[Outputs]:
    """TensorRT's views are run node by node, as they are written.

    ONNX Runtime 1.31 quantizes float biases when it optimises (WeightBiasQuantization), on a scale that half
    precision rounds to nothing: the typed view's keypoints were 3 px off in the median.
    """
    return outputs_of(model, images, optimised="int8.trt" not in view)


def to_bytes(golden: Golden) -> bytes:
    """The npz file: `frames`, and `<view>/<output>` (F, ...) for each view."""
    arrays: dict[str, F32 | U8] = {"frames": golden.frames}
    for view, answers in golden.expected.items():
        arrays |= {f"{view}/{name}": np.concatenate([a[name] for a in answers]) for name in answers[0]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def deviation(golden: Golden, view: str, model: ModelProto, spec: Spec) -> Difference:
    """How far `model` is here from what was recorded for `view`."""
    answers = _answers(view, model, [normalise(frame, spec) for frame in golden.frames])
    pairs = zip(golden.expected[view], answers, strict=True)
    return largest([difference(expected, actual, spec.score_threshold) for expected, actual in pairs])
