"""Every model that can be built can be fed."""

from pathlib import Path

import torch

from edgepose.compression.scopes import FLOAT_SCOPES
from edgepose.compression.source_model import load_model
from edgepose.export import card
from edgepose.export.specs import CONTRACTS, spec_of
from edgepose.runtime.agreement import AGREEMENTS
from edgepose.training.models import BUILDERS, build, family_of


def test_every_family_that_can_be_built_can_be_exported() -> None:
    families = {family_of(name) for name in BUILDERS}
    assert families == CONTRACTS.keys() == FLOAT_SCOPES.keys() == card.FAMILIES.keys()
    assert families == card.INTERFACES.keys() == AGREEMENTS.keys()


def test_the_spec_is_as_large_as_the_network_was_built() -> None:
    spec = spec_of("qrpose_edge", build("qrpose_edge", size=(320, 256)))
    assert (spec.family, spec.model, spec.width, spec.height) == ("qrpose", "qrpose_edge", 320, 256)


def test_what_the_authors_file_says_goes_into_the_spec(tmp_path: Path) -> None:
    name = "sharpose_tiny_128x96"
    config = "model = dict(backbone=dict(alpha=0.3), test_cfg=dict(qp_threshold=1.2))"
    path = tmp_path / "published.pth"
    torch.save({"meta": {"config": config}, "state_dict": build(name).state_dict()}, path)
    published = spec_of(name, load_model(name, path)[0])
    plain = spec_of(name, build(name))
    assert (plain.refine_below, plain.sharp_cells) == (0.99, 5)  # 0.4 of 12 cells
    assert (published.refine_below, published.sharp_cells) == (1.2, 4)
    assert published.limit("int8") == 1.2


def test_the_spec_has_the_joints_that_the_network_was_built_for() -> None:
    spec = spec_of("querypose_tiny", build("querypose_tiny", size=(96, 64), skeleton="crowdpose14"))
    assert (spec.family, spec.width, spec.height, spec.resize) == ("querypose", 96, 64, "letterbox")
    assert spec.skeleton == "crowdpose14"
