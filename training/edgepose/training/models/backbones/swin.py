"""Swin transformers under their authors' names, with the four normalised maps of the detection version."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepose.training.models.attention import Attention, DropPath, Mlp
from edgepose.training.models.backbones.body import Body

WINDOW = 7  # cells of a window's side
SHIFT = 3  # cells by which every other block moves its windows
APART = -100.0  # added to what cells compare that the shift alone has made neighbours
DROP_PATH = 0.2  # of the last block; rises linearly from 0


class Size(NamedTuple):
    """What tells one Swin from another: channels of the first map, then blocks and heads of each stage."""

    channels: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]


SIZES = {
    "t": Size(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "b": Size(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "l": Size(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def relative_positions() -> Tensor:
    """(49, 49) int64: which of the 13x13 relative positions cell j has to cell i of a window."""
    cells = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    offset = cells[:, None] - cells[None] + WINDOW - 1
    return offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]


def windows_of(cells: Tensor) -> Tensor:
    """(B, H, W, C), H and W multiples of 7 -> (B, windows, 49, C), windows and their cells row by row."""
    split = torch.unflatten(torch.unflatten(cells, 2, (-1, WINDOW)), 1, (-1, WINDOW))
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def cells_of(windows: Tensor, height: int, width: int) -> Tensor:
    """The way back from `windows_of`: -> (B, height, width, C)."""
    rows = torch.unflatten(windows, 1, (height // WINDOW, width // WINDOW))
    return torch.unflatten(rows, 3, (WINDOW, WINDOW)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shift_mask(height: int, width: int) -> Tensor:
    """(windows, 1, 49, 49): APART between cells of a shifted map that come from different sides, else 0."""

    def sides(length: int) -> Tensor:  # (length,) 0, 1 or 2
        place = torch.arange(length)
        return (place >= length - WINDOW).int() + (place >= length - SHIFT).int()

    side = 3 * sides(height)[:, None] + sides(width)
    side = windows_of(side[None, :, :, None])[0]  # (windows, 49, 1)
    return APART * (side != side.mT).float()[:, None]


class WindowAttention(Attention):
    """Attention among the cells of a window, biased by where they lie to each other."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        table = torch.zeros((2 * WINDOW - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", relative_positions())

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, windows, 49, C) -> the same shape; `bias` (windows, 1, 49, 49) is a mask."""
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        beside = torch.unflatten(table, 0, (WINDOW**2, WINDOW**2)).permute(2, 0, 1)  # (heads, 49, 49)
        return super().forward(tokens, beside if bias is None else beside + bias)


class SwinBlock(nn.Module):
    """Attention within windows and an MLP, normalised before, each beside a shortcut."""

    def __init__(self, channels: int, heads: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.shift = SHIFT if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape."""
        cells = cells + self.drop_path(self.attend(self.norm1(cells)))
        out: Tensor = cells + self.drop_path(self.mlp(self.norm2(cells)))
        return out

    def attend(self, cells: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape; padded to whole windows inside."""
        height, width = cells.shape[1:3]
        cells = functional.pad(cells, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        padded, shift, mask = cells.shape[1:3], self.shift, None
        if shift:
            cells = cells.roll((-shift, -shift), (1, 2))
            mask = shift_mask(*padded).to(cells.device)
        cells = cells_of(self.attn(windows_of(cells), mask), *padded)
        if shift:
            cells = cells.roll((shift, shift), (1, 2))
        return cells[:, :height, :width]


class PatchEmbed(nn.Module):
    """Pixels to cells of 4x4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/4, W/4, C)."""
        return cast(Tensor, self.norm(self.proj(images).permute(0, 2, 3, 1)))


class PatchMerging(nn.Module):
    """Four cells become one of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, H, W, C), both even -> (B, H/2, W/2, 2C)."""
        four = [cells[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return cast(Tensor, self.reduction(self.norm(torch.cat(four, -1))))


class Stage(nn.Module):
    """The blocks of one map, and after all but the last the way to the next."""

    def __init__(self, channels: int, heads: int, drop_paths: list[float], merges: bool) -> None:
        super().__init__()
        blocks = (SwinBlock(channels, heads, index % 2 == 1, rate) for index, rate in enumerate(drop_paths))
        self.blocks = nn.Sequential(*blocks)
        self.downsample = PatchMerging(channels) if merges else None


class Swin(Body):
    """`size` is one of SIZES: "t", "b" or "l"."""

    def __init__(self, size: str) -> None:
        channels, depths, heads = SIZES[size]
        super().__init__((channels, 2 * channels, 4 * channels, 8 * channels))
        self.patch_embed = PatchEmbed(channels)
        rates = torch.linspace(0, DROP_PATH, sum(depths), device="cpu").tolist()
        starts = [sum(depths[:level]) for level in range(4)]
        self.layers = nn.ModuleList(
            Stage(self.widths[level], heads[level], rates[start : start + depths[level]], level < 3)
            for level, start in enumerate(starts)
        )
        for level, width in enumerate(self.widths):
            setattr(self, f"norm{level}", nn.LayerNorm(width))
        self.apply(_initialise)
        # A classifier has one norm, this has one for each map; and a mask is made here, not stored.
        masks = (f"{name}.attn_mask" for name, part in self.named_modules() if isinstance(part, SwinBlock))
        self.surplus = ("head.", "norm.", *masks)
        self.fresh = tuple(f"norm{level}." for level in range(4))

    def forward(self, images: Tensor) -> list[Tensor]:
        """The four maps."""
        cells, maps = self.patch_embed(images), []
        for level, stage in enumerate(self.layers):
            assert isinstance(stage, Stage)
            cells = stage.blocks(cells)
            normed = self.get_submodule(f"norm{level}")(cells)
            maps.append(normed.permute(0, 3, 1, 2))
            if stage.downsample is not None:
                cells = stage.downsample(cells)
        return maps


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
