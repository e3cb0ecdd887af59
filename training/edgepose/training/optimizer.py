"""AdamW, and for the matrices inside a network steps of equal length in all directions (Muon).

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the length of a step after
"Muon is scalable for LLM training" (2025), section 2.2. `torch.optim.Muon` takes matrices alone and computes
in bf16, which CPUs emulate; here a convolution's kernel is the matrix of its output channels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
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
            # AdamW's in one call; on a GPU torch has chosen such a way already.
            group["fused"] = all(parameter.device.type == "cpu" for parameter in group["params"])
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
    """(..., m, n) -> of the same shape and singular vectors, with all singular values near 1.

    A round x -> p(s) x, with a polynomial p of the square s = x x^T, makes p(s) s p(s) of the square. So the
    rounds are of squares of the short side alone; the long side is multiplied by before and after them.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.reshape(-1, *x.shape[-2:])
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)
    a, b, c = QUINTIC
    with _unrounded():
        square = x @ x.mT
        turn = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(square)
        for _ in range(ROUNDS):
            now = torch.baddbmm(square, square, square, beta=b, alpha=c)
            now.diagonal(dim1=1, dim2=2).add_(a)
            turn = now @ turn
            square = now @ square @ now
        turned: Tensor = turn @ x
    return (turned.mT if tall else turned).reshape(matrices.shape)


@contextlib.contextmanager
def _unrounded() -> Iterator[None]:
    """Products of whole float32 numbers on a GPU, too.

    What TF32 rounds off may make a square's least eigenvalues negative, and the rounds would blow these up.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
