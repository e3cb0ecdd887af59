"""Every model that can be built can be fed."""

import pytest

from edgepose.export import card
from edgepose.export.specs import CONTRACTS, require_exportable, spec_of
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import BUILDERS, build, family_of


def test_families_without_a_contract_are_refused() -> None:
    families = {family_of(name): name for name in BUILDERS}
    assert CONTRACTS.keys() <= families.keys()
    assert CONTRACTS.keys() == card.FAMILIES.keys()
    for family in families.keys() - CONTRACTS.keys():
        with pytest.raises(EdgeposeError, match=f"{families[family]}: cannot be exported yet; choose one of"):
            require_exportable(families[family])


def test_the_spec_is_as_large_as_the_network_was_built() -> None:
    spec = spec_of("qrpose_edge", build("qrpose_edge", size=(320, 256)))
    assert (spec.family, spec.model, spec.width, spec.height) == ("qrpose", "qrpose_edge", 320, 256)
