"""Files of pruned weights: the network becomes as narrow as they say, or they are refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.checkpoint import save_tensors
from edgepose.training.loop import CHECKPOINT, WEIGHTS
from edgepose.training.models import build, load_published
from edgepose.training.models.weights import read_published, read_weights
from edgepose.training.models.widths import WIDTHS, Widths, narrow, to_metadata, width_of
from edgepose.training.recipe import open_recipe
from edgepose.training.run import train_and_score
from edgepose.training.sections import Recipe

# qrpose_tiny with 24 of 32 channels in one place: who makes them, their normalisation, who reads them.
NARROW: Widths = {"inst.0.0": (24, 64), "inst.0.1": (24,), "inst.1.0": (32, 24)}


def narrowed() -> nn.Module:
    """By hand, without the code that reads files."""
    torch.manual_seed(0)
    model = build("qrpose_tiny", size=(64, 64))
    old, reader = model.inst[0][0], model.inst[1][0]
    model.inst[0][0] = nn.Conv2d(64, 24, 3, 1, 1, bias=False)
    model.inst[0][1] = nn.BatchNorm2d(24)
    model.inst[1][0] = nn.Conv2d(24, 32, 3, 1, 1, bias=False)
    with torch.no_grad():
        model.inst[0][0].weight.copy_(old.weight[:24])
        model.inst[1][0].weight.copy_(reader.weight[:, :24])
    return model.eval()


def file_of(model: nn.Module, widths: Widths, path: Path) -> Path:
    save_tensors(path, model.state_dict(), to_metadata(widths))
    return path


def test_a_fresh_network_takes_the_widths_of_the_file(tmp_path: Path) -> None:
    expected = narrowed()
    model = build("qrpose_tiny", size=(64, 64))
    assert load_published(model, file_of(expected, NARROW, tmp_path / "w.safetensors")) == NARROW
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, other = model.eval()(images), expected(images)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {name: width_of(model.get_submodule(name)) for name in NARROW} == NARROW


def test_a_file_without_widths_changes_nothing(tmp_path: Path) -> None:
    model = build("qrpose_tiny", size=(64, 64))
    assert load_published(model, file_of(model, {}, tmp_path / "w.safetensors")) == {}
    with pytest.raises(EdgeposeError, match=r"of another model: inst\.0\.0\.weight is \(24, 64, 3, 3\)"):
        load_published(model, file_of(narrowed(), {}, tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("widths", "sentence"),
    [
        ({"nobody": (8, 8)}, "nobody is 8x8 in it, not there in this one"),
        ({"inst.0.0": (24,)}, "inst.0.0 is 24 in it, 32x64 in this one"),
        ({"inst.0.0": (40, 64)}, "inst.0.0 is 40x64 in it, 32x64 in this one"),
        ({"inst.0.0": (0, 64)}, "inst.0.0 is 0x64 in it, 32x64 in this one"),
        ({"kpt.1.0": (100, 8)}, "kpt.1.0 is 100x8 in it, 136x8 in this one"),
        ({"inst.0": (24, 64)}, "inst.0 is 24x64 in it, not there in this one"),
        ({"inst.0.0": (16, 64)}, "of another model: inst.0.0.weight is (32, 64, 3, 3), not (16, 64, 3, 3)"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: Widths, sentence: str, tmp_path: Path) -> None:
    model = build("qrpose_tiny", size=(64, 64))
    with pytest.raises(EdgeposeError) as caught:
        load_published(model, file_of(model, widths, tmp_path / "w.safetensors"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_that_do_not_meet_are_refused(tmp_path: Path) -> None:
    """Every layer is as the file says, but one makes 24 channels and the next reads 32."""
    widths: Widths = {"inst.0.0": (24, 64), "inst.0.1": (24,)}
    model = build("qrpose_tiny", size=(64, 64))
    for name, width in widths.items():
        narrow(model.get_submodule(name), width)
    with pytest.raises(EdgeposeError, match="do not fit together"):
        load_published(
            build("qrpose_tiny", size=(64, 64)), file_of(model, widths, tmp_path / "w.safetensors")
        )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": ["b"]}', '{"a": null}'])
def test_damaged_widths_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {WIDTHS: text})
    with pytest.raises(EdgeposeError, match="its widths are damaged"):
        read_published(path)


def test_a_pruned_network_is_trained_saved_and_resumed_as_it_is(
    tmp_path: Path, killed_run: Callable[[Recipe, Path, int], None]
) -> None:
    """The averaged weights say their widths; a resumed run ends as one that was not stopped."""
    recipe = open_recipe("qrpose_smoke")
    schedule = recipe.schedule.model_copy(update={"steps": 3, "checkpoint_steps": 2, "batch": 2})
    initial = file_of(narrowed(), NARROW, tmp_path / "initial.safetensors")
    recipe = recipe.model_copy(update={"schedule": schedule, "initial": str(initial)})
    train_and_score(recipe, tmp_path / "whole")
    assert load_published(build("qrpose_tiny"), tmp_path / "whole" / WEIGHTS) == NARROW
    killed_run(recipe, tmp_path / "run", 2)
    train_and_score(recipe, tmp_path / "run", resume=True)
    one, other = (read_weights(tmp_path / name / CHECKPOINT) for name in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)
