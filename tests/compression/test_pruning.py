"""Which channels leave together, where they leave first, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgepose.compression.allocation import Clock, Times, allocate
from edgepose.compression.channels import INPUTS, OUTPUTS, Group, Indices, Part, weight_of
from edgepose.compression.dependencies import groups_of
from edgepose.compression.importance import by_magnitude, by_taylor
from edgepose.compression.prune import pruned
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.training.checkpoint import save_tensors
from edgepose.training.models import build, family_of, load_published
from edgepose.training.models.querypose.config import Config
from edgepose.training.models.querypose.network import QueryPose
from edgepose.training.models.sharpose.network import SharPose
from edgepose.training.models.widths import to_metadata

SMALL: dict[str, Any] = {"size": (64, 64)}
# querypose_r50 in small: its normalisation is frozen.
FROZEN = Config(
    "resnet50",
    (64, 64),
    queries=8,
    top_k=4,
    stages=1,
    channels=32,
    hidden=64,
    pose_layers=2,
    pose_channels=32,
)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "qrpose_tiny": partial(build, "qrpose_tiny", **SMALL),
    "qrpose_tiny without KQE": partial(build, "qrpose_tiny", kqe=False, **SMALL),
    "qrpose_hrnet32": partial(build, "qrpose_hrnet32", **SMALL),
    "qrpose_dla34": partial(build, "qrpose_dla34", **SMALL),
    "querypose_tiny": partial(build, "querypose_tiny", **SMALL),
    "querypose_tiny full": partial(build, "querypose_tiny", full=True, **SMALL),
    "querypose_r50": lambda: QueryPose(FROZEN),
    "sharpose_tiny_128x96": partial(build, "sharpose_tiny_128x96"),
}


def network(make: Callable[[], nn.Module]) -> nn.Module:
    """Random, but with statistics of normalisation that differ between channels."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for layer in model.modules():
            for what in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(layer, what, None)
                if isinstance(value, Tensor) and value.ndim == 1:
                    value.copy_(torch.rand_like(value) + 0.5)
    return model


def halved(groups: list[Group], seed: int) -> list[Indices]:
    """Any half of each group's units."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(group.units)[: max(1, group.units // 2)]) for group in groups]


def masked(model: nn.Module, groups: list[Group], kept: list[Indices]) -> None:
    """Who reads a channel that leaves sees nothing of it."""
    for group, units in zip(groups, kept, strict=True):
        gone = np.setdiff1d(np.arange(group.units), units)
        for part in group.parts:
            if part.axis == INPUTS:
                weight_of(model, part).data[:, part.indices[gone].reshape(-1)] = 0


@torch.no_grad()
def answers(model: nn.Module) -> Mapping[str, Tensor]:
    """In float64: a random QueryPose makes boxes of 50,000 pixels, and float32 rounds them by hundreds."""
    width, height = model.config.size
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).double()
    model = model.double()
    if not isinstance(model, SharPose):
        return model(images)
    # Where it looks again depends on what all heads attend to, those too that say nothing: so a given order.
    coarse = model.backbone.coarse(images)
    order = torch.arange(model.config.cells).expand(2, -1)
    fine = model.backbone.fine(images, order, coarse.reuse, coarse.embedded)
    return {"coarse": coarse.tokens, "quality": coarse.quality, "fine": fine}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_says_what_the_masked_one_says(name: str, tmp_path: Path) -> None:
    """The independent check of the tracing: zeros in the old network, no reshaping, give the same answers."""
    model = network(NETWORKS[name])
    groups = groups_of(model, family_of(name.partition(" ")[0]), model.config.size)
    kept = halved(groups, 0)
    found = pruned(model, groups, kept)
    save_tensors(tmp_path / "pruned.safetensors", found.state, to_metadata(found.widths))
    slim = NETWORKS[name]().eval()
    assert load_published(slim, tmp_path / "pruned.safetensors") == found.widths
    whole = answers(model)
    masked(model, groups, kept)
    expected, found = answers(model), answers(slim)
    assert any((whole[key] - expected[key]).abs().max() > 1e-3 for key in whole)  # the channels mattered
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


def test_widths_stay_multiples() -> None:
    """Of 8, of 32 where there are 256 or more, of whole heads, and of 2 for each joint."""
    groups = groups_of(NETWORKS["qrpose_hrnet32"](), "qrpose", (64, 64))
    steps = {group.units >= 256: set() for group in groups}
    for group in groups:
        if not group.name.startswith(("kpt.", "looks.")):
            steps[group.units >= 256].add(group.step)
    assert steps == {False: {8}, True: {32}}
    groups = groups_of(NETWORKS["sharpose_tiny_128x96"](), "sharpose", (96, 128))
    by_name = {group.name: group for group in groups}
    heads, hidden = by_name["backbone.blocks.0.attn"], by_name["backbone.blocks.0.mlp.fc1"]
    assert (heads.units, heads.step) == (4, 1)
    assert (hidden.units, hidden.step) == (256, 32)


def test_a_head_takes_its_queries_keys_and_values() -> None:
    """Head 1 of 4 of 16 channels: rows 16 to 31 of each third of qkv, columns 16 to 31 of proj."""
    groups = groups_of(NETWORKS["sharpose_tiny_128x96"](), "sharpose", (96, 128))
    qkv, proj = next(group for group in groups if group.name == "backbone.blocks.0.attn").parts
    head = np.arange(16, 32)
    assert (qkv.layer, qkv.axis) == ("backbone.blocks.0.attn.qkv", OUTPUTS)
    assert np.array_equal(qkv.indices[1], np.concatenate([head, 64 + head, 128 + head]))
    assert (proj.layer, proj.axis) == ("backbone.blocks.0.attn.proj", INPUTS)
    assert np.array_equal(proj.indices[1], head)


def test_a_pose_stage_keeps_what_is_as_wide_as_the_pyramid() -> None:
    """48 channels can leave between its convolutions, 40 of the doubled map; none that the last one makes."""
    groups = groups_of(NETWORKS["querypose_tiny"](), "querypose", (64, 64))
    raised = "pose_stages.1.embedding"
    own = [group for group in groups if group.name.startswith(("pose_stages.1.convs", raised))]
    assert {group.name: (group.units, group.layers) for group in own} == {
        "pose_stages.1.convs.0": (48, {"pose_stages.1.convs.0", "pose_stages.1.convs.2"}),
        "pose_stages.1.convs.2": (48, {"pose_stages.1.convs.2", "pose_stages.1.convs.4"}),
        f"{raised}.raise_.0": (40, {f"{raised}.{n}" for n in ("raise_.0", "raise_.1", "attend", "embed")}),
    }


class Chain(nn.Module):
    """y = b relu(a x): 16 channels between, that one layer makes and one reads."""

    def __init__(self, maker: type[nn.Conv2d | nn.ConvTranspose2d] = nn.Conv2d) -> None:
        super().__init__()
        self.a, self.b = maker(1, 16, 1, bias=False), nn.Conv2d(16, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


CHAIN = Group(
    "a", 16, 8, (Part("a", OUTPUTS, np.arange(16)[:, None]), Part("b", INPUTS, np.arange(16)[:, None]))
)


@pytest.mark.parametrize("maker", [nn.Conv2d, nn.ConvTranspose2d])
def test_magnitude_is_the_norm_of_all_that_would_leave(
    maker: type[nn.Conv2d | nn.ConvTranspose2d],
) -> None:
    model = Chain(maker)
    with torch.no_grad():
        model.a.weight.copy_(torch.arange(16.0).reshape(model.a.weight.shape))
        model.b.weight.fill_(3.0)
    (found,) = by_magnitude(model, [CHAIN])
    expected = np.hypot(np.arange(16), 3)
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-6)


def test_taylor_is_the_square_of_what_the_loss_would_change_by() -> None:
    """The loss is linear in what the last layer reads, so the first order is exact: mean of (b_i a_i x)^2."""

    class Linear:
        recipe = SimpleNamespace(schedule=SimpleNamespace(steps=2))

        def batches(self, first: int) -> list[Tensor]:
            return [torch.full((1, 1, 1, 1), value) for value in (1.0, 3.0)]

        def terms(self, model: nn.Module, batch: Tensor, step: int) -> dict[str, Tensor]:
            assert model.training
            assert not model.a.training
            return {"half": model(batch).sum() / 2, "other": model(batch).sum() / 2}

    model = Chain()
    with torch.no_grad():
        model.a.weight.copy_(torch.arange(16.0).reshape(16, 1, 1, 1))
        model.b.weight.copy_(torch.linspace(-1, 1, 16).reshape(1, 16, 1, 1))
    (found,) = by_taylor(model, [CHAIN], cast(Any, Linear()), 2)
    expected = np.square(np.arange(16) * np.linspace(-1, 1, 16)) * (1 + 9) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert model.b.weight.grad is None


def clock(gain: float = 1.0) -> Clock:
    sizes = {"a": (16, 1, 1, 1), "b": (1, 16, 1, 1)}
    return Clock(Times({"a": 4.0, "b": 2.0}, {"b": 1.0}, 10.0), [CHAIN], sizes, [gain])


def test_the_clock_scales_layers_by_inputs_times_outputs() -> None:
    assert clock().seconds([16]) == pytest.approx(10)
    # Half of a's outputs, half of b's inputs and of what is moved for it; 3 seconds are nobody's.
    assert clock().seconds([8]) == pytest.approx(3 + 2 + 1 + 0.5)
    # Where half of the channels save half of what they should, the layers are as if a quarter had left.
    assert clock(0.5).seconds([8]) == pytest.approx(3 + 0.75 * (4 + 2 + 1))


def test_times_are_summed_over_layers_with_what_serves_them() -> None:
    times = Times({"a": 4.0, "b": 2.0, "c": 8.0}, {"b": 1.0, "c": 16.0}, 40.0)
    assert times.of({"a", "b", "a.norm"}) == 7.0


def test_who_saves_nothing_stays() -> None:
    with pytest.raises(GateFailed, match=r"no more than 1\.00 times the speed"):
        allocate(clock(0.0), [np.zeros(16)], 9.9, 0.5)


def test_the_least_important_leave_first_and_in_steps() -> None:
    importance = np.arange(16)[::-1].astype(np.float64)
    (kept,) = allocate(clock(), [importance], 9.9, 0.5)
    assert kept.tolist() == list(range(8))
    (kept,) = allocate(clock(), [importance], 10.0, 0.5)
    assert len(kept) == 16
    with pytest.raises(GateFailed, match=r"no more than 1\.54 times the speed"):
        allocate(clock(), [importance], 6.0, 0.5)


@given(st.data())
def test_allocation_reaches_its_limit_and_keeps_the_best(data: st.DataObject) -> None:
    """Two groups in one layer: the time is reached, widths are multiples, and no kept unit is worth less."""
    inner = Group(
        "b", 24, 8, (Part("b", OUTPUTS, np.arange(24)[:, None]), Part("c", INPUTS, np.arange(24)[:, None]))
    )
    sizes = {"a": (16, 4), "b": (24, 16), "c": (3, 24)}
    seconds = {name: data.draw(st.floats(0.1, 5)) for name in sizes}
    gains = [data.draw(st.floats(0, 1)) for _ in range(2)]
    both = Clock(Times(seconds, {}, sum(seconds.values())), [CHAIN, inner], sizes, gains)
    importance = [
        np.array(data.draw(st.lists(st.floats(0, 1), min_size=group.units, max_size=group.units)))
        for group in both.groups
    ]
    limit = both.times.total * data.draw(st.floats(0.4, 1))
    least, narrowest = data.draw(st.sampled_from([(0.25, [8, 8]), (0.5, [8, 16]), (0.7, [16, 24])]))
    try:
        kept = allocate(both, importance, limit, least)
    except EdgeposeError:
        assert both.seconds(narrowest) > limit
        return
    assert both.seconds([len(units) for units in kept]) <= limit
    assert all(len(units) >= few for units, few in zip(kept, narrowest, strict=True))
    for units, values, group in zip(kept, importance, both.groups, strict=True):
        gone = np.setdiff1d(np.arange(group.units), units)
        assert len(units) % group.step == 0
        assert not len(gone) or values[gone].max() <= values[units].min()
