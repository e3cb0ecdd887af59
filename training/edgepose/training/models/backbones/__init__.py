"""Feature extractors: from normalised pixels to one stride-4 map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from edgepose.training.models.backbones.body import Body
from edgepose.training.models.backbones.dla import Dla34, DlaUp
from edgepose.training.models.backbones.hrnet import Branches, HrNet
from edgepose.training.models.backbones.resnet import ResNet
from edgepose.training.models.backbones.topdown import TopDown

# A body that published weights fit, and the neck that makes one map of its four.
BACKBONES: dict[str, tuple[Callable[[], Body], Callable[[Sequence[int], int], nn.Module]]] = {
    "resnet18": (partial(ResNet, 18), TopDown),
    "resnet34": (partial(ResNet, 34), TopDown),
    "hrnet32": (partial(HrNet, 32), Branches),
    "hrnet48": (partial(HrNet, 48), Branches),
    "dla34": (Dla34, DlaUp),
}


def build_backbone(name: str, channels: int) -> nn.Sequential:
    """`body`, then `neck`: images (B, 3, H, W), H and W multiples of 32 -> (B, channels, H/4, W/4)."""
    body, neck = BACKBONES[name]
    made = body()
    return nn.Sequential(OrderedDict(body=made, neck=neck(made.widths, channels)))
