"""Which file and which flags make an engine of a precision, per release; the ladder down when one fails.

Enum integers move from release to release (REFIT 5, then 4; STRONGLY_TYPED 1, then 0), so names are asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgepose.runtime.errors import EdgeposeError

Typing = Literal["strong", "weak"]

LADDER = ("int8", "fp16", "fp32")  # an engine that fails gives way to the next; after the last, ONNX Runtime

# The view whose recorded answers an engine of the precision is held against, however it was made.
ANSWERS = {"int8": "int8.trt", "fp16": "fp16", "fp32": "fp32"}
NO_ENGINE = "cpu"  # chosen where no engine passed: ONNX Runtime


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to an engine of a precision."""

    precision: str  # of LADDER
    typing: Typing  # strong: the file's own types decide; weak: builder flags do
    view: str  # the bundle's file, as in `pose.<view>.onnx`
    flags: tuple[str, ...] = ()  # names of trt.BuilderFlag


# 8.x knows weak typing only, 11.x strong typing only, 10.x both.
_ATTEMPTS = {
    ("int8", "strong"): Attempt("int8", "strong", "int8.trt-typed"),
    ("fp16", "strong"): Attempt("fp16", "strong", "fp16"),
    ("fp32", "strong"): Attempt("fp32", "strong", "fp32"),
    ("int8", "weak"): Attempt("int8", "weak", "int8.trt", ("INT8", "FP16")),
    ("fp16", "weak"): Attempt("fp16", "weak", "fp32", ("FP16",)),
    ("fp32", "weak"): Attempt("fp32", "weak", "fp32"),
}


def typings() -> tuple[Typing, ...]:
    """How this TensorRT can be told the precision, the better way first."""
    import tensorrt as trt

    strong: tuple[Typing, ...] = (
        ("strong",) if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else ()
    )
    weak: tuple[Typing, ...] = ("weak",) if hasattr(trt.BuilderFlag, "INT8") else ()
    return strong + weak


def attempts(precision: str, ways: tuple[Typing, ...]) -> list[Attempt]:
    """What to try for one precision, in order."""
    return [_ATTEMPTS[precision, typing] for typing in ways]


def rungs(precision: str) -> tuple[str, ...]:
    """`precision` and what it gives way to. Raises EdgeposeError for an unknown one."""
    if precision not in LADDER:
        raise EdgeposeError(f"precision {precision!r}: choose one of {', '.join(LADDER)}")
    return LADDER[LADDER.index(precision) :]


def network_flags(typing: Typing) -> int:
    """The bits for `create_network`: explicit batch where it still has to be asked for."""
    import tensorrt as trt

    wanted = {"EXPLICIT_BATCH", *({"STRONGLY_TYPED"} if typing == "strong" else ())}
    present = [getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in wanted]
    return sum(1 << int(flag) for flag in present if flag is not None)


# trt.nptype fails on 8.5 with NumPy 1.24 and later.
_NUMPY: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


def numpy_type(name: str) -> npt.DTypeLike:
    """The NumPy type of a trt.DataType by its name. Raises EdgeposeError when there is none."""
    if name not in _NUMPY:
        raise EdgeposeError(
            f"the engine has a tensor of type {name}, which NumPy lacks; export the bundle again"
        )
    return _NUMPY[name]
