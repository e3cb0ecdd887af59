"""Every model that can be built can be fed."""

import pytest

from edgepose.export.specs import FAMILIES, spec_of
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import BUILDERS, build


def test_families_name_models_and_the_others_are_refused() -> None:
    exported = [name for models in FAMILIES.values() for name in models]
    assert set(exported) <= set(BUILDERS)
    for name in set(BUILDERS) - set(exported):
        with pytest.raises(EdgeposeError, match=f"{name}: cannot be exported yet; choose one of qrpose_tiny"):
            spec_of(name, (64, 64))


def test_the_spec_is_as_large_as_the_network_was_built() -> None:
    spec = spec_of("qrpose_edge", build("qrpose_edge", size=(320, 256)))
    assert (spec.family, spec.model, spec.width, spec.height) == ("qrpose", "qrpose_edge", 320, 256)
