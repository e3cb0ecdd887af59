"""What a family brings to export: what its graphs read and give, and when two answers are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import numpy as np
from torch import nn

from edgepose.compression.execution import Outputs
from edgepose.runtime.spec import Spec


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences between two results; a kind of results says in fields of which figures."""

    def within(self, limit: Difference) -> bool:
        """Whether every figure is at most that of `limit` (not-a-number is not)."""
        return all(mine <= allowed for mine, allowed in zip(astuple(self), astuple(limit), strict=True))


Kind = TypeVar("Kind", bound=Difference)


def largest(differences: Sequence[Kind]) -> Kind:
    """The largest of each figure."""
    figures = np.max([astuple(one) for one in differences], axis=0).tolist()
    return type(differences[0])(*figures)


@dataclass(frozen=True, slots=True)
class Ports:
    """Names of a graph's inputs and outputs, in their order. All have the batch as their first axis."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """One row of the table of families (`specs.CONTRACTS`)."""

    # By graph, in the order in which they run: an input other than INPUT is an output of an earlier graph.
    ports: Mapping[str, Ports]
    # The trained network's graphs: each is called with its inputs by name and gives its outputs by name.
    modules: Callable[[Any], Mapping[str, nn.Module]]
    prepared: Callable[[Any], nn.Module]  # the network, or a copy rewritten for engines, of the same outputs
    described: Callable[[Spec, Any], Spec]  # the spec with what else the network tells
    difference: Callable[[Outputs, Outputs, Spec], Difference]  # of what one graph was expected to give
    traced: Difference  # how far ONNX may be from PyTorch, both in float32
    views: Mapping[str, Difference]  # how far another machine may be from the golden vectors, by view
