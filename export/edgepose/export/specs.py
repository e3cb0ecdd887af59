"""How each named model is fed and read."""

from __future__ import annotations

from edgepose.runtime.spec import Spec
from edgepose.training.models import check_name

SPECS = {"qrpose_tiny": Spec(family="qrpose", model="qrpose_tiny", width=256, height=256)}


def spec_of(name: str) -> Spec:
    """The spec of a model by name. Raises EdgeposeError naming the nearest known model."""
    check_name(name)
    return SPECS[name]
