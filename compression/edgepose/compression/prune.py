"""A network without the channels that leave: its weights, and how wide its layers then are."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.compression.channels import OUTPUTS, Group, Indices
from edgepose.training.models.widths import Widths, axis_of, shape, width_of


class Pruned(NamedTuple):
    """What a file of pruned weights holds."""

    state: dict[str, Tensor]
    widths: Widths  # of the layers that are narrower now


def pruned(model: nn.Module, groups: Sequence[Group], kept: Sequence[Indices]) -> Pruned:
    """The network's weights with the `kept` units of each group alone; the model is left as it was."""
    gone: dict[tuple[str, int], list[Indices]] = defaultdict(list)  # several groups may meet in one axis
    for group, units in zip(groups, kept, strict=True):
        left = np.setdiff1d(np.arange(group.units), units)
        for part in group.parts:
            gone[part.layer, part.axis].append(part.indices[left].reshape(-1))
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for (layer, axis), indices in gone.items():
        own = axis_of(model.get_submodule(layer), axis)
        _leave(state, (layer, axis), own, np.concatenate(indices))
    widths = {}
    for name, layer in model.named_modules():
        before = width_of(layer)
        if before and (after := tuple(state[f"{name}.weight"].shape[: len(before)])) != before:
            widths[name] = after
    return Pruned(state, widths)


def narrowed(model: nn.Module, found: Pruned) -> nn.Module:
    """A copy of `model` with the pruned weights, in evaluation mode."""
    narrow = copy.deepcopy(model)
    shape(narrow, found.widths, Path("pruned"))
    narrow.load_state_dict(found.state)
    return narrow.eval()


def _leave(state: dict[str, Tensor], part: tuple[str, int], own: int, gone: Indices) -> None:
    """Take channels out of a layer's weight, and with its outputs out of all else that it has for each."""
    layer, axis = part
    for name in [name for name in state if name.rpartition(".")[0] == layer]:
        value = state[name]
        if value.ndim > 1 or (value.ndim == 1 and axis == OUTPUTS):
            at = own if value.ndim > 1 else 0
            stay = np.setdiff1d(np.arange(value.shape[at]), gone)
            state[name] = value.index_select(at, torch.from_numpy(stay))
