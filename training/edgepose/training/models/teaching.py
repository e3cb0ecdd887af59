"""How far a student is from its teacher, for chances and for maps; 0 where it says the same."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """Sum of KL(teacher, student) of the chances whose logits are `taught` and `logits`, of one shape."""
    sure, unsure = functional.logsigmoid(taught), functional.logsigmoid(-taught)
    apart = sure.exp() * (sure - functional.logsigmoid(logits))
    apart = apart + unsure.exp() * (unsure - functional.logsigmoid(-logits))
    total: Tensor = apart.sum()
    return total


def missed(features: Tensor, taught: Tensor) -> Tensor:
    """The share of the teacher's energy that the student's features, of the same shape, miss."""
    return (features - taught).square().sum() / taught.square().sum().clamp(min=1e-6)
