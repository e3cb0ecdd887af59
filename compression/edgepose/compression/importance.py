"""How much each channel matters: by the size of its weights, or by what the loss would lose with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.compression.channels import Group, Part, weight_of
from edgepose.runtime.oks import F64
from edgepose.runtime.progress import track
from edgepose.training.families.course import Course
from edgepose.training.models.widths import axis_of

NORM = 1  # dimensions of a normalisation's weight


def by_magnitude(model: nn.Module, groups: Sequence[Group]) -> list[F64]:
    """(units,) for each group: the norm of all weights that would leave, by the group's mean."""
    found = []
    for group in groups:
        parts = [part for part in group.parts if weight_of(model, part).ndim > NORM]
        squares = sum(_per_unit(model, weight_of(model, part).detach().square(), part) for part in parts)
        sizes = np.sqrt(np.asarray(squares, np.float64))
        found.append(sizes / max(sizes.mean(), 1e-12))
    return found


def by_taylor(model: nn.Module, groups: Sequence[Group], course: Course[Any, Any], batches: int) -> list[F64]:
    """(units,) for each group: mean square of what the family's loss would change by without the unit.

    To first order that is the product of weight and gradient, over all that reads the unit's channels
    (Molchanov et al. 2019, eq. 8). Normalisation keeps its statistics, the model is left as it was.
    """
    totals = [np.zeros(group.units) for group in groups]
    model.eval()
    model.training = True  # the network's own forward is training's, its normalisation layers' is not
    for step, batch in track(islice(enumerate(course.batches(0)), batches), "importance", batches):
        torch.manual_seed(step)
        model.zero_grad()
        terms = course.terms(model, batch, course.recipe.schedule.steps)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        for total, group in zip(totals, groups, strict=True):
            total += np.square(sum(_per_unit(model, _change(model, part), part) for part in group.readers))
    model.zero_grad()
    model.eval()
    return [total / batches for total in totals]


def _change(model: nn.Module, part: Part) -> Tensor:
    weight = weight_of(model, part)
    return weight.detach() * weight.grad if weight.grad is not None else torch.zeros_like(weight)


def _per_unit(model: nn.Module, values: Tensor, part: Part) -> F64:
    """(units,) sums of what each unit has in the weight's `values`."""
    own = axis_of(model.get_submodule(part.layer), part.axis)
    kept = [axis for axis in range(values.ndim) if axis != own]
    each = values.sum(kept) if kept else values
    return np.asarray(each[torch.from_numpy(part.indices)].sum(1), np.float64)
