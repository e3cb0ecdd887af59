"""Golden vectors: a few pictures and what each view answered here, to be reproduced elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from edgepose.compression.execution import INPUT, Outputs, feeds_of, outputs_of
from edgepose.compression.graph import Array
from edgepose.export.contract import Difference, largest
from edgepose.export.specs import CONTRACTS
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.spec import Spec

FILE = "golden.npz"
REFERENCE = "fp32"  # the view whose outputs later graphs read, in every view of theirs


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Recorded inputs and outputs. `expected` maps a view's name (`pose.fp32`) to the outputs per picture."""

    frames: U8  # (F, height, width, 3) BGR of the network's size
    expected: dict[str, list[Outputs]]


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
    feeds = [feeds_of(model, known) for known in _known(recorded, spec)]
    return outputs_of(model, feeds, optimised="int8.trt" not in view)


def _known(recorded: Golden, spec: Spec) -> list[dict[str, Array]]:
    """For each picture its input and what the FP32 views made of it, by name."""
    known: list[dict[str, Array]] = [{INPUT: normalise(frame, spec)} for frame in recorded.frames]
    for view, answers in recorded.expected.items():
        if view.partition(".")[2] == REFERENCE:
            for one, outputs in zip(known, answers, strict=True):
                one |= outputs
    return known


def to_bytes(golden: Golden) -> bytes:
    """The npz file: `frames`, and `<view>/<output>` (F, ...) for each view."""
    arrays: dict[str, Array] = {"frames": golden.frames}
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
    return apart(golden.expected[view], _answers(golden, view, model, spec), spec)


def apart(expected: Sequence[Outputs], actual: Sequence[Outputs], spec: Spec) -> Difference:
    """The largest differences over some pictures, as the family measures them."""
    measure = CONTRACTS[spec.family].difference
    return largest([measure(one, other, spec) for one, other in zip(expected, actual, strict=True)])


def limit(view: str, spec: Spec) -> Difference:
    """How far another machine may be from what was recorded for `view` (`pose.fp32`)."""
    return CONTRACTS[spec.family].views[view.partition(".")[2]]
