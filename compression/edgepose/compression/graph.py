"""A small index of an ONNX graph: who makes a tensor, who reads it, which values are constant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgepose.runtime.errors import EdgeposeError

Array = npt.NDArray[Any]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul"}
)  # input 0 is the activation, input 1 the weight


class Graph:
    """An index of `model.graph`. It is a snapshot: build it again after the graph was changed."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self.named: dict[str, NodeProto] = {node.name: node for node in self.nodes}
        self.producers: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in dict.fromkeys(node.input):  # once, also when a node reads a tensor twice
                self.consumers[name].append(node)
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                self.constants[node.output[0]] = value

    def value(self, name: str) -> Array | None:
        """The constant called `name`, or None when it is computed or absent."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def constant(self, name: str) -> Array:
        """The constant called `name`, which has to be one."""
        value = self.value(name)
        assert value is not None, f"{name}: computed"
        return value

    def before_pair(self, tensor: str) -> str | None:
        """The tensor that enters the Q/DQ pair whose output is `tensor`; None when no pair makes it."""
        dequantize = self.producers.get(tensor)
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            return None
        quantize = self.producers.get(dequantize.input[0])
        return quantize.input[0] if quantize is not None and quantize.op_type == QUANTIZE else None

    def read_only_by(self, tensor: str, node: NodeProto) -> bool:
        """Whether `node` is the only reader of `tensor`, and it is no graph output."""
        return tensor not in self.outputs and all(reader is node for reader in self.consumers[tensor])

    def after(self, nodes: Iterable[NodeProto], until: Collection[str] = ()) -> Iterator[NodeProto]:
        """The nodes that depend on the given ones; these themselves only where they depend on one another.

        Nodes of the operators `until` are not among them, nor what depends on the given ones through those.
        """
        seen: set[int] = set()
        pending = list(nodes)
        while pending:
            for output in pending.pop().output:
                for reader in self.consumers[output]:
                    if id(reader) not in seen and reader.op_type not in until:
                        seen.add(id(reader))
                        pending.append(reader)
                        yield reader


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute, or `default`."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default


def along_axis(scale: Array, node: NodeProto, dims: int) -> Array:
    """The scale of a Q or DQ node, shaped to multiply the tensor of `dims` dimensions that it is about."""
    axis = attribute(node, "axis", 1) % dims if dims else 0
    return scale.reshape([-1 if i == axis else 1 for i in range(dims)] if scale.size > 1 else [])


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that the model asks for; 0 when it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def copy(model: ModelProto) -> ModelProto:
    """A deep copy."""
    duplicate = ModelProto()
    duplicate.CopyFrom(model)
    return duplicate


def count_ops(model: ModelProto) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(node.op_type for node in model.graph.node)


def drop_dead(model: ModelProto) -> None:
    """Remove, in place, the nodes and constants that no output depends on."""
    graph = Graph(model)
    live: set[int] = set()
    pending = list(graph.outputs)
    while pending:
        node = graph.producers.get(pending.pop())
        if node is not None and id(node) not in live:
            live.add(id(node))
            pending.extend(node.input)
    kept = [node for node in graph.nodes if id(node) in live]
    used = {name for node in kept for name in node.input} | set(graph.outputs)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)


def place_of(model: ModelProto, node: NodeProto) -> int:
    """Where among the model's nodes this one stands."""
    return next(index for index, other in enumerate(model.graph.node) if other is node)


def floats_of(inputs: Sequence[str], output: str, axis: int = 1) -> NodeProto:
    """What makes floats `output` of the bytes, scale and zero point `inputs`."""
    return onnx.helper.make_node(DEQUANTIZE, list(inputs), [output], f"{output}/Dequantize", axis=axis)


def set_constant(model: ModelProto, name: str, value: npt.ArrayLike) -> str:
    """Add an initializer, or give the one of that name another value; returns the name."""
    tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
    for existing in model.graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return name
    model.graph.initializer.append(tensor)
    return name


def load_onnx(path: Path) -> ModelProto:
    """The model in an ONNX file.

    Raises EdgeposeError when it is missing, truncated, no ONNX file or not what onnx calls a model.
    """
    try:
        content = path.read_bytes()
    except IsADirectoryError as error:
        raise EdgeposeError(f"{path}: a folder; name the ONNX model in it") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EdgeposeError(f"{path}: no such file (an ONNX model was expected)") from error
    model = ModelProto()
    try:
        model.ParseFromString(content)
        if not model.graph.node:
            raise ValueError("it holds no graph")
    except Exception as error:  # protobuf's own have no common base
        raise EdgeposeError(
            f"{path}: not an ONNX model, or truncated ({_reason(error)}); export or copy it again"
        ) from error
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except Exception as error:  # of the checker, of the file system, of protobuf for more than 2 GB
        raise EdgeposeError(f"{path}: onnx refuses the model ({_reason(error)}); export it again") from error
    return model


def _reason(error: Exception) -> str:
    """The first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
