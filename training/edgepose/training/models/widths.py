"""A network whose layers are narrower than its builder makes them: what a file of pruned weights says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.backbones.frozen import FrozenNorm

WIDTHS = "edgepose.widths"  # in the metadata of a safetensors file
# Layer -> outputs and inputs (of one group) of a convolution or linear layer, the other way about of a
# transposed convolution, as its weight has them; or the channels of a norm.
Widths = Mapping[str, tuple[int, ...]]


def width_of(layer: nn.Module) -> tuple[int, ...]:
    """As in `Widths`; empty for what has none that could change."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.in_channels, layer.out_channels // layer.groups
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, nn.BatchNorm2d | FrozenNorm):
        return (len(layer.running_var),)  # type: ignore[arg-type]
    return ()


def axis_of(layer: nn.Module, axis: int) -> int:
    """Where the weight has its outputs (0) or inputs (1)."""
    return 1 - axis if isinstance(layer, nn.ConvTranspose2d) else axis


def shape(model: nn.Module, widths: Widths, path: Path) -> None:
    """Make the layers of `model`, fresh from its builder, as narrow as the file at `path` says.

    Their values are the first of the old ones, to be loaded over. Raises EdgeposeError when a layer is not
    there, or cannot have that width.
    """
    layers = dict(model.named_modules())
    for name, width in widths.items():
        before = width_of(layers[name]) if name in layers else ()
        fits = len(before) == len(width) and all(1 <= w <= b for w, b in zip(width, before, strict=True))
        if not fits or width[0] % getattr(layers[name], "groups", 1):
            asked = (
                f"{name} is {'x'.join(map(str, width))} in it, {'x'.join(map(str, before)) or 'not there'}"
            )
            raise EdgeposeError(
                f"{path}: these weights were pruned from another model: {asked} in this one; "
                "name the model and the options that they were pruned from"
            )
        narrow(layers[name], width)


def narrow(layer: nn.Module, width: tuple[int, ...]) -> None:
    """Keep the first channels of a layer."""
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = width[0], width[1] * layer.groups
    elif isinstance(layer, nn.ConvTranspose2d):
        layer.in_channels, layer.out_channels = width[0], width[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = width
    elif isinstance(layer, nn.BatchNorm2d):
        layer.num_features = width[0]
    with torch.no_grad():
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            kept = value[tuple(slice(w) for w in width[: value.ndim])].clone()
            if isinstance(value, nn.Parameter):
                setattr(layer, name, nn.Parameter(kept, value.requires_grad))
            else:
                setattr(layer, name, kept)


def require_whole(model: nn.Module, path: Path) -> None:
    """Raises EdgeposeError when a layer of the narrowed `model` makes other channels than are read."""
    state = {name: value.to("meta") for name, value in [*model.named_parameters(), *model.named_buffers()]}
    width, height = model.config.size  # type: ignore[misc]
    was = model.training
    try:  # shapes alone, nothing is computed
        functional_call(model.eval(), state, torch.zeros(1, 3, height, width, device="meta"))
    except NotImplementedError:
        pass  # who is looked at again depends on values; all layers have been run by then
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise EdgeposeError(f"{path}: its widths do not fit together ({reason}); prune again") from error
    finally:
        model.train(was)


def to_metadata(widths: Widths) -> dict[str, str]:
    """For a file's metadata; nothing of a network that is as wide as built."""
    return {WIDTHS: json.dumps(widths)} if widths else {}


def from_metadata(metadata: Mapping[str, str], path: Path) -> Widths:
    """What `to_metadata` wrote. Raises EdgeposeError when it is damaged."""
    try:
        found = json.loads(metadata.get(WIDTHS, "{}"))
        return {str(name): tuple(int(w) for w in width) for name, width in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise EdgeposeError(f"{path}: its widths are damaged ({error}); prune or copy it again") from error
