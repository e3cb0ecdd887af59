"""How each named model is fed and read."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from edgepose.export.contract import Contract
from edgepose.export.single_stage import SINGLE_STAGE
from edgepose.export.two_stage import TWO_STAGE
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec
from edgepose.training.models import check_name

FAMILIES = {
    "qrpose": ("qrpose_tiny", "qrpose_edge", "qrpose_hrnet32", "qrpose_hrnet48", "qrpose_dla34"),
    "sharpose": (
        *("sharpose_tiny_128x96", "sharpose_small_256x192"),
        *("sharpose_base_256x192", "sharpose_base_384x288"),
    ),
}

CONTRACTS: dict[str, Contract] = {"qrpose": SINGLE_STAGE, "sharpose": TWO_STAGE}


def family_of(name: str) -> str:
    """The family of a model by name.

    Raises EdgeposeError naming the nearest known model, or those that can be exported if it is none of them.
    """
    check_name(name)
    for family, models in FAMILIES.items():
        if name in models:
            return family
    known = ", ".join(model for models in FAMILIES.values() for model in models)
    raise EdgeposeError(f"{name}: cannot be exported yet; choose one of {known}")


def spec_of(name: str, model: nn.Module) -> Spec:
    """The spec of the network `model`, built under `name`. Raises as `family_of`."""
    family = family_of(name)
    contract = CONTRACTS[family]
    width, height = cast(Any, model).config.size
    plain = Spec(family=family, model=name, width=width, height=height, graphs=tuple(contract.ports))
    return contract.described(plain, model)
