"""Whether TensorRT will take an ONNX file and run its INT8 fast: rules in one table, each with its source.

Read from headers, parser sources and issues; not checked against a TensorRT parser yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgepose.compression.graph import DEQUANTIZE, QUANTIZE, Array, Graph, attribute, opset
from edgepose.export.trace import FORBIDDEN
from edgepose.export.views import conv_side
from edgepose.runtime.errors import EdgeposeError

Severity = Literal["error", "slow"]

# Newest opset each release was read to accept: onnx-tensorrt docs/operators.md of 8.6-GA and 10.1-GA.
NEWEST_OPSET = {"8.6": 17, "10.3": 20, "11.1": 20}
_LARGEST_TOP_K = 3840
_INTEGER_OPS = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})


class Subject(NamedTuple):
    """What a rule looks at."""

    graph: Graph
    opset: int
    trt: str  # release, a key of NEWEST_OPSET


Found = Iterator[tuple[str, str]]  # where, what


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing TensorRT demands."""

    number: str
    severity: Severity
    text: str
    source: str
    check: Callable[[Subject], Found]


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a rule is broken."""

    rule: str
    severity: Severity
    where: str  # node or tensor
    what: str

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def lint(model: ModelProto, trt: str = "10.3") -> list[Finding]:
    """All that stands against building an engine with TensorRT `trt` (8.6, 10.3 or 11.1), worst first."""
    if trt not in NEWEST_OPSET:
        raise EdgeposeError(f"TensorRT {trt!r}: the rules are known for {', '.join(NEWEST_OPSET)}")
    subject = Subject(Graph(model), opset(model), trt)
    found = [Finding(r.number, r.severity, where, what) for r in RULES for where, what in r.check(subject)]
    return sorted(found, key=lambda finding: finding.severity)


def errors(findings: list[Finding]) -> list[Finding]:
    """The findings that keep TensorRT from building the engine."""
    return [finding for finding in findings if finding.severity == "error"]


def _pairs(subject: Subject) -> list[NodeProto]:
    return [node for node in subject.graph.nodes if node.op_type in (QUANTIZE, DEQUANTIZE)]


def _zero(subject: Subject, node: NodeProto) -> Array | None:
    return subject.graph.value(node.input[2]) if len(node.input) > 2 else None


def _type_is_int8(subject: Subject) -> Found:
    for node in _pairs(subject):
        zero = _zero(subject, node)
        if zero is not None and zero.dtype != np.int8:
            yield node.name, f"{zero.dtype} zero point, must be int8"


def _zero_point_is_given(subject: Subject) -> Found:
    for node in _pairs(subject):
        if len(node.input) < 3 or not node.input[2]:
            yield node.name, "no zero point: ONNX then means uint8, TensorRT int8"
        elif _zero(subject, node) is None:
            yield node.name, "its zero point is computed, must be constant"


def _zero_point_is_zero(subject: Subject) -> Found:
    for node in _pairs(subject):
        zero = _zero(subject, node)
        if zero is not None and zero.any():
            yield (
                node.name,
                f"zero point {int(zero.reshape(-1)[np.flatnonzero(zero)[0]])}, must be 0 (symmetric)",
            )


def _scale_is_positive(subject: Subject) -> Found:
    for node in _pairs(subject):
        scale = subject.graph.value(node.input[1])
        if scale is None:
            yield node.name, "its scale is computed, must be constant"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield (
                node.name,
                f"scale {float(np.asarray(scale, np.float64).min()):g}, must be finite and above 0",
            )


def _counts_agree(subject: Subject) -> Found:
    for node in _pairs(subject):
        scale, zero = subject.graph.value(node.input[1]), _zero(subject, node)
        if scale is not None and zero is not None and scale.size != zero.size:
            yield node.name, f"{scale.size} scales but {zero.size} zero points"


def _is_weight(subject: Subject, node: NodeProto) -> bool:
    """Whether a Q or DQ works on a constant, directly or through its Q."""
    source = node.input[0]
    if node.op_type == DEQUANTIZE and (maker := subject.graph.producers.get(source)) is not None:
        source = maker.input[0] if maker.op_type == QUANTIZE else source
    return source in subject.graph.constants


def _activations_per_tensor(subject: Subject) -> Found:
    for node in _pairs(subject):
        scale = subject.graph.value(node.input[1])
        if not _is_weight(subject, node) and scale is not None and scale.size != 1:
            yield node.name, f"{scale.size} scales on an activation, must be one"


def _weight_axis(subject: Subject) -> Found:
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
            continue
        dequantize = graph.producers.get(node.input[1])
        if dequantize is None or dequantize.op_type != DEQUANTIZE or not _is_weight(subject, dequantize):
            continue
        scale = graph.value(dequantize.input[1])
        if scale is None or scale.size == 1:
            continue
        rank, width = _weight_shape(subject, dequantize, node)
        axis = attribute(dequantize, "axis", 1) % rank
        expected = output_axis(node, rank)
        if axis != expected or scale.size != width:
            found = f"{scale.size} weight scales on axis {axis}"
            yield node.name, f"{found}, must be {width} on axis {expected} (output channels)"


def _weight_shape(subject: Subject, dequantize: NodeProto, node: NodeProto) -> tuple[int, int]:
    source = dequantize.input[0]
    if source not in subject.graph.constants:
        source = subject.graph.producers[source].input[0]
    dims = subject.graph.constants[source].dims
    return len(dims), dims[output_axis(node, len(dims))]


def output_axis(node: NodeProto, rank: int) -> int:
    """Of a Conv's, Gemm's or MatMul's weight with `rank` dimensions."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return rank - 1


def _bias_is_float(subject: Subject) -> Found:
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type in _BIASED and len(node.input) > 2:
            maker = graph.producers.get(node.input[2])
            if maker is not None and maker.op_type == DEQUANTIZE:
                yield node.name, "its bias is quantized, must be float"


def _no_integer_operators(subject: Subject) -> Found:
    for node in subject.graph.nodes:
        if node.op_type in _INTEGER_OPS or (node.op_type.startswith("QLinear") and node.op_type != QUANTIZE):
            yield node.name or node.op_type, f"{node.op_type}, must be Q/DQ around a float operator"


def _standard_operators_only(subject: Subject) -> Found:
    for node in subject.graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield node.name or node.op_type, f"{node.domain}::{node.op_type} is no standard operator"


def _opset_is_known(subject: Subject) -> Found:
    newest = NEWEST_OPSET[subject.trt]
    if subject.opset > newest:
        yield "opset", f"opset {subject.opset}, TensorRT {subject.trt} reads up to {newest}"


def _shapes_are_static(subject: Subject) -> Found:
    for node in subject.graph.nodes:
        if node.op_type in FORBIDDEN:
            yield node.name or node.op_type, f"{node.op_type} has a shape or flow that depends on data"


def _top_k_is_constant(subject: Subject) -> Found:
    for node in subject.graph.nodes:
        if node.op_type == "TopK":
            count = subject.graph.value(node.input[1])
            if count is None:
                yield node.name, "its K is computed, must be constant"
            elif int(count.reshape(-1)[0]) > _LARGEST_TOP_K:
                yield node.name, f"K is {int(count.reshape(-1)[0])}, must be at most {_LARGEST_TOP_K}"


def _weights_are_float(subject: Subject) -> Found:
    if not subject.trt.startswith("8."):
        return
    for node in subject.graph.nodes:
        if node.op_type == DEQUANTIZE and node.input[0] in subject.graph.constants:
            yield node.name, "int8 initializer, TensorRT 8.x wants float weights with Q and DQ"


def _scales_have_the_tensors_type(subject: Subject) -> Found:
    for node in _pairs(subject):
        scale = subject.graph.constants.get(node.input[1])
        if scale is None:
            continue
        if subject.trt.startswith("8.") and scale.data_type != TensorProto.FLOAT:
            yield node.name, "half scale, TensorRT 8.x reads float32 scales only"


def _pairs_are_whole(subject: Subject) -> Found:
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type != QUANTIZE:
            continue
        readers = graph.consumers[node.output[0]]
        if node.output[0] in graph.outputs or any(reader.op_type != DEQUANTIZE for reader in readers):
            yield node.name, "its integers are read by something else than a DequantizeLinear"


def _no_pair_between_conv_and_add(subject: Subject) -> Found:
    for node in subject.graph.nodes:
        if conv_side(subject.graph, node) is not None:
            yield node.name, "Q/DQ between a convolution and the Add behind it: they cannot be fused"


def _concat_inputs_agree(subject: Subject) -> Found:
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type != "Concat":
            continue
        makers = [graph.producers.get(name) for name in node.input]
        scales = {
            None if (value := graph.value(maker.input[1])) is None else value.tobytes()
            for maker in makers
            if maker is not None and maker.op_type == DEQUANTIZE
        }
        if len(scales) > 1:
            yield node.name, "inputs with different scales: they are requantized"


def _deconvolution_is_float(subject: Subject) -> Found:
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type == "ConvTranspose" and any(
            (maker := graph.producers.get(name)) is not None and maker.op_type == DEQUANTIZE
            for name in node.input[:2]
        ):
            yield node.name, "quantized deconvolution: no INT8 kernel takes per-output-channel scales"


def _types_are_half(subject: Subject) -> Found:
    if subject.trt.startswith("11."):
        scales = [subject.graph.constants.get(node.input[1]) for node in _pairs(subject)]
        if any(scale is not None and scale.data_type == TensorProto.FLOAT for scale in scales):
            yield "graph", "float32 Q/DQ: TensorRT 11 then runs all else in float32; take the typed view"


_HEADER = "NvInfer.h, IQuantizeLayer"
_PARSER = "onnx-tensorrt ModelImporter and QuantDequantLinearHelper"

RULES: tuple[Rule, ...] = (
    Rule("Q01", "error", "quantized type is int8", _PARSER, _type_is_int8),
    Rule("Q02", "error", "zero point is present and constant", f"{_PARSER}, 8.6-GA", _zero_point_is_given),
    Rule("Q03", "error", "zero point is 0", f"{_HEADER}: symmetric only", _zero_point_is_zero),
    Rule("Q04", "error", "scales are constant, finite, above 0", _HEADER, _scale_is_positive),
    Rule("Q05", "error", "as many scales as zero points", _PARSER, _counts_agree),
    Rule("Q06", "error", "activations have one scale", _HEADER, _activations_per_tensor),
    Rule("Q07", "error", "weight scales lie on the output channels", f"{_PARSER}: KCRS", _weight_axis),
    Rule("Q08", "error", "biases are float", "onnxruntime#14229, onnx-tensorrt#850", _bias_is_float),
    Rule("Q09", "error", "no integer operators", "onnx-tensorrt operators.md", _no_integer_operators),
    Rule("Q10", "error", "standard operators only", "onnx-tensorrt operators.md", _standard_operators_only),
    Rule("Q11", "error", "Q feeds only DQ", f"{_PARSER}", _pairs_are_whole),
    Rule(
        "Q12",
        "error",
        "float weights on 8.x",
        "TensorRT 8.6 parser: invalid weights type",
        _weights_are_float,
    ),
    Rule("Q13", "error", "float32 scales on 8.x", _HEADER, _scales_have_the_tensors_type),
    Rule("G01", "error", "opset is known to the release", "onnx-tensorrt operators.md", _opset_is_known),
    Rule("G02", "error", "shapes do not depend on data", "onnx-tensorrt operators.md", _shapes_are_static),
    Rule(
        "G03", "error", "TopK has a constant K of at most 3840", "onnx-tensorrt 10.1-GA", _top_k_is_constant
    ),
    Rule(
        "P01",
        "slow",
        "no pair between Conv and Add",
        "TensorRT add_custom_qdq_cases",
        _no_pair_between_conv_and_add,
    ),
    Rule("P02", "slow", "Concat inputs have one scale", "ModelOpt 0.47 placement", _concat_inputs_agree),
    Rule("P03", "slow", "deconvolutions are float", "TensorRT#1694, #2380", _deconvolution_is_float),
    Rule("P04", "slow", "half types for TensorRT 11", "TensorRT 10 to 11 migration guide", _types_are_half),
)
