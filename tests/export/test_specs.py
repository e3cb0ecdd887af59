"""Every model that can be built can be fed."""

from edgepose.export.specs import FAMILIES, spec_of
from edgepose.training.models import BUILDERS


def test_every_model_has_a_family() -> None:
    assert [name for models in FAMILIES.values() for name in models] == list(BUILDERS)


def test_the_spec_is_as_large_as_the_network_was_built() -> None:
    spec = spec_of("qrpose_edge", (320, 256))
    assert (spec.family, spec.model, spec.width, spec.height) == ("qrpose", "qrpose_edge", 320, 256)
