"""Starting from given weights: the run begins exactly there, and a file that does not fit is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.loop import Trainer
from edgepose.training.models import build
from edgepose.training.recipe import open_recipe
from edgepose.training.sections import Recipe


def starting_from(weights: str) -> Recipe:
    return open_recipe("qrpose_smoke").model_copy(update={"initial": weights})


def test_a_run_begins_with_the_given_weights(tmp_path: Path) -> None:
    torch.manual_seed(123)  # not the recipe's own seed
    given = build("qrpose_tiny", size=(64, 64)).state_dict()
    save_file(given, tmp_path / "w.safetensors")
    trainer = Trainer(starting_from(str(tmp_path / "w.safetensors")), tmp_path / "run")
    begun = trainer.model.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in given.items())
    assert all(torch.equal(trainer.average.state[name], value) for name, value in given.items())


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_missing_and_foreign_initial_weights_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EdgeposeError, match=r"w\.safetensors"):
        Trainer(starting_from(str(path)), tmp_path / "run")
