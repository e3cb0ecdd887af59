"""How each named model is fed and read."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from edgepose.export.contract import Contract
from edgepose.export.single_stage import QUERIES, SINGLE_STAGE
from edgepose.export.two_stage import TWO_STAGE
from edgepose.runtime.spec import Spec
from edgepose.training.models import family_of

CONTRACTS: dict[str, Contract] = {"qrpose": SINGLE_STAGE, "querypose": QUERIES, "sharpose": TWO_STAGE}


def spec_of(name: str, model: nn.Module) -> Spec:
    """The spec of the network `model`, built under `name`."""
    family = family_of(name)
    contract = CONTRACTS[family]
    width, height = cast(Any, model).config.size
    plain = Spec(family=family, model=name, width=width, height=height, graphs=tuple(contract.ports))
    return contract.described(plain, model)
