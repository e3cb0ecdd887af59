"""The quantized PyTorch model: table, plan and calibration as for the ONNX file, for the ledger."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.compression.plan import SMALLEST_SUM, kept_float
from edgepose.compression.quantize import NOTHING, quiet_bars
from edgepose.compression.scopes import FLOAT_SCOPES
from edgepose.compression.trt_target import advanced, load_nncf, trt_target
from edgepose.runtime.drafts import draft_folder, read_json
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.runtime.poses import F32
from edgepose.training.models.weights import read_weights

CONFIG, WEIGHTS = "nncf.json", "weights.safetensors"

_CONVS = (nn.Conv2d, nn.ConvTranspose2d)
# Operators that only pass a convolution's result on, up to an Add (plan.py has the same rule for ONNX).
_CONV_LIKE = frozenset(
    {"batch_norm", "relu", "relu_", "interpolate", "max_pool2d", "add", "__add__", "__iadd__"}
)
_ADDS = frozenset({"add", "__add__", "__radd__", "__iadd__", "add_"})
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "__matmul__", "einsum", "scaled_dot_product_attention"})
# What `Scope.until` says, in NNCF's words for torch's operators.
_ENDS: dict[str | None, frozenset[str]] = {
    None: frozenset(),
    "layers": frozenset({"conv2d", "conv_transpose2d", "linear"}) | _PRODUCTS,
    "convolutions": frozenset({"conv2d"}),
}
_LAYERS = frozenset({"conv2d", "linear"})
_CONSTANT, _INPUT = "nncf_model_const", "nncf_model_input"
_REACH = 4


def fold_batch_norm(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy in evaluation mode whose BatchNorm layers are folded into the convolutions before them.

    Which convolution feeds which BatchNorm is seen by running `example`; the copy's outputs were compared.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        before = _tensors(model(example))
        for conv, norm in dict.fromkeys(_pairs(model, example)):  # a layer may run more than once
            layer, batch_norm = model.get_submodule(conv), model.get_submodule(norm)
            assert isinstance(layer, _CONVS)
            assert isinstance(batch_norm, nn.BatchNorm2d)
            transposed = isinstance(layer, nn.ConvTranspose2d)
            _replace(model, conv, nn.utils.fusion.fuse_conv_bn_eval(layer, batch_norm, transposed))
            _replace(model, norm, nn.Identity())
        after = _tensors(model(example))
    scale = max(float(tensor.abs().max()) for tensor in before)
    error = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    assert error <= 1e-3 * max(scale, 1.0), f"folding BatchNorm changed the outputs by {error}"
    return model


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    made_by: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept so that its id stays its own
    pairs: list[tuple[str, str]] = []

    def watch(name: str, module: nn.Module) -> Any:
        if isinstance(module, _CONVS):
            return module.register_forward_hook(lambda _, __, out: made_by.update({id(out): (name, out)}))
        return module.register_forward_pre_hook(
            lambda _, inputs: (
                pairs.append((made_by[id(inputs[0])][0], name)) if id(inputs[0]) in made_by else None
            )
        )

    watched = (*_CONVS, nn.BatchNorm2d)
    handles = [watch(name, module) for name, module in model.named_modules() if isinstance(module, watched)]
    model(example)
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(pairs))  # a layer may be called more than once


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _tensors(outputs: Any) -> list[Tensor]:
    values = (
        outputs.values()
        if isinstance(outputs, dict)
        else [outputs]
        if isinstance(outputs, Tensor)
        else outputs
    )
    return [value.float() for value in values]


def quantize_torch(
    model: nn.Module, images: Iterable[F32], family: str, keep: Mapping[str, str] = NOTHING
) -> nn.Module:
    """A copy with NNCF's fake-quantizers, calibrated on `images`, each (1, 3, H, W).

    `keep` as in `quantize`, of layers alone. Raises EdgeposeError without images.
    """
    feeds = [torch.from_numpy(np.ascontiguousarray(image)) for image in images]
    if not feeds:
        raise EdgeposeError("the calibration set is empty; make one with `edgepose calibrate`")
    folded = fold_batch_norm(model, feeds[0])
    nncf = load_nncf()
    plan = torch_plan(folded, feeds[0], family, keep)
    with trt_target(), quiet_bars(), without_compiler(), torch.no_grad():
        result: nn.Module = nncf.quantize(
            folded,
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(feeds),
            advanced_parameters=advanced(),
            ignored_scope=nncf.IgnoredScope(names=list(plan)) if plan else None,
        )
    return result.eval()


def torch_plan(
    model: nn.Module, example: Tensor, family: str, keep: Mapping[str, str] = NOTHING
) -> dict[str, str]:
    """NNCF node name -> why it stays float: the rules and scopes of `float_plan`, on NNCF's own graph."""
    load_nncf()
    from nncf.torch.function_hook import wrap_model
    from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph

    with torch.no_grad():
        graph = build_nncf_graph(wrap_model(copy.deepcopy(model).eval()), example)
    nodes = {node.node_name: node for node in graph.get_all_nodes()}
    plan = {name: reason for name, node in nodes.items() if (reason := _rule(graph, node)) is not None}
    plan |= {name: "reads pixels" for name, node in nodes.items() if _is_small_stem(model, graph, node)}
    for scope in FLOAT_SCOPES[family]:
        named = [node for name, node in nodes.items() if scope.matches(name) and node.node_type != _CONSTANT]
        plan.update({node.node_name: scope.reason for node in named})
        if scope.downstream:
            behind = _after(graph, named, _ENDS[scope.until])
            plan = dict.fromkeys(behind, f"computed from {scope.what}") | plan
    layers = {_layer(name): name for name, node in nodes.items() if node.node_type in _LAYERS}
    return {layers[layer]: reason for layer, reason in kept_float(layers, keep).items()} | plan


def _layer(name: str) -> str:
    """The path of the module that an NNCF node such as backbone/stem/0/conv2d/0 runs: backbone.stem.0."""
    return ".".join(name.split("/")[:-2])


def _after(graph: Any, nodes: list[Any], until: Collection[str]) -> set[str]:
    """Names of all nodes that depend on the given ones, as `Graph.after` finds them."""
    seen: set[str] = set()
    pending = list(nodes)
    while pending:
        for reader in graph.get_next_nodes(pending.pop()):
            if reader.node_name not in seen and reader.node_type not in until:
                seen.add(reader.node_name)
                pending.append(reader)
    return seen


def _rule(graph: Any, node: Any) -> str | None:
    if node.node_type in _PRODUCTS:
        return "product of two activations"
    if node.node_type.startswith("conv_transpose"):
        return "deconvolution"
    if node.node_type in _ADDS and not any(
        _from_conv(graph, made, _REACH) for made in graph.get_previous_nodes(node)
    ):
        return "Add outside the convolutional part"
    return None


def _is_small_stem(model: nn.Module, graph: Any, node: Any) -> bool:
    if node.node_type != "conv2d":
        return False
    first = any(maker.node_type == _INPUT for maker in graph.get_previous_nodes(node))
    return first and model.get_parameter(f"{_layer(node.node_name)}.weight")[0].numel() < SMALLEST_SUM


def _from_conv(graph: Any, node: Any, reach: int) -> bool:
    if node.node_type in ("conv1d", "conv2d", "conv3d"):
        return True
    makers = graph.get_previous_nodes(node)
    return reach > 0 and node.node_type in _CONV_LIKE and any(_from_conv(graph, m, reach - 1) for m in makers)


def _fake_quantize(values: Tensor, low: Tensor, span: Tensor, levels: int) -> Tensor:
    """Round to `levels` steps from `low` to `low + span`, as QuantizeLinear and DequantizeLinear do."""
    step = span / (levels - 1)
    below = -torch.round(low / step)  # how many of the levels are negative
    if step.numel() == 1:
        lowest, zero = -int(below), torch.zeros(1, dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(
            values, step.reshape(1), zero, lowest, lowest + levels - 1
        )
    return torch.clamp(torch.round(values / step), -below, levels - 1 - below) * step


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """NNCF's quantizers run as plain torch operations inside this block, for evaluation only.

    Left alone, their first use compiles C++ (20 s, needs ninja) or, without, goes through torch.compile.
    """
    load_nncf()
    from nncf.torch.quantization.extensions import QuantizedFunctionsCPU

    before = QuantizedFunctionsCPU._loaded_namespace
    QuantizedFunctionsCPU._loaded_namespace = SimpleNamespace(Quantize_forward=_fake_quantize)
    try:
        yield
    finally:
        QuantizedFunctionsCPU._loaded_namespace = before


class _Plain(nn.Module):
    """A quantized model whose quantizers never ask for a compiler."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        with without_compiler():
            return self.model(images)


def save_quantized_torch(folder: Path, model: nn.Module) -> None:
    """Write NNCF's placement as JSON and all weights and scales as safetensors into a new `folder`."""
    nncf = load_nncf()
    safetensors = require("safetensors.torch")
    with draft_folder(folder, replace=True) as draft:
        (draft / CONFIG).write_text(json.dumps(nncf.torch.get_config(model)) + "\n", encoding="utf-8")
        weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
        (draft / WEIGHTS).write_bytes(safetensors.save(weights))


def load_quantized_torch(folder: Path, model: nn.Module, example: Tensor) -> nn.Module:
    """The saved quantized model for evaluation, as `rebuild_quantized_torch` makes it."""
    return _Plain(rebuild_quantized_torch(folder, model, example).eval())


def rebuild_quantized_torch(folder: Path, model: nn.Module, example: Tensor) -> nn.Module:
    """The saved quantized model, rebuilt from the FP32 `model` it came from.

    `example` is one input (1, 3, H, W). Raises EdgeposeError when the files are damaged or of another model.
    """
    config = read_json(folder / CONFIG, "the placement of a quantized torch model")
    weights = read_weights(folder / WEIGHTS)
    nncf = load_nncf()
    try:
        result: nn.Module = nncf.torch.load_from_config(fold_batch_norm(model, example), config)
        result.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise EdgeposeError(
            f"{folder}: not the quantized form of this model, or damaged ({reason}); "
            "run `edgepose compress` again"
        ) from error
    return result
