"""ResNet-18, -34 and -50 without their classifier, under torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepose.training.models.backbones.body import Body
from edgepose.training.models.blocks import conv_bn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # by depth: how many at each stride


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Where the shape changes a 1x1 convolution with its normalisation, else nothing."""
    same = inputs == outputs and stride == 1
    return nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H/stride, W/stride)."""
        inner = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut.

    The 3x3 one has the stride, as in torchvision and in QueryPose (the ResNet paper has it in the first 1x1).
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4*width, H/stride, W/stride)."""
        inner = torch.relu(self.bn1(self.conv1(features)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        return torch.relu(self.bn3(self.conv3(inner)) + self.downsample(features))


class ResNet(Body):
    """`depth` is 18, 34 or 50."""

    def __init__(self, depth: int) -> None:
        block = Bottleneck if depth >= 50 else BasicBlock
        e = block.expansion
        super().__init__((64 * e, 128 * e, 256 * e, 512 * e))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        n4, n8, n16, n32 = BLOCKS[depth]
        self.layer1 = _stage(block, 64, 64, 1, n4)
        self.layer2 = _stage(block, 64 * e, 128, 2, n8)
        self.layer3 = _stage(block, 128 * e, 256, 2, n16)
        self.layer4 = _stage(block, 256 * e, 512, 2, n32)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The four maps."""
        features = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = layer(features)
            maps.append(features)
        return maps


def _stage(
    block: type[BasicBlock | Bottleneck], inputs: int, width: int, stride: int, count: int
) -> nn.Sequential:
    later = (block(width * block.expansion, width) for _ in range(count - 1))
    return nn.Sequential(block(inputs, width, stride), *later)
