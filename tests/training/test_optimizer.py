"""Muon against torch's own, AdamW's groups against AdamW."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgepose.training.optimizer import Muon, orthogonal


def moved(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: list[Tensor]) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def started(shape: tuple[int, ...], steps: int = 4) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(shape, generator=generator)
    return start, [torch.randn(shape, generator=generator) for _ in range(steps)]


def ours(start: Tensor, gradients: list[Tensor], matrices: int) -> Tensor:
    parameter = torch.nn.Parameter(start.clone())
    group = {"params": [parameter], "weight_decay": 0.1, "orthogonal": matrices}
    return moved(Muon([group], 0.02), parameter, gradients)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 40)])
def test_matrices_learn_as_with_torchs_muon(shape: tuple[int, int]) -> None:
    """torch's multiplies in bf16: of a step of 0.02 * 0.2 * sqrt(longer side), hundredths are rounding."""
    start, gradients = started(shape)
    parameter = torch.nn.Parameter(start.clone())
    theirs = torch.optim.Muon([parameter], 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    expected = moved(theirs, parameter, gradients)
    walked = (expected - start).norm()
    assert (ours(start, gradients, 1) - expected).norm() < 0.03 * walked


def test_blocks_of_rows_are_turned_each_by_itself() -> None:
    start, gradients = started((48, 16))
    parts = [
        ours(start[rows], [g[rows] for g in gradients], 1)
        for rows in (slice(16), slice(16, 32), slice(32, 48))
    ]
    torch.testing.assert_close(ours(start, gradients, 3), torch.cat(parts))


def test_a_kernel_is_the_matrix_of_its_output_channels() -> None:
    start, gradients = started((8, 3, 4, 4))
    flat = ours(start.flatten(1), [g.flatten(1) for g in gradients], 1)
    torch.testing.assert_close(ours(start, gradients, 1).flatten(1), flat)


def test_parameters_of_one_shape_learn_each_by_itself() -> None:
    start, gradients = started((16, 24), steps=8)
    first, second = (torch.nn.Parameter(factor * start) for factor in (1, -3))
    optimizer = Muon([{"params": [first, second], "weight_decay": 0.1, "orthogonal": 1}], 0.02)
    for one, other in zip(gradients[:4], gradients[4:], strict=True):
        first.grad, second.grad = one.clone(), other.clone()
        optimizer.step()
    torch.testing.assert_close(first.detach(), ours(start, gradients[:4], 1))
    torch.testing.assert_close(second.detach(), ours(-3 * start, gradients[4:], 1))


def test_other_groups_learn_as_with_adamw() -> None:
    start, gradients = started((8, 5))
    parameter = torch.nn.Parameter(start.clone())
    theirs = torch.optim.AdamW([parameter], 0.02, weight_decay=0.1, fused=True)
    expected = moved(theirs, parameter, gradients)
    assert torch.equal(ours(start, gradients, 0), expected)


def test_what_has_no_gradient_stays() -> None:
    start, _ = started((8, 5))
    frozen, learning = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    group = {"params": [frozen, learning], "weight_decay": 0.1, "orthogonal": 1}
    gradient = torch.ones_like(start)
    moved(Muon([group], 0.02), learning, [gradient])
    assert torch.equal(frozen, start)
    assert not torch.equal(learning, start)
    assert torch.equal(learning.grad, gradient)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_orthogonal_keeps_the_directions_and_evens_out_their_lengths(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, short, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, short, generator=generator))[0]
    lengths = torch.linspace(0.2, 1.0, short)
    turned = orthogonal(scale * (left * lengths) @ right.mT)
    inside = left.mT @ turned @ right  # diagonal, where the singular vectors are kept
    assert (inside - torch.diag(inside.diag())).abs().max() < 1e-3
    assert inside.diag().min() > 0.6
    assert inside.diag().max() < 1.3


@pytest.mark.parametrize("shape", [(80, 720), (1280, 40), (2, 48, 48)])
def test_what_a_matrix_lacks_stays_away(shape: tuple[int, ...]) -> None:
    """Of a gradient of three directions, as of a batch with few people: rounding must blow up no other."""
    generator = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(*shape[:-1], 3, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(*shape[:-2], shape[-1], 3, generator=generator))[0]
    turned = orthogonal(left @ torch.diag(torch.tensor([1.0, 0.7, 0.4])) @ right.mT)
    kept = left @ (left.mT @ turned @ right) @ right.mT
    assert (turned - kept).abs().max() < 1e-4
    assert torch.linalg.matrix_norm(turned).min() > 0.6 * 3**0.5
