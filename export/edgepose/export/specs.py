"""How each named model is fed and read."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from edgepose.export.contract import Contract
from edgepose.export.single_stage import SINGLE_STAGE
from edgepose.export.two_stage import TWO_STAGE
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec
from edgepose.training.models import BUILDERS, family_of

CONTRACTS: dict[str, Contract] = {"qrpose": SINGLE_STAGE, "sharpose": TWO_STAGE}


def require_exportable(name: str) -> None:
    """Raises EdgeposeError for a model of a family that cannot be exported yet, and for an unknown one."""
    if family_of(name) not in CONTRACTS:
        known = ", ".join(model for model in BUILDERS if family_of(model) in CONTRACTS)
        raise EdgeposeError(f"{name}: cannot be exported yet; choose one of {known}")


def spec_of(name: str, model: nn.Module) -> Spec:
    """The spec of the network `model`, built under `name`. Raises as `require_exportable`."""
    require_exportable(name)
    family = family_of(name)
    contract = CONTRACTS[family]
    width, height = cast(Any, model).config.size
    plain = Spec(family=family, model=name, width=width, height=height, graphs=tuple(contract.ports))
    return contract.described(plain, model)
