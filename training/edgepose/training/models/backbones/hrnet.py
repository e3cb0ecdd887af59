"""HRNet under its authors' names, and the neck that joins its four branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgepose.training.models.backbones.body import Body
from edgepose.training.models.backbones.resnet import BasicBlock, Bottleneck
from edgepose.training.models.backbones.topdown import raised
from edgepose.training.models.blocks import conv_bn, conv_bn_relu


class Exchange(nn.Module):
    """One HRNet module: four residual blocks on each branch, then each branch becomes the sum of all.

    Branch b has widths[b] channels and half the size of the branch before it.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(w, w) for _ in range(4))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleDict({str(j): _path(widths, j, i) for j in range(len(widths)) if j != i})
            for i in range(len(widths))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """As many maps as came in, of the same shapes."""
        maps = [branch(features) for branch, features in zip(self.branches, maps, strict=True)]
        fused = []
        for own, paths in zip(maps, self.fuse_layers, strict=True):
            assert isinstance(paths, nn.ModuleDict)
            parts = [path(maps[int(source)]) for source, path in paths.items()]
            fused.append(torch.relu(sum(parts, own)))
        return fused


def _path(widths: Sequence[int], source: int, target: int) -> nn.Sequential:
    """From branch `source` to the size and channels of branch `target`."""
    if source > target:
        # Nearest, as the weights were trained with.
        raise_ = nn.Upsample(scale_factor=2.0 ** (source - target), mode="nearest")
        return conv_bn(widths[source], widths[target], 1).append(raise_)
    steps = (conv_bn_relu(widths[source], widths[source], 3, 2) for _ in range(target - source - 1))
    return nn.Sequential(*steps, conv_bn(widths[source], widths[target], 3, 2))


class HrNet(Body):
    """`width` is 32 or 48: the channels of the stride-4 branch; each further branch has twice as many."""

    surplus = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    fresh = tuple(
        f"stage4.2.fuse_layers.{branch}." for branch in (1, 2, 3)
    )  # a pose HRNet gives out one branch

    def __init__(self, width: int) -> None:
        widths = (width, 2 * width, 4 * width, 8 * width)
        super().__init__(widths)
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 64), *(Bottleneck(256, 64) for _ in range(3)))
        # A new branch starts from the coarsest one, under the names [branch.0] of the authors' lists.
        self.transition1 = nn.ModuleList([conv_bn_relu(256, widths[0]), _halved(256, widths[1])])
        self.stage2 = nn.Sequential(Exchange(widths[:2]))
        self.transition2 = nn.ModuleDict({"2": _halved(widths[1], widths[2])})
        self.stage3 = nn.Sequential(*(Exchange(widths[:3]) for _ in range(4)))
        self.transition3 = nn.ModuleDict({"3": _halved(widths[2], widths[3])})
        self.stage4 = nn.Sequential(*(Exchange(widths) for _ in range(3)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """The four branches."""
        features = torch.relu(self.bn1(self.conv1(images)))
        features = self.layer1(torch.relu(self.bn2(self.conv2(features))))
        maps = self.stage2([start(features) for start in self.transition1])
        maps = self.stage3([*maps, self.transition2["2"](maps[-1])])
        return list(self.stage4([*maps, self.transition3["3"](maps[-1])]))


def _halved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_bn_relu(inputs, outputs, 3, 2))


class Branches(nn.Module):
    """Maps at strides 4, 8, 16, 32 of `widths` channels -> (B, channels, H/4, W/4).

    One 1x1 convolution of all maps, raised and concatenated (specs/qrpose.md section 3). As it commutes with
    raising and is a sum over maps, each map has its share while still small: the same function for an eighth
    of the multiplications.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.shares = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in widths)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The stride-4 map."""
        total, *coarser = (share(features) for share, features in zip(self.shares, maps, strict=True))
        for level, features in enumerate(coarser, 1):
            total = total + raised(features, 2**level)
        return torch.relu(self.norm(total))
