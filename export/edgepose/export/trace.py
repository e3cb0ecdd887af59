"""From a PyTorch network to a plain ONNX graph: opset 17, dynamic batch, nodes named like their layers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto
from onnxscript import opset18
from torch import Tensor, nn

from edgepose.compression.execution import INPUT
from edgepose.compression.graph import WEIGHTED, Graph, count_ops, drop_dead
from edgepose.compression.trainable import qdq
from edgepose.export.contract import Ports
from edgepose.export.gelu import order_gelu
from edgepose.export.opset import EXPORTED, step_down
from edgepose.export.specs import CONTRACTS
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec

BATCH = "batch"
IR_VERSION = 8  # of opset 17
WRAPPERS = ("model.", "network.")  # what stands before a weight's name in `_Named`, and in a graph of several
WEIGHT, BIAS = ".weight", ".bias"

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
    """A graph with its outputs in the order of its ports."""

    def __init__(self, model: nn.Module, ports: Ports) -> None:
        super().__init__()
        self.model = model
        self.ports = ports

    def forward(self, *feeds: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(*feeds)
        return tuple(outputs[name] for name in self.ports.outputs)


def trace(model: nn.Module, spec: Spec) -> dict[str, ModelProto]:
    """The ONNX graphs of `model` in evaluation mode, for images (batch, 3, height, width) of the spec.

    Raises EdgeposeError when the exporter cannot follow the model, or no engine takes its operators.
    """
    contract = CONTRACTS[spec.family]
    # A batch of 1 would be taken for a constant.
    known: dict[str, Tensor] = {INPUT: torch.zeros(2, 3, spec.height, spec.width)}
    made: dict[str, ModelProto] = {}
    for name, module in contract.modules(contract.prepared(model.eval())).items():
        ports = contract.ports[name]
        made[name] = _traced(_Named(module, ports).eval(), known, spec)
        if len(made) < len(contract.ports):
            with torch.no_grad():
                known |= module(*(known[port] for port in ports.inputs))
    return made


def _traced(graph: _Named, known: Mapping[str, Tensor], spec: Spec) -> ModelProto:
    example = tuple(known[name] for name in graph.ports.inputs)
    batch = {0: torch.export.Dim(BATCH, min=1, max=64)}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                opset_version=EXPORTED,
                input_names=list(graph.ports.inputs),
                output_names=list(graph.ports.outputs),
                dynamic_shapes=((batch,) * len(example),),
                custom_translation_table={qdq._opoverload: _pair},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise EdgeposeError(
                f"{spec.model}: PyTorch cannot export it to ONNX: {_first_line(error)}"
            ) from error
    assert program is not None
    return _tidied(program.model_proto, spec)


def _pair(values: Any, scale: Any, zero: Any, axis: int, lowest: int) -> Any:
    """`trainable.qdq` in ONNX's operators, whose lowest step is -128."""
    integers = opset18.QuantizeLinear(values, scale, zero, axis=axis)
    return opset18.DequantizeLinear(integers, scale, zero, axis=axis)


def _tidied(graph: ModelProto, spec: Spec) -> ModelProto:
    if any(value.type.tensor_type.shape.dim[0].dim_param != BATCH for value in graph.graph.input):
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
    _narrow_indices(graph)
    _strip(graph)
    _rename_constants(graph, _names(graph))
    _rename_constants(graph, _transposed(graph))
    order_gelu(graph)
    _name_nodes(graph)
    step_down(graph)
    drop_dead(graph)
    return graph


def _narrow_indices(graph: ModelProto) -> None:
    """Let each Gather read int32 where the model has int32, in place; the exporter casts all to int64."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.graph.value_info}
    index = Graph(graph)
    for node in index.nodes:
        cast = index.producers.get(node.input[1]) if node.op_type == "Gather" else None
        if cast is not None and cast.op_type == "Cast" and types.get(cast.input[0]) == TensorProto.INT32:
            node.input[1] = cast.input[0]


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


def _names(graph: ModelProto) -> dict[str, str]:
    """The model's own names of its weights, as its `state_dict` has them."""
    own = {}
    for tensor in graph.graph.initializer:
        name = tensor.name
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        own[tensor.name] = name
    return own


def _transposed(graph: ModelProto) -> dict[str, str]:
    """The names of weights of linear layers, which the exporter has transposed: their biases still tell.

    Equal biases, such as an untrained network's zeros, it has merged: their one name is told once.
    """
    index = Graph(graph)
    own: dict[str, str] = {}
    taken = set(index.constants)
    for node in index.nodes:
        bias = _bias(index, node) if node.op_type == "MatMul" and node.input[1] in index.constants else None
        name = "" if bias is None else bias.removesuffix(BIAS) + WEIGHT
        if name and name not in taken:
            own[node.input[1]] = name
            taken.add(name)
    return own


def _bias(index: Graph, node: NodeProto) -> str | None:
    """The constant that is added to what `node` makes, if it is called like the bias of a layer."""
    readers = index.consumers[node.output[0]]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    return next((name for name in readers[0].input if name in index.constants and name.endswith(BIAS)), None)


def _rename_constants(graph: ModelProto, names: Mapping[str, str]) -> None:
    for tensor in graph.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _name_nodes(graph: ModelProto) -> None:
    """Name weighted nodes after their layer, the others after what they make; scopes go by these names."""
    index = Graph(graph)
    used: Counter[str] = Counter()
    for node in graph.graph.node:
        weight = _weight(index, node) if node.op_type in WEIGHTED else ""
        name = weight.removesuffix(WEIGHT) or f"{node.op_type}_{node.output[0]}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}/{used[name]}"


def _weight(index: Graph, node: NodeProto) -> str:
    """The name of the weight that `node` has, be it quantized; empty for a product of two activations."""
    name = index.before_pair(node.input[1]) or node.input[1]
    return name if name in index.constants and name.endswith(WEIGHT) else ""


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
