"""Which nodes of a graph stay in floating point, found by rules, each with its reason."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from onnx import ModelProto, NodeProto

from edgepose.compression.graph import DEQUANTIZE, WEIGHTED, Graph
from edgepose.compression.scopes import FLOAT_SCOPES, Scope
from edgepose.runtime.errors import EdgeposeError

SMALLEST_GEMM = 16  # INT8 kernels need K and N of 16 or more (ModelOpt 0.47 leaves smaller ones out)
# Products an output, below which a convolution of the picture is faster in float: 27 take 1.2 to 1.7 times as
# long in INT8 on ONNX Runtime (3x3 of three colours), 48 and 147 take 0.9 times.
SMALLEST_SUM = 32
_CONV_LIKE = frozenset(
    {"BatchNormalization", "Relu", "Clip", "LeakyRelu", "Resize", "MaxPool", "Add", "Identity"}
)
# What `Scope.until` says, in operators.
_ENDS: dict[str | None, frozenset[str]] = {
    None: frozenset(),
    "layers": WEIGHTED,
    "convolutions": frozenset({"Conv"}),
}
_REACH = 4  # nodes to look back for a convolution; a residual block needs three


def float_plan(model: ModelProto, family: str) -> dict[str, str]:
    """Node name -> why it stays float. Every node must have a name (`trace` sees to it).

    The rules are about what TensorRT runs slowly or wrongly in INT8, the scopes about a family's accuracy.
    """
    graph = Graph(model)
    plan = {node.name: reason for node in graph.nodes if (reason := _rule(graph, node)) is not None}
    return plan | dict(_scoped(graph, family))


def float_tail(model: ModelProto, family: str) -> set[str]:
    """Names of the nodes behind the family's scopes: coordinates and scores, which half precision blurs."""
    graph = Graph(model)
    scopes = (scope for scope in FLOAT_SCOPES[family] if scope.downstream and not scope.half)
    return {node.name for scope in scopes for node in _behind(graph, scope)}


def kept_float(names: Iterable[str], keep: Mapping[str, str]) -> dict[str, str]:
    """Those of the names that a pattern of `keep` matches -> its reason.

    A pattern is a layer's name or a part of the path to it (`backbone.stage4`), `*` standing for anything.
    """
    return {
        name: reason
        for name in names
        for pattern, reason in keep.items()
        if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    }


def require_matches(models: Iterable[ModelProto], patterns: Iterable[str]) -> None:
    """Raises EdgeposeError naming the nearest layers when a pattern matches no node of any of the graphs."""
    nodes = [node for model in models for node in model.graph.node]
    for pattern in patterns:
        if not kept_float((node.name for node in nodes), {pattern: ""}):
            layers = [node.name for node in nodes if node.op_type in WEIGHTED]
            near = difflib.get_close_matches(pattern, layers, cutoff=0.0)
            raise EdgeposeError(
                f"--keep-float {pattern}: matches no layer; the nearest are {', '.join(near)}"
            )


def _scoped(graph: Graph, family: str) -> Iterator[tuple[str, str]]:
    for scope in reversed(FLOAT_SCOPES[family]):  # the first scope has the last word
        if scope.downstream:
            yield from ((node.name, f"computed from {scope.what}") for node in _behind(graph, scope))
    for scope in FLOAT_SCOPES[family]:
        yield from ((node.name, scope.reason) for node in graph.nodes if scope.matches(node.name))


def _behind(graph: Graph, scope: Scope) -> Iterator[NodeProto]:
    named = (node for node in graph.nodes if scope.matches(node.name))
    return graph.after(named, _ENDS[scope.until])


def _rule(graph: Graph, node: NodeProto) -> str | None:
    if node.op_type == "ConvTranspose":
        return "deconvolution: INT8 kernels take no per-output-channel scales (TensorRT#1694)"
    if node.op_type in ("MatMul", "Gemm"):
        return _gemm_rule(graph, node)
    if node.op_type == "Conv" and _is_small_stem(graph, node):
        return f"fewer than {SMALLEST_SUM} products of pixels an output fill no INT8 kernel"
    if node.op_type == "Add" and not any(
        name in graph.constants or _from_conv(graph, name, _REACH) for name in node.input
    ):
        return "Add outside the convolutional part: 8 bits blur coordinates and residual streams"
    return None


def _is_small_stem(graph: Graph, node: NodeProto) -> bool:
    weight = graph.value(node.input[1])
    return node.input[0] in graph.inputs and weight is not None and weight[0].size < SMALLEST_SUM


def _gemm_rule(graph: Graph, node: NodeProto) -> str | None:
    weight = graph.value(node.input[1])
    if weight is None:
        return "product of two activations (attention, dynamic convolution)"
    if weight.ndim > 2:
        return "batched constant product: ONNX Runtime takes no per-channel scales for it"
    if min(weight.shape) < SMALLEST_GEMM:
        return f"matrix dimension below {SMALLEST_GEMM}"
    return None


def _from_conv(graph: Graph, tensor: str, reach: int) -> bool:
    node = graph.producers.get(tensor)
    if node is None or reach < 0:
        return False
    if node.op_type == "Conv":
        return True
    return node.op_type in _CONV_LIKE and any(_from_conv(graph, name, reach - 1) for name in node.input)


def quantized_despite_plan(model: ModelProto, plan: dict[str, str]) -> list[str]:
    """Planned-float nodes of a quantized model that read a dequantized value: none, if the plan was kept."""
    graph = Graph(model)
    return [
        node.name
        for node in graph.nodes
        if node.name in plan
        for name in node.input
        if (maker := graph.producers.get(name)) is not None and maker.op_type == DEQUANTIZE
    ]
