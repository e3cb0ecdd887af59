"""The exponential moving average of a model's weights: what is evaluated, published and shipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FIRST_STEPS = 10.0  # the average forgets faster at first, else it would remember the random start


class Average:
    """Average of all floating-point state, batch statistics included; counters are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state: dict[str, Tensor] = {name: t.detach().clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After step number `step` (from 0)."""
        share = 1 - min(self._decay, (1 + step) / (FIRST_STEPS + step))
        now = model.state_dict()
        floating = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in floating], [now[name] for name in floating], share)
        for name in now.keys() - set(floating):  # counters
            self.state[name].copy_(now[name])

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        for name, value in self.state.items():
            value.copy_(state[name])
