"""From a PyTorch network to a plain ONNX graph: opset 17, dynamic batch, nodes named like their layers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

import torch
from onnx import ModelProto
from torch import Tensor, nn

from edgepose.compression.graph import WEIGHTED, count_ops, drop_dead
from edgepose.export.opset import EXPORTED, step_down
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec

INPUT, BATCH = "images", "batch"
OUTPUTS = ("scores", "boxes", "keypoints", "keypoint_scores")
IR_VERSION = 8  # of opset 17

# Data-dependent shapes and control flow: no static engine can be built of them (DESIGN.md section 4).
FORBIDDEN = frozenset(
    {
        "NonZero",
        "If",
        "Loop",
        "Scan",
        "NonMaxSuppression",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "Unique",
    }
)


class _Named(nn.Module):
    """The network with its outputs in the order of OUTPUTS."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(images)
        return tuple(outputs[name] for name in OUTPUTS)


def trace(model: nn.Module, spec: Spec) -> ModelProto:
    """The ONNX graph of `model` in evaluation mode, for images (batch, 3, height, width) of the spec.

    Raises EdgeposeError when the exporter cannot follow the model, or no engine takes its operators.
    """
    example = torch.zeros(2, 3, spec.height, spec.width)  # a batch of 1 would be taken for a constant
    batch = torch.export.Dim(BATCH, min=1, max=64)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _Named(model.eval()).eval(),
                (example,),
                dynamo=True,
                opset_version=EXPORTED,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise EdgeposeError(
                f"{spec.model}: PyTorch cannot export it to ONNX: {_first_line(error)}"
            ) from error
    assert program is not None
    return _tidied(program.model_proto, spec)


def _tidied(graph: ModelProto, spec: Spec) -> ModelProto:
    if graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param != BATCH:
        raise EdgeposeError(
            f"{spec.model}: its batch size became a constant on the way to ONNX; "
            "look for `len(tensor)` and `int(tensor.shape[0])` in the model, and use `tensor.shape[0]`"
        )
    found = FORBIDDEN & count_ops(graph).keys()
    if found:
        raise EdgeposeError(
            f"{spec.model}: its graph holds {', '.join(sorted(found))}, which has no static shape; "
            "use top-k and gathers instead"
        )
    _strip(graph)
    _rename_constants(graph)
    _name_nodes(graph)
    step_down(graph)
    drop_dead(graph)
    return graph


def _strip(graph: ModelProto) -> None:
    """Remove, in place, what the exporter adds for debugging: stack traces with this machine's paths."""
    graph.ir_version = IR_VERSION
    graph.producer_name, graph.producer_version = "edgepose", version("edgepose")
    graph.doc_string = graph.graph.doc_string = ""
    del graph.metadata_props[:], graph.graph.metadata_props[:], graph.graph.value_info[:], graph.functions[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


def _rename_constants(graph: ModelProto) -> None:
    """Call every weight as the model's own `state_dict` does."""
    for tensor in graph.graph.initializer:
        tensor.name = tensor.name.removeprefix("model.")
    for node in graph.graph.node:
        node.input[:] = [name.removeprefix("model.") for name in node.input]


def _name_nodes(graph: ModelProto) -> None:
    """Name weighted nodes after their layer, the others after what they make; scopes go by these names."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    used: Counter[str] = Counter()
    for node in graph.graph.node:
        layer = node.op_type in WEIGHTED and node.input[1] in weights and node.input[1].endswith(".weight")
        name = node.input[1].removesuffix(".weight") if layer else f"{node.op_type}_{node.output[0]}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}/{used[name]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks about deprecations and missing libraries, on stdout too; its errors still arrive."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
