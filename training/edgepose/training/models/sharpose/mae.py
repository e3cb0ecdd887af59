"""Starting SHaRPose from a vision transformer that learned to fill in hidden patches (MAE)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.sharpose.network import SharPose
from edgepose.training.models.weights import read_weights, require_fit

COPIED = ("patch_embed.", "blocks.", "norm.")
# What else such files hold: the pre-training's decoder, a classifier, and tokens of other meaning.
SURPLUS = ("cls_token", "mask_token", "keypoint_token", "decoder_", "fc_norm.", "head.")
POSITIONS = "pos_embed"


def load_mae(model: SharPose, checkpoint: str | Path) -> None:
    """Start the blocks and both position tables from an MAE checkpoint; all else stays as it is (section 5).

    The file's square position table, with or without one for its class token, is resized to both grids.
    Raises EdgeposeError when the file does not fit or cannot be read.
    """
    path = Path(checkpoint)
    loaded = {key: value for key, value in read_weights(path).items() if not key.startswith(SURPLUS)}
    positions = loaded.pop(POSITIONS, None)
    own = {key: value for key, value in model.backbone.state_dict().items() if key.startswith(COPIED)}
    require_fit(path, own, loaded, "backbone", "a vision transformer of this width and depth")
    if positions is None or positions.ndim != 3 or positions.shape[2] != model.config.channels:
        raise EdgeposeError(
            f"{path}: has no table of positions of {model.config.channels} channels ({POSITIONS}); "
            "name an MAE checkpoint"
        )
    width, height = model.config.grid
    tables = (resized(positions, (width, height), path), resized(positions, (2 * width, 2 * height), path))
    named = {f"pos_embed_list.{stage}": table for stage, table in enumerate(tables)}
    model.backbone.load_state_dict({**model.backbone.state_dict(), **loaded, **named})


def resized(positions: Tensor, grid: tuple[int, int], path: Path) -> Tensor:
    """A table (1, side² or 1 + side², C) of a square grid for one of `grid` (width, height) cells."""
    side = math.isqrt(positions.shape[1])
    if positions.shape[1] - side**2 not in (0, 1) or not side:
        raise EdgeposeError(
            f"{path}: its {positions.shape[1]} positions are of no square grid; name an MAE checkpoint"
        )
    square = torch.unflatten(positions[:, -(side**2) :].mT, -1, (side, side))
    fitted = functional.interpolate(square, (grid[1], grid[0]), mode="bicubic", align_corners=False)
    return fitted.flatten(2).mT
