"""AdamW, and for the matrices inside a network steps of equal length in all directions (Muon).

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the length of a step after
"Muon is scalable for LLM training" (2025), section 2.2. `torch.optim.Muon` takes matrices alone and computes
in bf16, which CPUs emulate; here a convolution's kernel is the matrix of its output channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")  # the second one of AdamW's parameters alone
MOMENTUM = 0.95
LENGTH = 0.2  # root mean square of a step's elements, as AdamW's tend to have
QUINTIC = (3.4445, -4.775, 2.0315)  # of the singular values, five times: all of them end in about 0.7 to 1.2
ROUNDS = 5


class Muon(torch.optim.AdamW):
    """AdamW for all groups of parameters but those with `orthogonal` above 0.

    Theirs are matrices (or kernels, flattened to them) whose momentum is made orthogonal before it is added:
    each of as many equal blocks of rows for itself. `lr` is either rule's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__([{"orthogonal": 0, **group} for group in groups], lr)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients that there are."""
        kept: list[tuple[Tensor, Tensor | None]] = []
        for group in self.param_groups:
            if not group["orthogonal"]:
                continue
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._turn(parameters, group)
                kept += [(parameter, parameter.grad) for parameter in parameters]
        for parameter, _ in kept:
            parameter.grad = None  # AdamW passes it by
        super().step(closure)
        for parameter, gradient in kept:
            parameter.grad = gradient

    def _turn(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Parameters of one shape together: as many calls for all of them as for one."""
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM))  # Nesterov's
        blocks = torch.unflatten(ahead.flatten(2), 1, (group["orthogonal"], -1))
        length = LENGTH * math.sqrt(max(blocks.shape[2:]))
        turned = orthogonal(blocks).reshape(ahead.shape)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(parameters, turned.unbind(), alpha=group["lr"] * length)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum: Tensor = state["exp_avg"]
        return momentum


def orthogonal(matrices: Tensor) -> Tensor:
    """(..., m, n) -> of the same shape and singular vectors, with all singular values near 1."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    turned: Tensor = x.mT if tall else x
    return turned
