"""Which channels can leave a network, and everything that has to leave with each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError, require
from edgepose.training.models.attention import Attention, Mlp

OUTPUTS, INPUTS = 0, 1  # axes of a weight
LARGE = 256  # channels from which on widths stay multiples of 32: TensorRT's INT8 tiles
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a group has in one layer."""

    layer: str
    axis: int  # OUTPUTS, which the layer makes, or INPUTS, which it reads
    indices: Indices  # (units, n) of the weight's axis: n channels leave with each unit


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that only leave together with their parts in every layer: channels, or the heads of attention."""

    name: str  # of the first layer that makes them
    units: int
    step: int  # how many leave at once, so that widths stay multiples of it
    parts: tuple[Part, ...]

    @property
    def readers(self) -> tuple[Part, ...]:
        """Layers that read the channels."""
        return tuple(part for part in self.parts if part.axis == INPUTS)


@dataclass(frozen=True, slots=True)
class Traced:
    """How torch-pruning is shown the convolutions of a family."""

    run: Callable[[Any, Tensor], Any]  # of the network and a picture (1, 3, H, W)
    # Layers that make what is read where it was not shown, or what a width is fixed for. The rest of the
    # network is index arithmetic, in which torch-pruning loses itself (minutes without an end).
    fixed: Callable[[Any], Iterable[nn.Module]]


TRACED: Mapping[str, Traced] = {
    # KQE reads the joint's maps by position, and the score adds to the instance map.
    "qrpose": Traced(
        lambda network, image: network.trunk(image), lambda network: (network.inst[1], network.kpt[1])
    ),
    # Every stage reads the pyramid's maps.
    "querypose": Traced(
        lambda network, image: network.backbone(image), lambda network: (network.backbone.neck,)
    ),
}


def groups_of(model: nn.Module, family: str, size: tuple[int, int]) -> list[Group]:
    """All groups of the network, for pictures of `size` (width, height).

    Raises EdgeposeError when nothing can leave.
    """
    found = [*_convolutional(model, TRACED[family], size)] if family in TRACED else []
    found += _transformer(model)
    if not found:
        raise EdgeposeError(f"{type(model).__name__}: has no channels that can leave; choose another model")
    return found


def _convolutional(model: nn.Module, traced: Traced, size: tuple[int, int]) -> Iterable[Group]:
    pruning = require("torch_pruning")
    image = torch.zeros(1, 3, size[1], size[0])
    graph = pruning.DependencyGraph().build_dependency(model, image, forward_fn=traced.run, verbose=False)
    names = {layer: name for name, layer in model.named_modules()}
    fixed = [layer for top in traced.fixed(model) for layer in top.modules() if layer in names]
    for group in graph.get_all_groups(ignored_layers=fixed, root_module_types=[nn.Conv2d]):
        parts = [*_parts(group, names)]
        units = len(parts[0].indices)
        step = 32 if units >= LARGE else 8
        grouped = any(getattr(model.get_submodule(part.layer), "groups", 1) > 1 for part in parts)
        if units > step and not grouped and any(part.axis == INPUTS for part in parts):
            yield Group(parts[0].layer, units, step, tuple(parts))


def _parts(group: Any, names: Mapping[nn.Module, str]) -> Iterable[Part]:
    """Of torch-pruning's group, in the order of its root's channels."""
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            reads = item.dep.handler.__name__ == "prune_in_channels" and not isinstance(layer, nn.BatchNorm2d)
            order = np.argsort(np.asarray(item.root_idxs))
            indices = np.asarray(item.idxs, np.int64)[order]
            yield Part(names[layer], INPUTS if reads else OUTPUTS, indices[:, None])


def _transformer(model: nn.Module) -> Iterable[Group]:
    """The hidden channels of feed-forward layers, and the heads of attention."""
    for name, module in model.named_modules():
        if isinstance(module, Mlp):
            units = np.arange(module.fc1.out_features)[:, None]
            parts = (Part(f"{name}.fc1", OUTPUTS, units), Part(f"{name}.fc2", INPUTS, units))
            yield Group(f"{name}.fc1", len(units), 32, parts)
        elif isinstance(module, Attention):
            d = module.head_dim
            count = module.proj.in_features // d
            heads = np.arange(count * d).reshape(count, d)
            qkv = np.concatenate([heads, heads + count * d, heads + 2 * count * d], 1)
            yield Group(
                name, count, 1, (Part(f"{name}.qkv", OUTPUTS, qkv), Part(f"{name}.proj", INPUTS, heads))
            )


def weight_of(model: nn.Module, part: Part) -> Tensor:
    """The weight that the part is of."""
    return cast(Tensor, model.get_submodule(part.layer).weight)
