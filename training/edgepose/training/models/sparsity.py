"""The 2:4 pattern of sparse tensor cores: of every 4 neighbouring inputs of an output at most 2 count."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

GROUP, KEPT = 4, 2
PATTERN = "2:4"
# Channels on either side. Our choice: smaller layers can spare least, and have little time to save.
LEAST = 32
Masks = Mapping[str, Tensor]  # bool, by layer, of its weight's shape


def mask_2_4(weight: Tensor) -> Tensor:
    """(outputs, inputs, ...) -> bool: the two largest of every four consecutive inputs.

    At one output and one place of the kernel; of equals the first. `inputs` must be a multiple of 4.
    """
    fours = torch.unflatten(weight.detach().abs().movedim(1, -1), -1, (-1, GROUP))
    order = torch.argsort(fours, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, order[..., :KEPT], True)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


def follows_2_4(weight: Tensor) -> bool:
    """Whether no four consecutive inputs of (outputs, inputs, ...) hold more than two numbers but 0."""
    if weight.shape[1] % GROUP:
        return False
    counts = torch.unflatten((weight.detach() != 0).movedim(1, -1), -1, (-1, GROUP)).sum(-1)
    return bool((counts <= KEPT).all())


def sparse_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that should follow the pattern, by name: ungrouped, and wide enough on both sides."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
        and getattr(layer, "groups", 1) == 1
        and layer.weight.shape[1] % GROUP == 0
        and min(layer.weight.shape[:2]) >= LEAST
    }


def masks_of(model: nn.Module) -> Masks:
    """By magnitude, for `keep`."""
    return {name: mask_2_4(layer.weight) for name, layer in sparse_layers(model).items()}


@torch.no_grad()
def keep(model: nn.Module, masks: Masks) -> None:
    """Put back to 0 what the masks leave out: after every step, for an optimiser moves it."""
    for name, mask in masks.items():
        weight = model.get_parameter(f"{name}.weight")
        weight.mul_(mask.to(weight.device))


def is_sparse(model: nn.Module) -> bool:
    """Whether the network has layers that should follow the pattern, and all of them do."""
    layers = sparse_layers(model)
    return bool(layers) and all(follows_2_4(layer.weight) for layer in layers.values())
