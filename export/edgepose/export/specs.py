"""How each named model is fed and read."""

from __future__ import annotations

from edgepose.runtime.spec import Spec
from edgepose.training.models import check_name

FAMILIES = {
    "qrpose": ("qrpose_tiny", "qrpose_edge", "qrpose_hrnet32", "qrpose_hrnet48", "qrpose_dla34"),
}


def spec_of(name: str, size: tuple[int, int]) -> Spec:
    """The spec of a model by name, built for inputs of `size` (width, height) pixels.

    Raises EdgeposeError naming the nearest known model.
    """
    check_name(name)
    family = next(family for family, models in FAMILIES.items() if name in models)
    return Spec(family=family, model=name, width=size[0], height=size[1])
