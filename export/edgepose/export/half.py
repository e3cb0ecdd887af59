"""Half precision written into the graph's types, as strongly typed TensorRT demands it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from edgepose.compression.graph import (
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    Array,
    Graph,
    along_axis,
    count_ops,
    drop_dead,
    opset,
)
from edgepose.runtime.errors import EdgeposeError

TYPED_OPSET, TYPED_IR = 19, 9  # half scales exist from opset 19 on; a model without any stays
# In half these overflow, lose coordinates or change order.
FLOAT_OPS = frozenset(
    {"RoiAlign", "GridSample", "TopK", "Exp", "Pow", "ReduceSum", "CumSum", "Range", "ConstantOfShape"}
)
# These hand values on unchanged, so they take the type that comes in: no large map is converted for them.
MOVES = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "GatherElements"}
    | {"Concat", "Expand", "Tile", "Identity", "MaxPool", "Resize"}
)
_FLOAT_INPUTS = {"Resize": (2,)}  # its scales are float32 whatever the picture is
_LARGEST = float(np.finfo(np.float16).max)
_TINY = float(np.finfo(np.float16).tiny)  # below it half precision loses digits


def half_typed(model: ModelProto, keep_float: Collection[str] = ()) -> ModelProto:
    """The model with half tensors, scales included, but for FLOAT_OPS and the nodes named in `keep_float`.

    Graph inputs and outputs stay float32. Raises EdgeposeError when a constant does not fit half precision.
    """
    if opset(model) < TYPED_OPSET and QUANTIZE in count_ops(model):
        model = version_converter.convert_version(model, TYPED_OPSET)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return _Retyping(model, keep_float).result()


class _Retyping:
    """One pass over a sorted graph. Every float tensor has a home type; a Cast makes the other one, once."""

    def __init__(self, model: ModelProto, keep_float: Collection[str]) -> None:
        self._model, self._graph, self._keep = model, Graph(model), keep_float
        values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self._float = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._constants = {n: t for n, t in self._graph.constants.items() if t.data_type == TensorProto.FLOAT}
        self._home: dict[str, int] = dict.fromkeys(self._graph.inputs, TensorProto.FLOAT)
        self._told = set(self._graph.inputs)  # tensors that the pictures or the layers tell
        self._names: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []
        self._new: dict[str, TensorProto] = {}

    def result(self) -> ModelProto:
        for node in self._graph.nodes:
            self._add(node)
        graph = self._model.graph
        initializers = [*graph.initializer, *self._new.values()]
        made = helper.make_graph(self._nodes, graph.name, graph.input, graph.output, initializers)
        ir = TYPED_IR if opset(self._model) >= TYPED_OPSET else self._model.ir_version
        model = helper.make_model(made, opset_imports=self._model.opset_import, ir_version=ir)
        model.producer_name, model.producer_version = self._model.producer_name, self._model.producer_version
        model.metadata_props.extend(self._model.metadata_props)
        drop_dead(model)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _add(self, node: NodeProto) -> None:
        if node.op_type == "Constant":
            self._nodes.append(node)
            return
        kind = self._type_for(node)
        new = NodeProto()
        new.CopyFrom(node)
        fixed = _FLOAT_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            new.input[index] = self._input(node, name, TensorProto.FLOAT if index in fixed else kind)
        self._nodes.append(new)
        for index, name in enumerate(node.output):
            if name in self._float:
                self._home[name] = kind
                if (
                    kind == TensorProto.FLOAT16 and name in self._graph.outputs
                ):  # outputs keep their name for float32
                    new.output[index] = self._names[name, kind] = f"{name}/half"
                    self._nodes.append(_cast(new.output[index], name, TensorProto.FLOAT))
                    self._names[name, TensorProto.FLOAT] = name

    def _type_for(self, node: NodeProto) -> int:
        told = node.op_type != "Shape" and any(name in self._told for name in node.input)
        if told or node.op_type in WEIGHTED:
            self._told.update(node.output)
        elif node.op_type not in (*MOVES, QUANTIZE, DEQUANTIZE):
            return TensorProto.FLOAT  # arithmetic on constants: the places that everything starts from
        if node.op_type in FLOAT_OPS or node.name in self._keep or node.op_type == "Cast":
            return TensorProto.FLOAT  # a Cast makes floats of integers: indices beyond 2048 do not fit half
        if node.op_type in MOVES and any(self._home.get(name) == TensorProto.FLOAT for name in node.input):
            return TensorProto.FLOAT
        return TensorProto.FLOAT16

    def _input(self, node: NodeProto, name: str, kind: int) -> str:
        if name in self._constants:
            return name if kind == TensorProto.FLOAT else self._half_constant(node, name)
        home = self._home.get(name)
        if home is None:  # an integer, or an optional input left out
            return name
        if home == kind:
            return self._names.get((name, kind), name)
        if (name, kind) not in self._names:
            made = f"{name}/{'half' if kind == TensorProto.FLOAT16 else 'float'}"
            self._nodes.append(_cast(self._names.get((name, home), name), made, kind))
            self._names[name, kind] = made
        return self._names[name, kind]

    def _half_constant(self, node: NodeProto, name: str) -> str:
        made = f"{name}/half"
        if made not in self._new:
            value = numpy_helper.to_array(self._constants[name])
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                value = self._scale(node, name, value)
            largest = np.abs(value).max(initial=0)
            if not largest <= _LARGEST:
                raise EdgeposeError(f"{name}: its values reach {largest:g}, beyond half precision")
            self._new[made] = numpy_helper.from_array(value.astype(np.float16), made)
        return made

    def _scale(self, node: NodeProto, name: str, scale: Array) -> Array:
        """Scales that half can hold: a weight's integers are made anew where its scale has to grow."""
        if (scale >= _TINY).all():
            return scale
        integers = self._graph.value(node.input[0])
        if node.op_type == QUANTIZE or integers is None:
            raise EdgeposeError(
                f"{name}: an activation's scale of {scale.min():g} does not fit half precision"
            )
        grown: Array = np.maximum(scale, _TINY)
        again = np.rint(integers * along_axis(scale / grown, node, integers.ndim)).astype(np.int8)
        for tensor in self._model.graph.initializer:
            if tensor.name == node.input[0]:
                tensor.CopyFrom(numpy_helper.from_array(again, tensor.name))
        return grown


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], f"Cast_{target}", to=kind)
