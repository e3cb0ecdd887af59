"""From opset 18, the oldest that PyTorch's exporter writes, to 17, the newest that TensorRT 8.6 reads."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import ModelProto, NodeProto, helper

from edgepose.compression.graph import Graph, attribute, opset
from edgepose.runtime.errors import EdgeposeError

EXPORTED, WANTED = 18, 17

# These took their axes as an attribute until opset 17 (ReduceSum takes an input since 13).
_REDUCTIONS = frozenset(
    {"ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2"}
    | {"ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"}
)
# Attributes that came with opset 18, and the value that means what 17 did.
_ADDED: dict[str, dict[str, Any]] = {
    "Split": {"num_outputs": None},  # 17 makes equal parts, one per output; shape inference refuses others
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "LpPool": {"ceil_mode": 0},
    **{op: {"noop_with_empty_axes": 0} for op in _REDUCTIONS},
}


def step_down(model: ModelProto) -> None:
    """Rewrite, in place, an opset 18 model into opset 17. Raises EdgeposeError when an operator resists.

    ONNX's own converter knows no ReduceMean and leaves Split in a form that its checker refuses.
    """
    assert opset(model) == EXPORTED
    graph = Graph(model)
    for node in graph.nodes:
        _drop_added(node)
        if node.op_type in _REDUCTIONS and len(node.input) > 1:
            _axes_to_attribute(graph, node)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = WANTED
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EdgeposeError(
            f"the graph cannot be written for opset {WANTED}, the newest of TensorRT 8.6 ({reason}); "
            "replace that operator in the model"
        ) from error


def _drop_added(node: NodeProto) -> None:
    added = _ADDED.get(node.op_type, {})
    kept = [
        entry
        for entry in node.attribute
        if entry.name not in added or added[entry.name] not in (None, helper.get_attribute_value(entry))
    ]
    del node.attribute[:]
    node.attribute.extend(kept)


def _axes_to_attribute(graph: Graph, node: NodeProto) -> None:
    axes = graph.value(node.input[1])
    if axes is None or attribute(node, "axes") is not None:
        raise EdgeposeError(f"{node.name or node.op_type}: its axes are computed; fix them in the model")
    node.attribute.append(helper.make_attribute("axes", axes.tolist()))
    del node.input[1:]
