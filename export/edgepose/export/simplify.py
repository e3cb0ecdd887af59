"""Constant folding by onnxsim, kept only when the outputs stay the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from edgepose.compression.execution import Feeds, Outputs, outputs_of
from edgepose.compression.graph import copy
from edgepose.runtime.errors import EdgeposeError, require

RELATIVE, ABSOLUTE = 1e-4, 1e-4  # of outputs in pixels and probabilities


def simplify(model: ModelProto, feeds: Sequence[Feeds]) -> tuple[ModelProto, str]:
    """The simplified model and what happened in a few words; the given model when simplifying broke it.

    The two are compared on `feeds`.
    """
    onnxsim = require("onnxsim")
    try:
        # Its optimizer turns MatMul+Add into Reshape-Gemm-Reshape, which does not fuse in INT8.
        simplified, checked = onnxsim.simplify(copy(model), perform_optimization=False)
        if not checked:
            return model, "kept as traced: onnxsim could not check its own result"
        same = _same(outputs_of(model, feeds), outputs_of(simplified, feeds))
    except (EdgeposeError, RuntimeError, ValueError) as error:
        return model, f"kept as traced: onnxsim failed ({str(error).splitlines()[0]})"
    if not same:
        return model, "kept as traced: the simplified graph gives other outputs"
    return simplified, f"simplified from {len(model.graph.node)} to {len(simplified.graph.node)} nodes"


def _same(before: Sequence[Outputs], after: Sequence[Outputs]) -> bool:
    return all(
        one.keys() == other.keys()
        and all(np.allclose(one[name], other[name], RELATIVE, ABSOLUTE, equal_nan=False) for name in one)
        for one, other in zip(before, after, strict=True)
    )
