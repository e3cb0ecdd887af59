"""SHaRPose against a plain second version; its losses; its loaders."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import COCO17
from edgepose.training.models import build, load_published
from edgepose.training.models.attention import Attention, DropPath
from edgepose.training.models.sharpose import published
from edgepose.training.models.sharpose.losses import Loss, heatmap_error, oks, peaks, quality_weight
from edgepose.training.models.sharpose.mae import load_mae
from edgepose.training.models.sharpose.mining import by_cell
from edgepose.training.models.sharpose.network import Coarse, Config, SharPose
from edgepose.training.models.sharpose.targets import Targets

TINY = "sharpose_tiny_128x96"
OUTPUTS = ("coarse_heatmaps", "quality", "refined", "region_order", "heatmaps")


def made(**options: object) -> SharPose:
    network = build(TINY, **options)
    assert isinstance(network, SharPose)
    return network


def lively(**options: object) -> SharPose:
    """Unequal tokens, positions and biases, as after training."""
    network = made(**options)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for matrix in (layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)):
            matrix.normal_(std=matrix.shape[1] ** -0.5)
    return network.eval()


def crops(count: int) -> Tensor:
    """The parts of each picture differ, so that there is something to choose."""
    torch.manual_seed(2)
    return torch.randn(count, 3, 4, 3).repeat_interleave(32, 2).repeat_interleave(32, 3) + 0.5 * torch.randn(
        count, 3, 128, 96
    )


# The network.


@pytest.mark.parametrize(
    ("name", "size", "keys", "parameters", "tokens"),
    [
        (TINY, (96, 128), 78, 617_537, (30, 44)),
        ("sharpose_small_256x192", (192, 256), 174, 28_484_737, (66, 137)),
        ("sharpose_base_256x192", (192, 256), 170, 94_116_097, (66, 125)),
        ("sharpose_base_384x288", (288, 384), 174, 118_543_489, (126, 224)),
    ],
)
def test_profiles_have_the_sizes_of_the_spec(
    name: str, size: tuple[int, int], keys: int, parameters: int, tokens: tuple[int, int]
) -> None:
    with torch.device("meta"):
        network = build(name)
    assert isinstance(network, SharPose)
    config = network.config
    assert (config.size, config.map_size) == (size, (size[0] // 4, size[1] // 4))
    assert len(network.state_dict()) == keys
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    joints, k, n0 = config.joints, config.selected, config.cells
    assert (1 + joints + n0, joints + 4 * k + n0 - k) == tokens


def plain_tokens(network: SharPose, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One person's tokens (T, C) through all blocks, by torch's own attention; and each softmax matrix."""
    shares = []
    for block in network.backbone.blocks:
        attention, width = block.attn, tokens.shape[1]
        module = nn.MultiheadAttention(width, width // attention.head_dim)
        module.in_proj_weight, module.in_proj_bias = attention.qkv.weight, attention.qkv.bias
        module.out_proj = attention.proj
        normed = block.norm1(tokens)
        mixed, share = module(normed, normed, normed)
        tokens = tokens + mixed
        tokens = tokens + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(tokens))))
        shares.append(share)
    return network.backbone.norm(tokens), shares


def plain_forward(network: SharPose, crop: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Coarse and fine heatmaps, quality and order for one crop (3, H, W), after sections 2 and 3."""
    b, config = network.backbone, network.config
    g0h, g0w = crop.shape[1] // 32, crop.shape[2] // 32
    half = functional.interpolate(crop[None], scale_factor=0.5, mode="bilinear", align_corners=False)
    embedded = b.patch_embed.proj(half)[0].flatten(1).T + b.pos_embed_list[0][0]
    start = torch.cat([b.quality_token[0], b.keypoint_tokens[0], embedded])
    tokens, shares = plain_tokens(network, start)
    total = torch.zeros_like(shares[0])
    for share in shares[config.depth // 4 :]:
        total = 0.99 * total + 0.01 * share
    order = total[1 : 1 + rows, 18:].sum(0).argsort(descending=True)
    selected, others = order[: config.selected].tolist(), order[config.selected :].tolist()
    found = b.reuse_block(tokens[18:]).T.reshape(1, -1, g0h, g0w)
    sharp = b.patch_embed.proj(crop[None])[0].flatten(1).T + b.pos_embed_list[1][0]
    sharp = sharp + functional.interpolate(found, scale_factor=2, mode="nearest")[0].flatten(1).T
    fine = [
        (2 * (c // g0w) + i) * 2 * g0w + 2 * (c % g0w) + j for i in (0, 1) for j in (0, 1) for c in selected
    ]
    second, _ = plain_tokens(network, torch.cat([b.keypoint_tokens[0], sharp[fine], embedded[others]]))
    quality = functional.gelu(b.quality_predictor.mlp[:7](b.quality_predictor.norm(tokens[0])))
    return network.keypoint_head(tokens[1:18]), network.keypoint_head(second[:17]), quality, order


@pytest.mark.parametrize("reference", [False, True])
def test_the_network_is_the_plain_one(reference: bool) -> None:
    """With 17 joints asking where to look, or 16 as the authors have it."""
    network, images = lively(reference=reference), crops(2)
    with torch.no_grad():
        out = network(images, threshold=math.inf)
        for person, crop in enumerate(images):
            coarse, fine, quality, order = plain_forward(network, crop, 16 if reference else 17)
            assert torch.allclose(out["coarse_heatmaps"][person], coarse, atol=1e-5)
            assert torch.allclose(out["heatmaps"][person], fine, atol=1e-5)
            assert out["quality"][person].item() == pytest.approx(quality.item(), abs=1e-5)
            assert torch.equal(out["region_order"][person], order)
        slip = network.backbone.coarse(images).scores
        network.backbone.config = made(reference=not reference).config
        assert (network.backbone.coarse(images).scores - slip).abs().max() > 1e-4


def test_quality_is_a_gelu_of_the_quality_token_alone() -> None:
    network, images = lively(), crops(3)
    with torch.no_grad():
        before = network.backbone.coarse(images).quality
        network.backbone.quality_predictor.mlp[6].bias.fill_(50.0)
        assert network.backbone.coarse(images).quality.min() > 40
        network.backbone.quality_predictor.mlp[6].bias.fill_(-0.7)
        network.backbone.quality_predictor.mlp[6].weight.zero_()
        assert network.backbone.coarse(images).quality.tolist() == pytest.approx([-0.1694] * 3, abs=1e-4)
    assert before.shape == (3,)


def looks(network: SharPose, images: Tensor) -> tuple[Coarse, Tensor]:
    """The coarse stage, and the fine heatmaps of everybody."""
    coarse = network.backbone.coarse(images)
    tokens = network.backbone.fine(images, coarse.order, coarse.reuse, coarse.embedded)
    heatmaps: Tensor = network.keypoint_head(tokens)
    return coarse, heatmaps


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nobody_is_the_coarse_answer_and_everybody_the_fine_one(count: int) -> None:
    network, images = lively(), crops(count)
    with torch.no_grad():
        nobody, everybody = network(images, threshold=-math.inf), network(images, threshold=math.inf)
        _, fine = looks(network, images)
    assert tuple(nobody) == OUTPUTS
    shapes = [tuple(nobody[name].shape) for name in OUTPUTS]
    assert shapes == [(count, 17, 32, 24), (count,), (count,), (count, 12), (count, 17, 32, 24)]
    assert not nobody["refined"].any()
    assert torch.equal(nobody["heatmaps"], nobody["coarse_heatmaps"])
    assert everybody["refined"].all()
    assert torch.equal(everybody["heatmaps"], fine)
    assert torch.equal(everybody["coarse_heatmaps"], nobody["coarse_heatmaps"])


def test_only_those_below_the_threshold_go_through_the_fine_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = lively(), crops(4)
    sent: list[int] = []
    fine = network.backbone.fine

    def counted(images: Tensor, *parts: Tensor) -> Tensor:
        sent.append(len(images))
        return fine(images, *parts)

    monkeypatch.setattr(network.backbone, "fine", counted)
    with torch.no_grad():
        coarse, again = looks(network, images)
        limit = float(coarse.quality.sort().values[1:3].mean())
        mixed = network(images, threshold=limit)
    assert sent == [4, 2]
    assert torch.equal(mixed["refined"], coarse.quality < limit)
    for person, refined in enumerate(mixed["refined"].tolist()):
        expected = again if refined else mixed["coarse_heatmaps"]
        assert torch.allclose(mixed["heatmaps"][person], expected[person], atol=1e-5)


def test_the_threshold_is_the_configurations_unless_given() -> None:
    images = crops(2)
    with torch.no_grad():
        assert not lively(threshold=-1.0)(images)["refined"].any()
        assert lively(threshold=1e3)(images)["refined"].all()
        assert not lively(threshold=1e3)(images, threshold=-1.0)["refined"].any()
        assert lively(threshold=-1.0).train()(images)["refined"].all(), "training refines everybody"


def test_persons_of_a_batch_do_not_meet() -> None:
    network, images = lively(), crops(4)
    places = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        limit = float(network(images)["quality"].median()) + 1e-6
        straight, mixed = network(images, threshold=limit), network(images[places], threshold=limit)
    for name in OUTPUTS:
        assert torch.allclose(straight[name][places].float(), mixed[name].float(), atol=1e-5), name


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_the_order_matters_between_selected_and_others_only(seed: int) -> None:
    network, images = lively(), crops(1)
    k, n0 = network.config.selected, network.config.cells
    generator = torch.Generator().manual_seed(seed)
    sharp = torch.randperm(k, generator=generator)
    blunt = k + torch.randperm(n0 - k, generator=generator)
    with torch.no_grad():
        coarse, _ = looks(network, images)
        rest = (coarse.reuse, coarse.embedded)
        straight = network.backbone.fine(images, coarse.order, *rest)
        shuffled = network.backbone.fine(images, coarse.order[:, torch.cat([sharp, blunt])], *rest)
        other = network.backbone.fine(images, coarse.order.flip(1), *rest)
    assert torch.allclose(straight, shuffled, atol=1e-5)
    assert (straight - other).abs().max() > 1e-3


@given(width=st.integers(1, 6), height=st.integers(1, 6))
def test_a_cell_gets_its_own_four_fine_tokens(width: int, height: int) -> None:
    fine = torch.arange(4 * width * height).reshape(1, -1, 1)
    cells = by_cell(fine, (width, height))[0, :, :, 0]
    for cell, tokens in enumerate(cells.tolist()):
        y, x = 2 * (cell // width), 2 * (cell % width)
        assert tokens == [(y + i) * 2 * width + x + j for i in (0, 1) for j in (0, 1)]


def test_the_scale_can_be_folded_into_the_queries_weights() -> None:
    """What section 9, item 4 asks for; exact, since 16 channels a head give 1/4."""
    attention, tokens = Attention(64, 4), torch.randn(2, 9, 64)
    assert attention.head_dim == 16
    with torch.no_grad():
        before = attention.split(tokens)
        attention.qkv.weight[:64] *= attention.scale
        attention.qkv.bias[:64] *= attention.scale
        attention.scale = 1.0
        for a, b in zip(before, attention.split(tokens), strict=True):
            assert torch.equal(a, b)


def test_stochastic_depth_drops_whole_persons_and_keeps_the_mean() -> None:
    drop, branch = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    dropped = drop(branch)
    per_person = dropped.flatten(1)
    assert ((per_person == 0).all(1) | torch.isclose(per_person, torch.tensor(4 / 3)).all(1)).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(branch), branch)
    rates = [block.drop_path.rate for block in made(drop_path=0.3).backbone.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_every_weight_learns() -> None:
    """One that never gets a gradient would stop data-parallel training."""
    network = lively(drop_path=0.0).train()
    targets = Targets(torch.rand(2, 17, 32, 24), torch.ones(2, 17), torch.tensor([[90.0, 120.0]] * 2))
    torch.stack(list(Loss()(network(crops(2)), targets, 0.03).values())).sum().backward()
    assert [
        key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()
    ] == []


def test_a_new_network_starts_as_the_paper_says() -> None:
    backbone = made().backbone
    for tokens in (backbone.keypoint_tokens, backbone.quality_token, *backbone.pos_embed_list):
        assert not tokens.any()
    for layer in (
        backbone.blocks[0].attn.qkv,
        backbone.reuse_block[1].fc2,
        backbone.quality_predictor.mlp[0],
    ):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alhpa": 0.3}, "unknown option 'alhpa' of sharpose_tiny_128x96; did you mean 'alpha'"),
        (
            {"size": (64, 64)},
            "unknown option 'size' of sharpose_tiny_128x96; known are alpha, threshold, joints",
        ),
        ({"alpha": 0.0}, "sharpose_tiny_128x96: option 'alpha' is 0.0: Input should be greater than 0"),
        ({"threshold": "high"}, "sharpose_tiny_128x96: option 'threshold' is 'high'"),
        ({"threshold": float("nan")}, "option 'threshold' is nan: Input should be a finite number"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(EdgeposeError, match=sentence):
        build(TINY, **options)


@pytest.mark.parametrize(
    "config", [Config((100, 128), 64, 0.4, heads=4), Config((96, 128), 64, 0.4, heads=5)]
)
def test_sizes_must_divide(config: Config) -> None:
    with pytest.raises(EdgeposeError, match="choose sides divisible by 32, and channels by heads"):
        SharPose(config)


# The losses.


def planted(places: list[tuple[int, int]]) -> Tensor:
    """(1, J, 32, 24): a map for each place (x, y)."""
    maps = torch.zeros(1, len(places), 32, 24)
    for joint, (x, y) in enumerate(places):
        maps[0, joint, y, x] = 0.7
    return maps


def test_peaks_are_the_largest_pixels_or_nowhere() -> None:
    assert peaks(planted([(3, 5), (23, 31), (0, 0)]))[0].tolist() == [[3, 5], [23, 31], [0, 0]]
    assert peaks(torch.zeros(1, 1, 32, 24)).tolist() == [[[-1, -1]]]


@pytest.mark.parametrize("reference", [False, True])
def test_oks_measures_in_pixels_of_the_picture(reference: bool) -> None:
    """By hand: 24 columns over a box 240 wide are 10 pixels each; the slip divides by the 32 rows instead."""
    truth = planted([(10, 10)] * 17)
    found = planted([(12, 10)] * 8 + [(10, 13)] * 8 + [(0, 0)])
    weights = torch.ones(1, 17)
    weights[0, 16] = 0
    got = oks(found, Targets(truth, weights, torch.tensor([[240.0, 640.0]])), reference)
    x, y = (2 * 240 / 32, 3 * 640 / 24) if reference else (2 * 240 / 24, 3 * 640 / 32)
    terms = [
        math.exp(-((x if joint < 8 else y) ** 2) / (2 * 240 * 640 * (2 * sigma) ** 2))
        for joint, sigma in enumerate(COCO17.sigmas[:16])
    ]
    assert got.item() == pytest.approx(sum(terms) / 16, rel=1e-5)


def test_unlabelled_joints_and_people_teach_nothing() -> None:
    truth, weights = planted([(10, 10)] * 17).repeat(2, 1, 1, 1), torch.zeros(2, 17)
    weights[0, :5] = 1
    targets = Targets(truth, weights, torch.tensor([[240.0, 320.0]] * 2))
    wrong = truth.clone()
    wrong[1] = 9.0
    wrong[0, 5:] = 9.0
    assert heatmap_error(wrong, targets).item() == 0
    outputs = {"coarse_heatmaps": wrong, "heatmaps": wrong + 1, "quality": torch.tensor([0.5, 77.0])}
    terms = Loss()(outputs, targets, 0.03)
    assert terms["quality"].item() == pytest.approx(0.03 * 0.5**2)
    assert terms["coarse"].item() == 0
    assert terms["fine"].item() == pytest.approx(5 / 34)
    nobody = Loss()(outputs, targets._replace(weights=torch.zeros(2, 17)), 0.03)
    assert [term.item() for term in nobody.values()] == [0, 0, 0]


def test_quality_joins_after_its_epoch() -> None:
    assert [quality_weight(epoch, start=180) for epoch in (1, 180, 181, 210)] == [0, 0, 0.03, 0.03]


def test_quality_learns_through_the_blocks_but_does_not_bend_the_pose_it_judges() -> None:
    coarse = torch.rand(1, 17, 32, 24, requires_grad=True)
    quality = torch.zeros(1, requires_grad=True)
    outputs = {"coarse_heatmaps": coarse, "heatmaps": coarse.detach(), "quality": quality}
    targets = Targets(planted([(10, 10)] * 17), torch.ones(1, 17), torch.tensor([[240.0, 320.0]]))
    by_pose, by_quality = torch.autograd.grad(
        Loss()(outputs, targets, 0.03)["quality"], (coarse, quality), allow_unused=True
    )
    assert by_pose is None
    assert by_quality.item() < 0


# Published files.

TEXT = """
log_level = 'INFO'
channel_cfg = dict(alpha=0.9)
model = dict(
    type='TopDown',
    backbone=dict(type='Any', depth=4, alpha=0.3, qp_threshold=1.2),
    test_cfg={'flip_test': True, 'blur': 11})
data = dict(qp_threshold=3)
"""


def authors_file(path: Path, text: str | None = TEXT, prefix: str = "") -> dict[str, Tensor]:
    """As mmcv writes it after an evaluation: the best AP is numpy's number."""
    state = {key: torch.randn_like(value) for key, value in made().state_dict().items()}
    meta = {"epoch": 210, "hook_msgs": {"best_score": np.float64(0.774)}, "mmpose_version": "0.29.0"}
    content = {"state_dict": {prefix + key: value for key, value in state.items()}, "optimizer": {"lr": 1e-3}}
    torch.save({**content, "meta": meta if text is None else {**meta, "config": text}}, path)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_files_tell_alpha_and_threshold(
    tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    state, model = authors_file(tmp_path / "s.pth", prefix=prefix), made()
    load_published(model, tmp_path / "s.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (model.config.alpha, model.config.threshold, model.config.reference) == (0.3, 1.2, True)
    assert model.config.selected == 4
    assert caplog.messages == []
    with torch.no_grad():
        assert model.eval()(crops(1))["heatmaps"].shape == (1, 17, 32, 24)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, {}),
        ("model = dict(", {}),
        ("\0", {}),
        ("-" * 200_000 + "1", {}),
        ("a." * 100_000 + "b", {}),
        (f"model = dict(alpha=1{'0' * 400})", {}),
        ("model = dict(backbone=dict(alpha='0.3', qp_threshold=open('/etc/passwd')))", {}),
        (
            "model = dict(backbone=dict(alpha=0.3), head=dict(alpha=0.2, qp_threshold=1))",
            {"qp_threshold": 1.0},
        ),
        ("model = {'backbone': {'alpha': 0.25, 'qp_threshold': None}}", {"alpha": 0.25}),
        ("model = dict(alpha='0.2', qp_threshold=1)\nmodel['alpha'] = 0.3", {"qp_threshold": 1.0}),
    ],
    ids=["none", "open", "null", "deep", "dots", "huge", "calls", "two", "dict", "text"],
)
def test_what_a_file_does_not_say_is_logged(
    tmp_path: Path, text: str | None, said: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    assert published.settings(text or "") == said
    authors_file(tmp_path / "s.pth", text)
    model = made()
    with caplog.at_level(logging.WARNING):
        load_published(model, tmp_path / "s.pth")
    assert model.config.alpha == said.get("alpha", 0.4)
    assert model.config.threshold == said.get("qp_threshold", 0.99)
    defaults = {"alpha": "0.4", "qp_threshold": "0.99"}
    expected = [
        f"does not say its {name}; {value} is taken" for name, value in defaults.items() if name not in said
    ]
    assert [message.partition(": ")[2] for message in caplog.messages] == expected


def test_a_configuration_is_never_run(tmp_path: Path) -> None:
    authors_file(tmp_path / "s.pth", "raise SystemExit('ran')\nmodel = dict(alpha=exit(1), qp_threshold=0.5)")
    model = made()
    load_published(model, tmp_path / "s.pth")
    assert model.config.threshold == 0.5


def test_an_impossible_alpha_is_refused_before_anything_changes(tmp_path: Path) -> None:
    authors_file(tmp_path / "s.pth", "model = dict(alpha=30, qp_threshold=0.5)")
    model = made()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(EdgeposeError, match=r"s\.pth: its configuration has alpha 30, not in 0\.\.1"):
        load_published(model, tmp_path / "s.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config == made().config


def test_our_own_files_leave_the_configuration_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    save_file(made().state_dict(), tmp_path / "w.safetensors")
    model = made(alpha=0.6)
    load_published(model, tmp_path / "w.safetensors")
    assert model.config == made(alpha=0.6).config
    assert caplog.messages == []
    torch.save(made().state_dict(), tmp_path / "w.pth")
    load_published(model, tmp_path / "w.pth")
    assert model.config == made(alpha=0.6).config
    assert len(caplog.messages) == 2


def test_weights_of_another_sharpose_are_refused(tmp_path: Path) -> None:
    state = {"module." + key: value for key, value in made().state_dict().items()}
    state["module.backbone.extra"] = state.pop("module.backbone.quality_token")
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "w.pth")
    with pytest.raises(EdgeposeError, match=r"quality_token is missing; backbone\.extra is unexpected"):
        load_published(made(), tmp_path / "w.pth")


# The MAE start.


def mae_file(path: Path, **changes: Tensor | None) -> dict[str, Tensor]:
    """A transformer of tiny's width, with the class token and the 14x14 positions of an MAE."""
    parts = ("patch_embed.", "blocks.", "norm.")
    own = {key: value for key, value in made().backbone.state_dict().items() if key.startswith(parts)}
    trained = {key: torch.randn_like(value) for key, value in own.items()}
    table = torch.randn(1, 197, 64, generator=torch.Generator().manual_seed(3))
    beside = {
        "cls_token": torch.ones(1, 1, 64),
        "mask_token": torch.ones(1),
        "decoder_norm.bias": torch.ones(3),
    }
    state = {**trained, **beside, "pos_embed": table, **changes}
    torch.save({"model": {key: value for key, value in state.items() if value is not None}}, path)
    return trained


def cubic(length: int, wanted: int) -> npt.NDArray[np.float64]:
    """(wanted, length): the weights of cubic convolution with a = -0.75, as torch has it; borders repeat."""
    weights = np.zeros((wanted, length))
    for row in range(wanted):
        place = (row + 0.5) * length / wanted - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - tap)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[row, min(max(tap, 0), length - 1)] += near if d <= 1 else far
    return weights


@pytest.mark.parametrize("with_class", [True, False])
def test_an_mae_file_starts_blocks_and_positions_and_nothing_else(tmp_path: Path, with_class: bool) -> None:
    table = torch.randn(1, 197, 64)
    trained = mae_file(tmp_path / "mae.pth", pos_embed=table if with_class else table[:, 1:])
    square = table[0, 1:].reshape(14, 14, 64).double().numpy()
    model = lively()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_mae(model, tmp_path / "mae.pth")
    for key, value in model.state_dict().items():
        if "pos_embed_list" not in key:
            assert torch.equal(value, trained.get(key.removeprefix("backbone."), before[key])), key
    for stage, (width, height) in enumerate([(3, 4), (6, 8)]):
        expected = np.einsum("yi,xj,ijc->yxc", cubic(14, height), cubic(14, width), square)
        found = model.backbone.pos_embed_list[stage][0].detach().numpy()
        assert np.abs(found - expected.reshape(-1, 64)).max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pos_embed": None}, "has no table of positions of 64 channels"),
        ({"pos_embed": torch.zeros(1, 197, 32)}, "has no table of positions of 64 channels"),
        ({"pos_embed": torch.zeros(197, 64)}, "has no table of positions of 64 channels"),
        ({"pos_embed": torch.zeros(1, 199, 64)}, "its 199 positions are of no square grid"),
        ({"pos_embed": torch.zeros(1, 0, 64)}, "its 0 positions are of no square grid"),
        ({"norm.bias": None}, "another backbone: norm.bias is missing"),
        ({"blocks.4.norm1.bias": torch.zeros(64)}, "another backbone: blocks.4.norm1.bias is unexpected"),
        ({"norm.weight": torch.zeros(32)}, r"another backbone: norm.weight is \(32,\), not \(64,\)"),
    ],
)
def test_other_transformers_are_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], sentence: str
) -> None:
    mae_file(tmp_path / "mae.pth", **changes)
    model = made()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(EdgeposeError, match=rf"mae\.pth: .*{sentence}"):
        load_mae(model, tmp_path / "mae.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
