"""How each named model is fed and read."""

from __future__ import annotations

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec
from edgepose.training.models import check_name

FAMILIES = {"qrpose": ("qrpose_tiny", "qrpose_edge", "qrpose_hrnet32", "qrpose_hrnet48", "qrpose_dla34")}


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


def spec_of(name: str, size: tuple[int, int]) -> Spec:
    """The spec of a model built for inputs of `size` (width, height) pixels. Raises as `family_of`."""
    return Spec(family=family_of(name), model=name, width=size[0], height=size[1])
