"""A small pose network with what troubles compression: residual adds, a pyramid, groups, top-k, gathers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

K, M, N = 5, 24, 6  # joints, candidates, slots


def cbr(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = cbr(inputs, outputs, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.short(x))


def gather_pixels(maps: Tensor, index: Tensor) -> Tensor:
    """(B, C, H, W) at (B, M) flat pixels -> (B, C, M, 1)."""
    flat = maps.flatten(2)
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1)).unsqueeze(-1)


class StandIn(nn.Module):
    """images (B, 3, S, S) -> scores (B, N), boxes (B, N, 4), keypoints (B, N, K, 2), keypoint_scores (B, N, K)."""  # noqa: E501

    def __init__(self, side: int = 64, width: int = 16) -> None:
        super().__init__()
        self.side = side // 4
        self.stem = nn.Sequential(cbr(3, width, 3, 2), cbr(width, width, 3, 2))
        self.layer1 = Residual(width, width, 1)
        self.layer2 = Residual(width, 2 * width, 2)
        self.lateral1, self.lateral2 = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 1)
        self.inst = cbr(width, width)
        self.kpt = nn.Sequential(cbr(width, 8 * K, 1), cbr(8 * K, 8 * K, 3, 1, K))
        self.score0, self.off1 = nn.Conv2d(width, 1, 1), nn.Conv2d(8 * K, 2 * K, 1, groups=K)
        self.mix = cbr(8 * K, width, 1)
        self.off2, self.conf, self.score = (
            nn.Conv2d(width, 2 * K, 1),
            nn.Conv2d(width, K, 1),
            nn.Conv2d(width, 1, 1),
        )
        self.register_buffer("ramp", torch.arange(self.side**2).float()[None] / self.side**2 * 1e-3)

    def forward(self, images: Tensor) -> Mapping[str, Tensor]:
        low = self.layer1(self.stem(images))
        up = nn.functional.interpolate(self.lateral2(self.layer2(low)), scale_factor=2.0, mode="nearest")
        x = up + self.lateral1(low)
        inst, kpt = self.inst(x), self.kpt(x)
        _, index = torch.topk(self.score0(inst).flatten(1) + self.ramp, M, 1)
        index = index.int()
        y = index // self.side
        place = torch.stack([index - y * self.side, y], -1).float()  # (B, M, 2)
        wide = index.long()
        query = self.mix(gather_pixels(kpt, wide))  # (B, C, M, 1)
        offsets = gather_pixels(self.off1(kpt), wide) + self.off2(query)
        values, best = torch.topk(torch.sigmoid(self.score(query)).flatten(1), N, 1)
        poses = offsets.flatten(2).transpose(1, 2).gather(1, best[:, :, None].expand(-1, -1, 2 * K))
        place = place.gather(1, best[:, :, None].expand(-1, -1, 2))
        keypoints = 4 * (poses.unflatten(2, (K, 2)) + place[:, :, None])
        conf = torch.sigmoid(self.conf(query)).flatten(2).transpose(1, 2)
        return {
            "scores": values,
            "boxes": torch.cat([keypoints.amin(2), keypoints.amax(2)], -1),
            "keypoints": keypoints,
            "keypoint_scores": conf.gather(1, best[:, :, None].expand(-1, -1, K)),
        }


def trained_like(seed: int = 0) -> StandIn:
    """The network with normalisation statistics and weights that are not degenerate."""
    torch.manual_seed(seed)
    model = StandIn().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            statistics = module.state_dict()  # shares memory
            statistics["running_var"].uniform_(0.5, 1.5)
            statistics["running_mean"].normal_(0, 0.2)
            module.weight.data.uniform_(0.8, 1.2)
    nn.init.normal_(model.off1.weight, std=0.3)
    return model
