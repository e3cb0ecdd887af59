"""Post-training INT8 of an ONNX model with NNCF, told about TensorRT and checked afterwards."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from onnx import ModelProto

from edgepose.compression.boundary import quantize_boundaries
from edgepose.compression.execution import Feeds, outputs_of, tapped
from edgepose.compression.graph import QUANTIZE, Graph, copy
from edgepose.compression.plan import float_plan, kept_float, quantized_despite_plan
from edgepose.compression.scopes import FLOAT_SCOPES, TRANSFORMERS
from edgepose.compression.trt_target import advanced, load_nncf, trt_target
from edgepose.runtime.errors import EdgeposeError

NOTHING: Mapping[str, str] = MappingProxyType({})
ONNX_DOMAINS = ("", "ai.onnx")
# What is done, in the words of the library; written beside every quantized model.
SETTINGS: dict[str, str | bool] = {
    "target": "tensorrt: int8, symmetric, activations per tensor, weights per output channel",
    "preset": "performance",
    "activation_ranges": "least squared error over the calibration set (NNCF's HISTOGRAM)",
    "bias_correction": "fast",
    "overflow_fix": "disabled: all weights have eight bits",
    "smooth_quant": False,
    "boundaries": "results of INT8 convolutions that only float layers read are INT8",
}
TRANSFORMER_SETTINGS: dict[str, str | bool] = {
    "model_type": "transformer",
    "smooth_quant": "behind LayerNorms",
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """A model with Q/DQ pairs, and what was decided on the way."""

    model: ModelProto  # legal, both inputs of every residual Add quantized: the origin of all views
    plan: dict[str, str]  # name of each node that stayed float -> why
    settings: dict[str, str | bool | int]


def quantize(
    model: ModelProto, calibration: Iterable[Feeds], family: str, keep: Mapping[str, str] = NOTHING
) -> Quantized:
    """INT8 with scales from the `calibration` feeds, each of one picture (batch 1) as the network wants it.

    `keep`: patterns of more layers that stay float -> why (`plan.kept_float`). Raises EdgeposeError without
    feeds, for a family without scopes, for a model that is quantized already, has other operators than ONNX's
    or no layer that can be INT8, and when an activation is no number.
    """
    feeds = list(calibration)
    _require_quantizable(model, len(feeds), family)
    nncf = load_nncf()
    plan = kept_float((node.name for node in model.graph.node), keep) | float_plan(model, family)
    attention = family in TRANSFORMERS
    with trt_target(attention), quiet_bars(), _explained(model, feeds):
        result = nncf.quantize(
            copy(model),
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(feeds),
            advanced_parameters=advanced(),
            model_type=nncf.ModelType.TRANSFORMER if attention else None,
            ignored_scope=nncf.IgnoredScope(names=list(plan)) if plan else None,
        )
    if not any(node.op_type == QUANTIZE for node in result.graph.node):
        why = "".join(f"; {name} stays float: {reason}" for name, reason in list(plan.items())[:1])
        raise EdgeposeError(f"the model has no layer that can be INT8{why}")
    broken = quantized_despite_plan(result, plan)
    assert not broken, f"NNCF quantized what the plan keeps float: {broken}"
    settings = {**SETTINGS, **(TRANSFORMER_SETTINGS if attention else {}), "images": len(feeds)}
    return Quantized(quantize_boundaries(result, plan, feeds), plan, settings)


def _require_quantizable(model: ModelProto, images: int, family: str) -> None:
    graph = Graph(model)
    if family not in FLOAT_SCOPES:
        raise EdgeposeError(f"family {family!r}: has no float scopes; known are {', '.join(FLOAT_SCOPES)}")
    if not images:
        raise EdgeposeError("the calibration set is empty; make one with `edgepose calibrate`")
    foreign = next((node for node in graph.nodes if node.domain not in ONNX_DOMAINS), None)
    if foreign is not None:
        raise EdgeposeError(
            f"{foreign.name or foreign.op_type}: {foreign.domain}::{foreign.op_type} is none of ONNX's own "
            "operators and cannot be calibrated; export the model without it"
        )
    if any(node.op_type == QUANTIZE for node in graph.nodes):
        raise EdgeposeError("the model is quantized already; give the FP32 bundle")
    names = [node.name for node in graph.nodes]
    if "" in names or len(set(names)) != len(names):
        raise EdgeposeError("the model has nameless or equally named nodes; export it with `edgepose export`")


@contextlib.contextmanager
def _explained(model: ModelProto, feeds: Sequence[Feeds]) -> Iterator[None]:
    """NNCF stumbles over ranges that are no numbers; say then which layer makes them, and of what."""
    try:
        with np.errstate(invalid="ignore"):  # what comes of it is said below
            yield
    except ValueError as error:
        where = _not_finite(model, feeds)
        if where is None:
            raise
        raise EdgeposeError(f"{where}; look at the weights, or train again") from error


def _not_finite(model: ModelProto, feeds: Sequence[Feeds]) -> str | None:
    """The first layer that makes something of finite numbers that is none, in words."""
    inner = [node.output[0] for node in model.graph.node if node.output[0] not in Graph(model).outputs]
    watched = tapped(model, inner)
    for picture, feed in enumerate(feeds):
        if not all(np.isfinite(values).all() for values in feed.values()):
            return f"calibration picture {picture} is not finite"
        (outputs,) = outputs_of(watched, [feed])
        for node in model.graph.node:
            if not np.isfinite(outputs[node.output[0]]).all():
                what = f"{node.op_type} {node.name} gives values that are not finite"
                return f"{what} on calibration picture {picture}"
    return None


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """NNCF draws its progress on stdout; here it goes to stderr, and nowhere when that is not a terminal."""
    with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield
