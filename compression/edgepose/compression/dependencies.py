"""Which channels can leave a network, and everything that has to leave with each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.compression.channels import INPUTS, LARGE_STEP, OUTPUTS, Group, Part, step_of
from edgepose.compression.joint_channels import joint_groups
from edgepose.compression.stage_channels import stage_groups
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.training.models.attention import Attention, Mlp
from edgepose.training.models.backbones.frozen import FrozenNorm


@dataclass(frozen=True, slots=True)
class Traced:
    """How torch-pruning is shown the convolutions of a family."""

    run: Callable[[Any, Tensor], Any]  # of the network and a picture (1, 3, H, W)
    # Makers of what is read beyond. That is index arithmetic, where torch-pruning finds no end in 10 minutes.
    fixed: Callable[[Any], Iterable[nn.Module]]
    others: Callable[[Any], Iterable[Group]] = lambda _: ()  # what torch-pruning does not see


TRACED: Mapping[str, Traced] = {
    # KQE reads the joints' maps by position, and the score adds to the instance map.
    "qrpose": Traced(
        lambda network, image: network.trunk(image),
        lambda network: (network.inst[1], network.kpt[1]),
        joint_groups,
    ),
    # Every stage reads the pyramid's maps.
    "querypose": Traced(
        lambda network, image: network.backbone(image),
        lambda network: (network.backbone.neck,),
        stage_groups,
    ),
}


def groups_of(model: nn.Module, family: str, size: tuple[int, int]) -> list[Group]:
    """All groups of the network, for pictures of `size` (width, height).

    Raises EdgeposeError when nothing can leave.
    """
    found = [*_convolutional(model, TRACED[family], size)] if family in TRACED else []
    found += _transformer(model)
    if family in TRACED:
        found += TRACED[family].others(model)
    if not (found := [group for group in found if group.units > group.step]):
        raise EdgeposeError(f"{type(model).__name__}: has no channels that can leave; choose another model")
    return found


def _convolutional(model: nn.Module, traced: Traced, size: tuple[int, int]) -> Iterator[Group]:
    pruning = require("torch_pruning")
    image = torch.zeros(1, 3, size[1], size[0])
    seen = _thawed(model)
    graph = pruning.DependencyGraph().build_dependency(seen, image, forward_fn=traced.run, verbose=False)
    names = {layer: name for name, layer in seen.named_modules()}
    fixed = [layer for top in traced.fixed(seen) for layer in top.modules()]
    for group in graph.get_all_groups(ignored_layers=fixed, root_module_types=[nn.Conv2d]):
        parts = [*_parts(group, names)]
        units = len(parts[0].indices)
        grouped = any(getattr(model.get_submodule(part.layer), "groups", 1) > 1 for part in parts)
        if not grouped and any(part.axis == INPUTS for part in parts):
            yield Group(parts[0].layer, units, step_of(units), tuple(parts))


def _thawed(model: nn.Module) -> nn.Module:
    """A copy to trace, whose frozen normalisation torch-pruning knows."""
    thawed = copy.deepcopy(model).eval()
    for name, layer in list(thawed.named_modules()):
        if isinstance(layer, FrozenNorm):
            thawed.set_submodule(name, nn.BatchNorm2d(len(layer.weight)).eval())
    return thawed


def _parts(group: Any, names: Mapping[nn.Module, str]) -> Iterator[Part]:
    """Of torch-pruning's group, in the order of its root's channels."""
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            reads = item.dep.handler.__name__ == "prune_in_channels" and not isinstance(layer, nn.BatchNorm2d)
            # A concatenation may hold the root's channels more than once.
            order = np.argsort(np.asarray(item.root_idxs), kind="stable")
            indices = np.asarray(item.idxs, np.int64)[order].reshape(len(set(item.root_idxs)), -1)
            yield Part(names[layer], INPUTS if reads else OUTPUTS, indices)


def _transformer(model: nn.Module) -> Iterator[Group]:
    """The hidden channels of feed-forward layers, and the heads of attention."""
    for name, module in model.named_modules():
        if isinstance(module, Mlp):
            units = np.arange(module.fc1.out_features)[:, None]
            parts = (Part(f"{name}.fc1", OUTPUTS, units), Part(f"{name}.fc2", INPUTS, units))
            yield Group(f"{name}.fc1", len(units), LARGE_STEP, parts)
        elif isinstance(module, Attention):
            d = module.head_dim
            count = module.proj.in_features // d
            heads = np.arange(count * d).reshape(count, d)
            qkv = np.concatenate([heads, heads + count * d, heads + 2 * count * d], 1)
            yield Group(
                name, count, 1, (Part(f"{name}.qkv", OUTPUTS, qkv), Part(f"{name}.proj", INPUTS, heads))
            )
