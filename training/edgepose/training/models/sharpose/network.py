"""SHaRPose: one transformer sees a person at half resolution, then, where needed, the parts that matter.

An independent implementation of "SHaRPose: Sparse High-Resolution Representation for Human Pose Estimation"
(AAAI 2024), after specs/sharpose.md; the published weights fit it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.attention import Mlp
from edgepose.training.models.sharpose.mining import DECAY, attention_paid, by_cell, picked, ranked
from edgepose.training.models.sharpose.published import settings
from edgepose.training.models.sharpose.transformer import Block

log = logging.getLogger(__name__)

PATCH = 16  # pixels of a token's side, at either resolution
CELL = 2 * PATCH  # crop pixels of a coarse cell's side
MAP_STRIDE = 4  # crop pixels of a heatmap pixel


@dataclass(frozen=True, slots=True)
class Config:
    """What a SHaRPose network is made of. K joints; n0 cells of the coarse grid."""

    size: tuple[int, int]  # width, height of the crop, pixels
    channels: int  # C
    alpha: Annotated[float, Field(gt=0, le=1)]  # share of the cells that the fine stage sees sharp
    depth: int = 12  # L
    heads: int = 12
    threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.99  # persons of a lower quality are refined
    joints: int = 17  # K
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of the last block; rises linearly from 0
    # The authors' code leaves the last joint out when it ranks the cells; their weights were trained with it.
    reference: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """(width, height) of the coarse grid."""
        return self.size[0] // CELL, self.size[1] // CELL

    @property
    def cells(self) -> int:
        """n0."""
        return self.grid[0] * self.grid[1]

    @property
    def selected(self) -> int:
        """k: how many cells the fine stage sees sharp."""
        return math.ceil(self.alpha * self.cells)

    @property
    def map_size(self) -> tuple[int, int]:
        """(W, H) of the heatmaps."""
        return self.size[0] // MAP_STRIDE, self.size[1] // MAP_STRIDE


class Coarse(NamedTuple):
    """What the first look gives; the fine stage needs the last three."""

    tokens: Tensor  # of the joints (B, K, C)
    quality: Tensor  # (B,) predicted OKS, unbounded above
    scores: Tensor  # of the cells (B, n0); only their order means anything
    order: Tensor  # cells (B, n0) int64, best first
    reuse: Tensor  # what the first look found in each cell (B, n0, C)
    embedded: Tensor  # what it was shown of each cell (B, n0, C)


class PatchEmbed(nn.Module):
    """Pixels to tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/16 * W/16, C), row by row."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).mT


class QualityPredictor(nn.Module):
    """Predicts, from the quality token, the OKS of the coarse pose."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The places 2 and 5 are the published names' dropout, which drops nothing.
        self.mlp = nn.Sequential(
            *(nn.Linear(channels, channels), nn.GELU(), nn.Identity()),
            *(nn.Linear(channels, channels), nn.GELU(), nn.Identity()),
            *(nn.Linear(channels, 1), nn.GELU()),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, token: Tensor) -> Tensor:
        """(B, C) -> (B,), above -0.17: the last activation is a GELU, not a sigmoid."""
        quality: Tensor = self.mlp(self.norm(token))
        return quality[:, 0]


class Backbone(nn.Module):
    """Both looks at a person, with one set of blocks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        C, n0 = config.channels, config.cells
        self.keypoint_tokens = nn.Parameter(torch.zeros(1, config.joints, C))
        self.quality_token = nn.Parameter(torch.zeros(1, 1, C))
        self.patch_embed = PatchEmbed(C)
        self.pos_embed_list = nn.ParameterList([torch.zeros(1, n0, C), torch.zeros(1, 4 * n0, C)])
        rise = config.drop_path / max(1, config.depth - 1)
        self.blocks = nn.ModuleList(Block(C, config.heads, i * rise) for i in range(config.depth))
        self.norm = nn.LayerNorm(C)
        self.reuse_block = nn.Sequential(nn.LayerNorm(C), Mlp(C))
        self.quality_predictor = QualityPredictor(C)
        self.apply(_initialise)

    def coarse(self, crops: Tensor) -> Coarse:
        """Normalised RGB (B, 3, H, W) -> the look at half resolution (section 2)."""
        joints, cells = self.config.joints, self.config.cells
        half = functional.avg_pool2d(crops, 2)  # what bilinear interpolation does at exactly half the size
        embedded = self.patch_embed(half) + self.pos_embed_list[0]
        special = (
            token.expand(crops.shape[0], -1, -1) for token in (self.quality_token, self.keypoint_tokens)
        )
        tokens = torch.cat([*special, embedded], 1)
        rows = slice(1, joints if self.config.reference else 1 + joints)
        scores = tokens.new_zeros(crops.shape[0], cells)
        for index, block in enumerate(self.blocks):
            tokens, heads = block(tokens)
            if index >= self.config.depth // 4:
                scores = DECAY * scores + (1 - DECAY) * attention_paid(heads, rows, cells)
        tokens = self.norm(tokens)
        quality = self.quality_predictor(tokens[:, 0])
        reuse = self.reuse_block(tokens[:, 1 + joints :])
        return Coarse(tokens[:, 1 : 1 + joints], quality, scores, ranked(scores), reuse, embedded)

    def fine(self, crops: Tensor, order: Tensor, reuse: Tensor, embedded: Tensor) -> Tensor:
        """Crops and the last three of their `Coarse` -> joint tokens (B, K, C), sharper (section 3).

        The order among the selected cells, and among the others, changes the result by rounding alone.
        """
        joints, selected = self.config.joints, self.config.selected
        sharp = by_cell(self.patch_embed(crops) + self.pos_embed_list[1], self.config.grid)
        sharp = sharp + reuse[:, :, None]  # (B, n0, 4, C)
        sharp = picked(sharp.flatten(2), order[:, :selected])
        sharp = torch.unflatten(sharp, -1, (4, -1)).flatten(1, 2)  # (B, 4*k, C)
        blunt = picked(embedded, order[:, selected:])
        tokens = torch.cat([self.keypoint_tokens.expand(crops.shape[0], -1, -1), sharp, blunt], 1)
        for block in self.blocks:
            tokens, _ = block(tokens)
        out: Tensor = self.norm(tokens[:, :joints])
        return out


class KeypointHead(nn.Module):
    """From a joint's token to its heatmap."""

    def __init__(self, channels: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.map_size = map_size
        pixels = map_size[0] * map_size[1]
        layers: list[nn.Module] = [nn.LayerNorm(channels)]
        if channels >= pixels // 4:
            layers += [nn.Linear(channels, pixels)]
        else:
            hidden = pixels // 2
            layers += [
                nn.Linear(channels, hidden),
                nn.GELU(),
                nn.LayerNorm(hidden),
                nn.Linear(hidden, pixels),
            ]
        self.heatmap_mlp = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, K, C) -> (B, K, H, W)."""
        maps: Tensor = self.heatmap_mlp(tokens)
        return torch.unflatten(maps, -1, self.map_size[::-1])


class SharPose(nn.Module):
    """The trainable network; its state dict has the authors' names, shapes and order."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if any(side <= 0 or side % CELL for side in config.size) or config.channels % config.heads:
            raise EdgeposeError(
                f"SHaRPose cannot have a crop of {config.size} pixels and {config.channels} channels in "
                f"{config.heads} heads; choose sides divisible by {CELL}, and channels by heads"
            )
        self.backbone = Backbone(config)
        self.keypoint_head = KeypointHead(config.channels, config.map_size)

    @property
    def config(self) -> Config:
        """What the network is made of, and what a published file has changed of it."""
        return self.backbone.config

    def forward(self, crops: Tensor, threshold: float | None = None) -> dict[str, Tensor]:
        """Normalised RGB (B, 3, H, W) -> both looks, the second one for those who need it.

        `coarse_heatmaps` and `heatmaps` (B, K, H/4, W/4), `quality` (B,), `refined` (B,) bool and
        `region_order` (B, n0) int64. Persons whose quality is below `threshold` (by default the
        configuration's) are refined, in training everybody; the others keep their coarse heatmaps.
        """
        coarse = self.backbone.coarse(crops)
        coarse_heatmaps = self.keypoint_head(coarse.tokens)
        limit = self.config.threshold if threshold is None else threshold
        refined = (
            torch.ones_like(coarse.quality, dtype=torch.bool) if self.training else coarse.quality < limit
        )
        (rows,) = refined.nonzero(as_tuple=True)
        again = (crops, coarse.order, coarse.reuse, coarse.embedded)
        fine_heatmaps = self.keypoint_head(self.backbone.fine(*(part[rows] for part in again)))
        return {
            "coarse_heatmaps": coarse_heatmaps,
            "quality": coarse.quality,
            "refined": refined,
            "region_order": coarse.order,
            "heatmaps": coarse_heatmaps.index_copy(0, rows, fine_heatmaps),
        }

    def adopt(self, meta: Mapping[str, Any], path: Path) -> None:
        """Take from the `meta` of the authors' file what its weights were trained for and do not hold.

        That is alpha, the threshold, and `reference`; a file without `meta` is taken as the network is built.
        Raises EdgeposeError when the file names an impossible share of cells.
        """
        config = self.config
        text = meta.get("config")
        found = settings(text) if isinstance(text, str) else {}
        for name, default in (("alpha", config.alpha), ("qp_threshold", config.threshold)):
            if name not in found:
                log.warning("%s: does not say its %s; %g is taken", path, name, default)
        alpha = found.get("alpha", config.alpha)
        if not 0 < alpha <= 1:
            raise EdgeposeError(
                f"{path}: its configuration has alpha {alpha:g}, not in 0..1; get the file again"
            )
        threshold = found.get("qp_threshold", config.threshold)
        reference = config.reference or bool(meta)
        self.backbone.config = replace(config, alpha=alpha, threshold=threshold, reference=reference)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(cast(Tensor, module.bias))
