"""Quantizers that learn, and that leave for ONNX as one pair of QuantizeLinear and DequantizeLinear each.

NNCF says where they stand and how wide they are at first. Its own learn only after a C++ compiler or
torch.compile has run, and its ways of leaving (`nncf.strip`, the exporters) give graphs that no engine takes.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgepose.compression.trt_target import load_nncf
from edgepose.runtime.errors import EdgeposeError

HOOKS = "__nncf_hooks."  # what the names of NNCF's own in a state dict begin with
HIGHEST = 127  # steps; the lowest is -128, of weights -127


@torch.library.custom_op("edgepose::qdq", mutates_args=())
def qdq(values: Tensor, scale: Tensor, zero: Tensor, axis: int, lowest: int) -> Tensor:
    """`values` rounded to whole steps of `scale` from `lowest` to HIGHEST, as both ONNX operators do.

    `scale` is () for all values or (C,) for the slices along `axis`; `zero`, int8 of the same shape, holds
    the zeros that ONNX wants to be told.
    """
    step = along(scale, axis, values.ndim)
    return torch.clamp(torch.round(values / step), lowest, HIGHEST) * step


@qdq.register_fake
def _(values: Tensor, scale: Tensor, zero: Tensor, axis: int, lowest: int) -> Tensor:
    return torch.empty_like(values)


def along(scale: Tensor, axis: int, dims: int) -> Tensor:
    """(C,) -> shaped to multiply a tensor of `dims` dimensions along `axis`; () stays."""
    return scale.reshape([-1 if place == axis else 1 for place in range(dims)]) if scale.ndim else scale


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:
    values, scale, _, ctx.axis, ctx.lowest = inputs
    ctx.save_for_backward(values, scale)


def _gradients(ctx: Any, wanted: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    """Straight through for what is inside the range; S. Esser et al., "Learned step size quantization"."""
    values, scale = ctx.saved_tensors
    steps = values / along(scale, ctx.axis, values.ndim)
    nearest = torch.round(steps)
    rounded = torch.clamp(nearest, ctx.lowest, HIGHEST)
    inside = nearest == rounded
    of_scale = wanted * (rounded - steps * inside)
    others = [place for place in range(values.ndim) if place != ctx.axis or not scale.ndim]
    return wanted * inside, of_scale.sum(others), None, None, None


qdq.register_autograd(_gradients, setup_context=_remember)


class Quantizer(nn.Module):
    """Rounds what passes. Its scale is learnt as a logarithm, so that it stays above 0."""

    def __init__(self, scale: Tensor, axis: int, lowest: int) -> None:
        """`scale` () or (C,): of one step."""
        super().__init__()
        self.logarithm = nn.Parameter(scale.detach().clone().log())
        self.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int8), persistent=False)
        self.axis, self.lowest = axis, lowest

    @property
    def scale(self) -> Tensor:
        """Of one step: () or (C,)."""
        return self.logarithm.exp()

    def forward(self, values: Tensor) -> Tensor:
        """Of any shape that has the axis."""
        return _rounded(values.float(), self.scale, self).to(values.dtype)  # half a float has no 256 steps


class Settled(nn.Module):
    """A quantizer that has learnt: its scale is a constant of the graph."""

    def __init__(self, learnt: Quantizer) -> None:
        super().__init__()
        self.register_buffer("scale", learnt.scale.detach().clone())
        self.register_buffer("zero", torch.zeros_like(learnt.scale, dtype=torch.int8))
        self.axis, self.lowest = learnt.axis, learnt.lowest

    def forward(self, values: Tensor) -> Tensor:
        """As the one that learnt."""
        return _rounded(values, cast(Tensor, self.scale), self)


def _rounded(values: Tensor, scale: Tensor, quantizer: Any) -> Tensor:
    zero, axis, lowest = quantizer.zero, quantizer.axis, quantizer.lowest
    rounded: Tensor = torch.ops.edgepose.qdq(values, scale, zero, axis, lowest)
    return rounded


def with_learning_quantizers(model: nn.Module) -> nn.Module:
    """Replace, in place, NNCF's quantizers in `model` (of `quantize_torch`) by ones that learn; returns it.

    What shares one of NNCF's shares one here. Raises EdgeposeError for one that TensorRT would not take.
    """
    hooks = _hooks(model)
    own: dict[int, Quantizer] = {}
    for name, theirs in _theirs(hooks):
        parent, _, last = name.rpartition(".")
        quantizer = own.setdefault(id(theirs), _learning(name, theirs))
        setattr(hooks.get_submodule(parent), last, quantizer)
    return model


def quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Where NNCF's hooks are -> the quantizer; one that is shared appears at each of its places."""
    found = _hooks(model).named_modules(remove_duplicate=False)
    return {name: module for name, module in found if isinstance(module, Quantizer)}


def _hooks(model: nn.Module) -> nn.Module:
    load_nncf()
    from nncf.torch.function_hook.wrapper import get_hook_storage

    return cast(nn.Module, get_hook_storage(model))


def _theirs(hooks: nn.Module) -> list[tuple[str, Any]]:
    from nncf.torch.quantization.layers import BaseQuantizer

    found = hooks.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in found if isinstance(module, BaseQuantizer)]


def _learning(name: str, theirs: Any) -> Quantizer:
    if theirs.num_bits != 8 or not getattr(theirs, "signed", False):
        raise EdgeposeError(f"quantizer {name} is no signed one of 8 bits; compress again with this edgepose")
    widest = theirs.scale.abs()  # of the highest step
    axis = next((place for place, size in enumerate(widest.shape) if size > 1), 0)
    shape = () if widest.numel() == 1 else (-1,)
    return Quantizer(widest.reshape(shape) / HIGHEST, axis, -HIGHEST if theirs.narrow_range else -HIGHEST - 1)


def settled(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose quantizers have learnt."""
    model = copy.deepcopy(model).eval()
    hooks = _hooks(model)
    own: dict[int, Settled] = {}
    for name, quantizer in quantizers(model).items():
        parent, _, last = name.rpartition(".")
        setattr(hooks.get_submodule(parent), last, own.setdefault(id(quantizer), Settled(quantizer)))
    return model


def into_nncf(model: nn.Module, theirs: nn.Module) -> nn.Module:
    """Give NNCF's quantized model, in place, what `model`, once made from it, has learnt; returns it."""
    learnt = quantizers(model)
    values = {name: value for name, value in model.state_dict().items() if not name.startswith(HOOKS)}
    missing, unexpected = theirs.load_state_dict(values, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(HOOKS) for name in missing), missing
    for name, quantizer in _theirs(_hooks(theirs)):
        widest = quantizer.scale
        with torch.no_grad():
            widest.copy_((HIGHEST * learnt[name].scale).reshape(widest.shape))
    return theirs
