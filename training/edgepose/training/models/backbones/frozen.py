"""Normalisation that no longer learns, as detectron2 fine-tunes its ResNets."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from edgepose.training.models.backbones.resnet import ResNet


class FrozenNorm(nn.Module):
    """What a batch normalisation does in evaluation, always; it holds buffers, no parameters."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach())

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        mean, var = self.running_mean, self.running_var
        return functional.batch_norm(features, mean, var, self.weight, self.bias, eps=self.eps)


def frozen(body: ResNet) -> ResNet:
    """`body`, changed in place: no normalisation learns, nor do the convolutions up to stride 4."""
    for part in list(body.modules()):
        for name, module in part.named_children():
            if isinstance(module, nn.BatchNorm2d):
                setattr(part, name, FrozenNorm(module))
    for early in (body.conv1, body.layer1):
        early.requires_grad_(False)
    return body
