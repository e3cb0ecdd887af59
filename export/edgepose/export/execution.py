"""Running a model that is still in memory."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from edgepose.runtime.backend_onnxruntime import session_options
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.runtime.golden import Outputs
from edgepose.runtime.poses import F32


def outputs_of(model: ModelProto, images: Sequence[F32], *, optimised: bool = True) -> list[Outputs]:
    """Outputs of each (1, 3, H, W) input on ONNX Runtime's CPU, one thread.

    `optimised` False runs node by node, as the file is written. Raises EdgeposeError when it cannot be run.
    """
    ort = require("onnxruntime")
    options = session_options(threads=1)
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(None, {feed: image}), strict=True)) for image in images]
    except Exception as error:  # onnxruntime's own exceptions have no common base but this
        raise EdgeposeError(f"ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}") from error
