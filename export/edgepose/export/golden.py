"""Golden vectors: a few pictures and what each view answered here, to be reproduced elsewhere."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from edgepose.export.execution import Difference, Outputs, difference, largest, outputs_of
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.spec import Spec

FILE = "golden.npz"

# How far another machine may be from the outputs recorded here. FP32 differs by the order of sums; INT8 by
# kernels that saturate earlier (AVX2 without VNNI), and then by what that does to the rounding behind.
TOLERANCES = {
    "fp32": Difference(score=1e-3, keypoint_px=0.05, confidence=1e-3),
    "fp16": Difference(score=2e-2, keypoint_px=1.0, confidence=2e-2),
    "int8.ort": Difference(score=5e-2, keypoint_px=2.0, confidence=5e-2),
    "int8.trt": Difference(score=5e-2, keypoint_px=2.0, confidence=5e-2),
    "int8.trt-typed": Difference(score=5e-2, keypoint_px=2.0, confidence=5e-2),
}


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Recorded inputs and outputs. `expected` maps a view's name (`pose.fp32`) to the outputs per picture."""

    frames: U8  # (F, height, width, 3) BGR of the network's size
    expected: dict[str, list[Outputs]]


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


def read(bundle: Bundle) -> Golden:
    """The golden vectors of an opened bundle. Raises EdgeposeError when it has none."""
    if FILE not in bundle.files:
        raise EdgeposeError(f"{bundle.path}: has no {FILE}; export it again")
    expected: dict[str, list[Outputs]] = {}
    with np.load(bundle.folder / FILE) as arrays:
        frames = np.asarray(arrays["frames"], np.uint8)
        for key in arrays.files:
            view, _, name = key.partition("/")
            if name:
                answers = expected.setdefault(view, [{} for _ in frames])
                for answer, array in zip(answers, arrays[key], strict=True):
                    answer[name] = array[None]
    return Golden(frames, expected)


def deviation(golden: Golden, view: str, model: ModelProto, spec: Spec) -> Difference:
    """How far `model` is here from what was recorded for `view`."""
    answers = _answers(view, model, [normalise(frame, spec) for frame in golden.frames])
    pairs = zip(golden.expected[view], answers, strict=True)
    return largest([difference(expected, actual, spec.score_threshold) for expected, actual in pairs])
