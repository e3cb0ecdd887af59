"""What a family brings to export: what its graphs read and give, and how near ONNX must be to PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgepose.runtime.agreement import Difference
from edgepose.runtime.spec import Spec


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
    traced: Difference  # how far ONNX may be from PyTorch, both in float32
