"""How joints miss: a normalising flow learns the density of errors (RealNVP, section 10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

COUPLINGS, HIDDEN = 6, 64


class Flow(nn.Module):
    """Maps errors, in units of their deviations, to a normal density; training alone needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.ModuleList(_network() for _ in range(COUPLINGS))
        self.s = nn.ModuleList(_network().append(nn.Tanh()) for _ in range(COUPLINGS))

    def start(self) -> None:
        """Nearly the normal density itself, before training."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, gain=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, errors: Tensor) -> Tensor:
        """Logarithm of the density (...) of errors (..., 2)."""
        grown = torch.zeros_like(errors[..., 0])
        for index in reversed(range(COUPLINGS)):
            scale, shift = self.s[index], self.t[index]
            keep = errors.new_tensor((1, 0) if index % 2 else (0, 1))  # one coordinate moves the other
            kept, change = errors * keep, 1 - keep
            log_scale, offset = scale(kept) * change, shift(kept) * change
            errors = change * (errors - offset) * torch.exp(-log_scale) + kept
            grown = grown - log_scale.sum(-1)
        return grown - errors.square().sum(-1) / 2 - math.log(2 * math.pi)


def _network() -> nn.Sequential:
    layers = (nn.Linear(2, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU())
    return nn.Sequential(*layers, nn.Linear(HIDDEN, 2))
