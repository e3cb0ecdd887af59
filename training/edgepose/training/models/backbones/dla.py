"""DLA-34 under its authors' names, and the neck of plain convolutions that raises it to stride 4.

After "Deep Layer Aggregation" (CVPR 2018); the neck is what CenterNet made of it, but every deformable
convolution is a plain one and every transposed one a bilinear resize (specs/qrpose.md section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgepose.training.models.backbones.body import Body
from edgepose.training.models.backbones.topdown import raised
from edgepose.training.models.blocks import conv_bn, conv_bn_relu


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut that comes from outside."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor, shortcut: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, outputs, H/stride, W/stride) -> the latter's shape."""
        inner = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(inner)) + shortcut)


class Root(nn.Module):
    """What merges the maps of a tree: a 1x1 convolution of all of them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps of `inputs` channels together -> (B, outputs, H, W)."""
        return torch.relu(self.bn(self.conv(torch.cat(maps, 1))))


class Tree(nn.Module):
    """Two blocks and their root, which also sees `further` channels of maps from outside.

    With `keeps_input` the root sees the tree's own input too, pooled.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, further: int = 0, keeps_input: bool = False
    ) -> None:
        super().__init__()
        self.keeps_input = keeps_input
        self.downsample = nn.MaxPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.project = conv_bn(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.tree1 = Block(inputs, outputs, stride)
        self.tree2 = Block(outputs, outputs)
        self.root = Root(2 * outputs + further + (inputs if keeps_input else 0), outputs)

    def forward(self, features: Tensor, *outside: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        bottom = self.downsample(features)
        first = self.tree1(features, self.project(bottom))
        second = self.tree2(first, first)
        kept = (bottom,) if self.keeps_input else ()
        return cast(Tensor, self.root(second, first, *kept, *outside))


class TreeOfTwo(nn.Module):
    """Two trees; the second one's root sees the whole one's input, pooled, and the first tree."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.downsample = nn.MaxPool2d(2, 2)
        self.tree1 = Tree(inputs, outputs, 2)
        self.tree2 = Tree(outputs, outputs, further=inputs + outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/2, W/2)."""
        first = self.tree1(features)
        return cast(Tensor, self.tree2(first, self.downsample(features), first))


class Dla34(Body):
    """The body of DLA-34."""

    # The two projections take part in nothing; later files leave them out.
    surplus = ("fc.", "level3.project.", "level4.project.")

    def __init__(self) -> None:
        super().__init__((64, 128, 256, 512))
        self.base_layer = conv_bn_relu(3, 16, 7)
        self.level0 = conv_bn_relu(16, 16)
        self.level1 = conv_bn_relu(16, 32, 3, 2)
        self.level2 = Tree(32, 64, 2)
        self.level3 = TreeOfTwo(64, 128)
        self.level4 = TreeOfTwo(128, 256)
        self.level5 = Tree(256, 512, 2, keeps_input=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The four maps."""
        features = self.level1(self.level0(self.base_layer(images)))
        maps = []
        for level in (self.level2, self.level3, self.level4, self.level5):
            features = level(features)
            maps.append(features)
        return maps


class Aggregation(nn.Module):
    """Iterative deep aggregation: map after map, raised to the first one's size, joins the sum so far.

    The first map has `channels`; the others have `widths` channels and are smaller by `factors`.
    """

    def __init__(self, widths: Sequence[int], factors: Sequence[int], channels: int) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.projects = nn.ModuleList(conv_bn_relu(width, channels) for width in widths)
        self.merges = nn.ModuleList(conv_bn_relu(channels, channels) for _ in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """As many maps as came in, all of the first one's shape; the last has seen all."""
        merged = [maps[0]]
        for project, merge, factor, features in zip(
            self.projects, self.merges, self.factors, maps[1:], strict=True
        ):
            merged.append(merge(merged[-1] + raised(project(features), factor)))
        return merged


class DlaUp(nn.Module):
    """Maps at strides 4, 8, 16, 32 of `widths` channels -> (B, channels, H/4, W/4).

    The aggregations of growing depth give a best map each at strides 16, 8 and 4; the last one joins these.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        w4, w8, w16, w32 = widths
        self.to16 = Aggregation([w32], [2], w16)
        self.to8 = Aggregation([w16, w16], [2, 2], w8)
        self.to4 = Aggregation([w8, w8, w8], [2, 2, 2], w4)
        self.narrow = conv_bn_relu(w4, channels, 1) if w4 != channels else nn.Identity()
        self.join = Aggregation([w8, w16], [2, 4], channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The stride-4 map."""
        c4, c8, c16, c32 = maps
        at16 = self.to16([c16, c32])
        at8 = self.to8([c8, *at16])
        at4 = self.to4([c4, *at8])
        return cast(Tensor, self.join([self.narrow(at4[-1]), at8[-1], at16[-1]])[-1])
