"""Every model that can be built can be fed."""

from edgepose.compression.scopes import FLOAT_SCOPES
from edgepose.export import card
from edgepose.export.specs import CONTRACTS, spec_of
from edgepose.training.models import BUILDERS, build, family_of


def test_every_family_that_can_be_built_can_be_exported() -> None:
    families = {family_of(name) for name in BUILDERS}
    assert families == CONTRACTS.keys() == FLOAT_SCOPES.keys() == card.FAMILIES.keys()
    assert families == card.INTERFACES.keys()


def test_the_spec_is_as_large_as_the_network_was_built() -> None:
    spec = spec_of("qrpose_edge", build("qrpose_edge", size=(320, 256)))
    assert (spec.family, spec.model, spec.width, spec.height) == ("qrpose", "qrpose_edge", 320, 256)


def test_the_spec_has_the_joints_that_the_network_was_built_for() -> None:
    spec = spec_of("querypose_tiny", build("querypose_tiny", size=(96, 64), skeleton="crowdpose14"))
    assert (spec.family, spec.width, spec.height, spec.resize) == ("querypose", 96, 64, "letterbox")
    assert spec.skeleton == "crowdpose14"
