"""Backbones against the published networks, necks against plain sums, and the profiles made of them."""

from __future__ import annotations

import runpy
import warnings
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import BUILDERS, build, load_backbone
from edgepose.training.models.backbones import BACKBONES, build_backbone
from edgepose.training.models.backbones.body import Body
from edgepose.training.models.backbones.dla import DlaUp
from edgepose.training.models.backbones.hrnet import Branches
from edgepose.training.models.backbones.resnet import ResNet
from edgepose.training.models.backbones.swin import SIZES, Swin, SwinBlock
from edgepose.training.models.backbones.topdown import TopDown
from edgepose.training.models.qrpose.network import QrPose

GOLDEN = Path(__file__).parents[3] / "shared/golden/querypose"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the QueryPose goldens are not beside the project"
)

BODIES: dict[str, Callable[[], Body]] = {
    **{name: body for name, (body, _) in BACKBONES.items()},
    "resnet50": partial(ResNet, 50),
    **{f"swin{size}": partial(Swin, size) for size in SIZES},
}
# Mean and standard deviation of the four maps of timm 1.0.31's networks, filled by `filled` with gain 0.5 and
# shown `noise()`; computed once. Its ResNets are torchvision's, its HRNet and DLA their authors'.
TIMM = {
    "resnet18": ((0.65947, 0.372685), (0.166179, 0.216002), (0.100819, 0.122843), (0.0885787, 0.107262)),
    "resnet34": ((0.694243, 0.406609), (0.201519, 0.219797), (0.179911, 0.187235), (0.117059, 0.14095)),
    "resnet50": ((0.1922, 0.233879), (0.14969, 0.164455), (0.171164, 0.165598), (0.120924, 0.133696)),
    "dla34": ((0.0371632, 0.0569957), (0.0411694, 0.0572194), (0.0449149, 0.0654741), (0.0431301, 0.0621807)),
    "hrnet32": ((0.724545, 0.859887), (0.763973, 0.797667), (0.918015, 0.805501), (0.579403, 0.563953)),
}
FORBIDDEN = {
    "NonZero",
    "If",
    "Loop",
    "Scan",
    "ScatterND",
    "ScatterElements",
    "GridSample",
    "NonMaxSuppression",
}


def on_meta(make: Callable[[], nn.Module]) -> Any:
    """The network without its numbers: shapes, names and work cost nothing."""
    with torch.device("meta"):
        return make().eval()


def filled(key: str, like: Tensor, gain: float = 0.5) -> Tensor:
    """A value that follows from the name alone."""
    if not like.is_floating_point():
        return like
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(like.shape))
    if key.endswith("running_mean"):
        value = 0.1 * noise
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif like.ndim == 1:
        value = 0.01 * noise if key.endswith("bias") else 1 + 0.1 * noise
    else:
        value = gain * noise / np.sqrt(np.prod(like.shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


def noise() -> Tensor:
    values = np.random.Generator(np.random.PCG64(7)).standard_normal((1, 3, 64, 96))
    return torch.from_numpy(values.astype(np.float32))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, height: int, width: int) -> float:
    """In thousand millions, of one picture."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", TIMM)
def test_a_body_computes_what_the_published_network_does(name: str) -> None:
    body = BODIES[name]().eval()
    body.load_state_dict({key: filled(key, value) for key, value in body.state_dict().items()})
    with torch.no_grad():
        maps = body(noise())
    for level, (features, expected) in enumerate(zip(maps, TIMM[name], strict=True)):
        assert features.shape == (1, body.widths[level], 16 >> level, 24 >> level)
        assert (float(features.mean()), float(features.std())) == pytest.approx(expected, rel=1e-4)


def fused_away(width: int) -> int:
    """Parameters of the last exchange towards the branches that a pose HRNet does not give out."""
    c = [width * 2**branch for branch in range(4)]
    down = sum(
        (i - j - 1) * (9 * c[j] ** 2 + 2 * c[j]) + 9 * c[j] * c[i] + 2 * c[i]
        for i in range(1, 4)
        for j in range(i)
    )
    return down + sum(c[j] * c[i] + 2 * c[i] for i in range(1, 4) for j in range(i + 1, 4))


@pytest.mark.parametrize(
    ("name", "beyond", "published", "within"),
    [
        ("resnet18", 512 * 1000 + 1000, 11_689_512, 0),
        ("resnet34", 512 * 1000 + 1000, 21_797_672, 0),
        ("resnet50", 2048 * 1000 + 1000, 25_557_032, 0),
        ("dla34", 512 * 1000 + 1000, 15_742_104, 0),
        # The pose networks of the HRNet paper, table 1: one branch given out, 17 heatmaps.
        ("hrnet32", 17 * 32 + 17 - fused_away(32), 28_500_000, 50_000),
        ("hrnet48", 17 * 48 + 17 - fused_away(48), 63_600_000, 50_000),
        # A classifier and one norm there, one norm for each map here.
        ("swint", 768 * 1000 + 1000 + 2 * 768 - 2 * 15 * 96, 28_288_354, 0),
        ("swinb", 1024 * 1000 + 1000 + 2 * 1024 - 2 * 15 * 128, 87_768_224, 0),
        ("swinl", 1536 * 1000 + 1000 + 2 * 1536 - 2 * 15 * 192, 196_532_476, 0),
    ],
)
def test_bodies_have_the_published_number_of_parameters(
    name: str, beyond: int, published: int, within: int
) -> None:
    assert abs(parameters(on_meta(BODIES[name])) + beyond - published) <= within


@pytest.mark.parametrize(
    ("name", "size", "published"),
    [
        ("resnet18", 224, 1.814),  # torchvision's table of weights, with the classifier
        ("resnet34", 224, 3.664),
        ("resnet50", 224, 4.089),
        ("dla34", 224, 3.07),
        # Authors' code measured with its pyramid at 512x512: 112.2 GFLOP, of which the pyramid has 29.7.
        ("hrnet32", 512, (112.2 - 29.7) / 2),
    ],
)
def test_bodies_do_the_published_work(name: str, size: int, published: float) -> None:
    assert multiply_adds(on_meta(BODIES[name]), size, size) == pytest.approx(published, rel=4e-3)


def test_names_are_the_published_ones() -> None:
    """A handful of each; TIMM's figures need them all."""
    expected: dict[str, Mapping[str, tuple[int, ...]]] = {
        "resnet18": {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.running_var": (512,)},
        "resnet50": {
            "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer3.5.conv3.weight": (1024, 256, 1, 1),
        },
        "hrnet48": {
            "transition1.1.0.0.weight": (96, 256, 3, 3),
            "transition3.3.0.1.weight": (384,),
            "stage4.2.branches.3.3.bn2.bias": (384,),
            "stage4.2.fuse_layers.3.0.1.0.weight": (48, 48, 3, 3),
            "stage4.2.fuse_layers.3.0.2.0.weight": (384, 48, 3, 3),
            "stage4.2.fuse_layers.0.3.0.weight": (48, 384, 1, 1),
        },
        "dla34": {
            "base_layer.0.weight": (16, 3, 7, 7),
            "level3.tree2.root.conv.weight": (128, 448, 1, 1),
            "level4.tree1.project.0.weight": (256, 128, 1, 1),
            "level5.root.conv.weight": (512, 1280, 1, 1),
        },
    }
    for name, keys in expected.items():
        state = on_meta(BODIES[name]).state_dict()
        assert {key: tuple(state[key].shape) for key in keys} == keys


def test_hrnet_has_the_published_modules() -> None:
    """1, 4 and 3 modules of 2, 3 and 4 branches with four blocks each."""
    keys = on_meta(BODIES["hrnet32"]).state_dict()
    blocks = {tuple(key.split(".")[:5]) for key in keys if ".branches." in key}
    modules = Counter(stage for stage, module in {key[:2] for key in blocks})
    assert modules == {"stage2": 1, "stage3": 4, "stage4": 3}
    assert Counter(key[0] for key in blocks) == {
        "stage2": 1 * 2 * 4,
        "stage3": 4 * 3 * 4,
        "stage4": 3 * 4 * 4,
    }


def attend_by_groups(block: SwinBlock, cells: Tensor) -> Tensor:
    """What a block's attention adds to cells (H, W, C): each looks at those of its group, one by one.

    Groups are squares of 7x7 whose borders the shift moves by 3 cells; the last ones reach into zeros beyond.
    """
    height, width, C = cells.shape
    heads, size = C // block.attn.head_dim, block.attn.head_dim
    padded = functional.pad(cells, (0, 0, 0, -width % 7, 0, -height % 7))
    tokens = padded.reshape(-1, C)
    places = [(y, x) for y in range(padded.shape[0]) for x in range(padded.shape[1])]
    groups = [((y - block.shift) // 7, (x - block.shift) // 7) for y, x in places]
    q, k, v = (part.reshape(-1, heads, size) for part in block.attn.qkv(tokens).chunk(3, -1))
    out = torch.zeros(len(places), C)
    for i, (y, x) in enumerate(places):
        mates = [j for j, group in enumerate(groups) if group == groups[i]]
        rows = [(y - places[j][0] + 6) * 13 + x - places[j][1] + 6 for j in mates]
        logits = torch.einsum("hd,mhd->hm", q[i], k[mates]) / size**0.5
        logits = logits + block.attn.relative_position_bias_table[rows].T
        out[i] = torch.einsum("hm,mhd->hd", logits.softmax(-1), v[mates]).flatten()
    out = block.attn.proj(out).reshape(padded.shape)
    return out[:height, :width]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (10, 16), (3, 8)])
def test_a_swin_block_attends_within_its_windows(shifted: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(3)
    block = SwinBlock(8, 2, shifted, 0.0).eval()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    cells = torch.randn(2, *size, 8)
    with torch.no_grad():
        got = block.attend(cells)
        for picture, expected in zip(cells, got, strict=True):
            assert torch.allclose(attend_by_groups(block, picture), expected, atol=1e-5)


def test_swin_gives_four_maps_and_drops_more_the_deeper() -> None:
    body = on_meta(partial(Swin, "t"))
    with torch.no_grad():
        maps = body(torch.empty(2, 3, 64, 96, device="meta"))
    assert [tuple(m.shape) for m in maps] == [(2, 96 << i, 16 >> i, 24 >> i) for i in range(4)]
    rates = [module.drop_path.rate for module in body.modules() if isinstance(module, SwinBlock)]
    assert rates == pytest.approx([0.2 * index / 11 for index in range(12)], abs=1e-6)
    shifts = [[block.shift for block in stage.blocks] for stage in body.layers]
    assert shifts == [[0, 3], [0, 3], [0, 3] * 3, [0, 3]]


def golden_keys(config: str) -> dict[str, str]:
    """Name to shape of what the authors' QueryPose holds in its backbone."""
    prefix = "backbone.bottom_up."
    lines = (line.split() for line in (GOLDEN / "keys" / f"{config}.txt").read_text().splitlines())
    return {key.removeprefix(prefix): shape for key, shape, _ in lines if key.startswith(prefix)}


def as_golden(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def detectron2(key: str) -> str:
    """A torchvision name as QueryPose's ResNet-50 has it; its frozen normalisation counts no batches."""
    for ours, theirs in (("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm")):
        key = key.replace(ours, theirs)
    for number in range(1, 5):
        key = key.replace(f"layer{number}.", f"res{number + 1}.").replace(
            f"bn{number}.", f"conv{number}.norm."
        )
    return key if key.startswith("res") else f"stem.{key}"


@needs_golden
@pytest.mark.parametrize("width", [32, 48])
def test_hrnet_has_queryposes_names(width: int) -> None:
    state = on_meta(BODIES[f"hrnet{width}"]).state_dict()
    assert {key: as_golden(value) for key, value in state.items()} == golden_keys(f"hrnet{width}_light")


@needs_golden
@pytest.mark.parametrize(
    ("body", "case", "rename"),
    [("hrnet32", "hrnet32_light_256x320", str), ("resnet50", "r50_full_256x320", detectron2)],
)
def test_a_body_computes_what_queryposes_does(body: str, case: str, rename: Callable[[str], str]) -> None:
    """Values of the authors' code, with weights that follow from their names for them."""
    rule = runpy.run_path(str(GOLDEN / "fillrule.py"))
    network = BODIES[body]().eval()
    values = {
        key: rule["value_for"](f"backbone.bottom_up.{rename(key)}", value)
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(values)
    golden = np.load(GOLDEN / f"{case}.npz")
    image = torch.from_numpy(rule["make_image"](*golden["image_seeds_h_w"][0]).astype(np.float32))
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    with torch.no_grad():
        maps = network(((image - mean[:, None, None]) / std[:, None, None])[None])
    names = [key for key in golden if key.startswith("bu_") and not key.endswith("stats")]
    for features, name, (channels, places) in zip(
        maps, names, ((4, 8), (8, 4), (16, 2), (16, 2)), strict=True
    ):
        expected = golden[name]
        assert np.allclose(
            features[:, ::channels, ::places, ::places].numpy(), expected, rtol=1e-4, atol=1e-4
        )


def ramps(channels: tuple[int, ...]) -> list[Tensor]:
    """Maps at strides 4 to 32 of a 256x256 picture that hold the x of each cell's centre in its pixels."""
    maps = []
    for level, count in enumerate(channels):
        stride = 4 << level
        maps.append(((torch.arange(256 // stride) + 0.5) * stride).expand(1, count, 256 // stride, -1))
    return maps


def pass_on(neck: nn.Module) -> None:
    """Every convolution hands on its first channel, nothing is normalised."""
    for module in neck.modules():
        if isinstance(module, nn.Conv2d):
            middle = module.kernel_size[0] // 2
            nn.init.zeros_(module.weight)
            module.weight.data[:, 0, middle, middle] = 1
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0


@pytest.mark.parametrize(("neck", "paths"), [(TopDown, 4), (Branches, 4), (DlaUp, 14)])
def test_a_neck_adds_its_maps_at_their_places(neck: Callable[..., nn.Module], paths: int) -> None:
    """A position stays that position through every raising: half-pixel bilinear, nothing moved, nothing lost.

    DLA's neck has 14 ways in: 2 maps make the one at stride 16, 4 that at stride 8, 8 that at stride 4.
    """
    widths = (3, 3, 3, 3)
    made = neck(widths, 2).eval()
    pass_on(made)
    with torch.no_grad():
        out = made(ramps(widths))
    assert out.shape == (1, 2, 64, 64)
    inside = out[0, :, :, 8:-8]  # beyond its last cell's centre a coarse map has nothing to go by
    assert torch.allclose(inside, paths * ramps(widths)[0][0, :2, :, 8:-8], rtol=1e-5)


def test_branches_are_one_convolution_of_all_maps_concatenated() -> None:
    """As specs/qrpose.md writes it."""
    widths = (4, 8, 16, 32)
    neck = Branches(widths, 6).eval()
    maps = [torch.randn(2, width, 16 >> level, 24 >> level) for level, width in enumerate(widths)]
    full = [functional.interpolate(m, size=(16, 24), mode="bilinear", align_corners=False) for m in maps]
    weight = torch.cat([share.weight for share in neck.shares], 1)  # type: ignore[arg-type]
    expected = torch.relu(neck.norm(functional.conv2d(torch.cat(full, 1), weight)))
    with torch.no_grad():
        assert torch.allclose(neck(maps), expected, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_one_map_of_stride_4(name: str) -> None:
    backbone = on_meta(partial(build_backbone, name, 40))
    with torch.no_grad():
        assert backbone(torch.empty(2, 3, 64, 96, device="meta")).shape == (2, 40, 16, 24)


@pytest.mark.parametrize("name", ["resnet18", "hrnet32", "dla34"])
def test_every_weight_of_a_backbone_learns(name: str) -> None:
    """One that never gets a gradient would stop data-parallel training."""
    backbone = on_meta(partial(build_backbone, name, 40))
    backbone(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


PROFILES: dict[str, tuple[int, int, int]] = {  # input, C, c
    "qrpose_tiny": (256, 64, 8),
    "qrpose_edge": (384, 64, 16),
    "qrpose_hrnet32": (512, 64, 16),
    "qrpose_hrnet48": (512, 64, 16),
    "qrpose_dla34": (512, 64, 16),
}


def test_profiles_have_the_sizes_of_the_spec() -> None:
    """At full size, without the numbers."""
    assert list(PROFILES) == [name for name in BUILDERS if name.startswith("qrpose")]
    for name, (side, channels, joint_channels) in PROFILES.items():
        network = on_meta(partial(build, name))
        config = network.config
        assert (config.size, config.channels, config.joint_channels) == (
            (side, side),
            channels,
            joint_channels,
        )
        with torch.no_grad(), torch.device("meta"):
            out = network(torch.empty(1, 3, side, side))
        assert out["keypoints"].shape == (1, 20, 17, 2)


def test_edge_is_resnet18_or_34() -> None:
    assert len(on_meta(partial(build, "qrpose_edge")).backbone.body.layer3) == 2
    assert len(on_meta(partial(build, "qrpose_edge", depth=34)).backbone.body.layer3) == 6
    with pytest.raises(EdgeposeError, match="no depth 50; choose 18 or 34"):
        build("qrpose_edge", depth=50)


@pytest.mark.parametrize(
    ("name", "option", "hint"),
    [
        ("qrpose_edge", "widths", "unknown option 'widths' of qrpose_edge"),
        ("qrpose_edge", "dept", "did you mean 'depth'"),
        ("qrpose_dla34", "backbone", "unknown option 'backbone' of qrpose_dla34"),
        ("qrpose_tiny", "backbone", "unknown option 'backbone' of qrpose_tiny"),
    ],
)
def test_what_a_profile_is_cannot_be_opted_out_of(name: str, option: str, hint: str) -> None:
    with pytest.raises(EdgeposeError, match=hint):
        build(name, **{option: "dla34"})


SMALL: dict[str, Any] = {"size": (64, 64), "candidates": 64}


@pytest.mark.parametrize(
    ("name", "body", "beside"),
    [
        ("qrpose_edge", "resnet18", ("fc.weight", "fc.bias")),
        ("qrpose_dla34", "dla34", ("fc.weight", "level3.project.0.weight", "level4.project.1.running_var")),
        (
            "qrpose_hrnet32",
            "hrnet32",
            ("incre_modules.0.0.conv1.weight", "final_layer.0.weight", "classifier.bias"),
        ),
    ],
)
def test_published_weights_start_a_backbone(
    tmp_path: Path, name: str, body: str, beside: tuple[str, ...]
) -> None:
    """With their classifier, and without the counters that files before PyTorch 0.4 lack."""
    published = {k: v + 1 for k, v in BODIES[body]().state_dict().items() if "num_batches" not in k}
    torch.save({**published, **{key: torch.zeros(3) for key in beside}}, tmp_path / "imagenet.pth")
    network = build(name, **SMALL)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_backbone(network, tmp_path / "imagenet.pth")
    for key, value in network.state_dict().items():
        expected = published.get(key.removeprefix("backbone.body."), before[key])
        assert torch.equal(value, expected), key


def test_published_weights_start_a_swin_and_a_pose_hrnet(tmp_path: Path) -> None:
    """With a classifier, masks and one norm for four; with one branch of the last exchange alone."""
    swin, hrnet = Swin("t"), BODIES["hrnet32"]()
    theirs = {key: value + 1 for key, value in swin.state_dict().items() if not key.startswith("norm")}
    others = ("norm.weight", "head.bias", "layers.2.blocks.5.attn_mask")
    torch.save({"model": {**theirs, **{key: torch.zeros(3) for key in others}}}, tmp_path / "swin.pth")
    network = nn.Module()
    network.backbone = nn.Sequential(OrderedDict(body=Swin("t")))
    load_backbone(network, tmp_path / "swin.pth")
    found = network.get_submodule("backbone.body").state_dict()
    assert all(torch.equal(found[key], value) for key, value in theirs.items())
    theirs = {key: value + 1 for key, value in hrnet.state_dict().items() if not key.startswith(hrnet.fresh)}
    assert 0 < len(hrnet.state_dict()) - len(theirs) < 120
    torch.save({**theirs, "final_layer.weight": torch.zeros(3)}, tmp_path / "pose_hrnet.pth")
    network.backbone = nn.Sequential(OrderedDict(body=BODIES["hrnet32"]()))
    load_backbone(network, tmp_path / "pose_hrnet.pth")
    found = network.get_submodule("backbone.body").state_dict()
    assert all(torch.equal(found[key], value) for key, value in theirs.items())


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save(ResNet(34).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(
        EdgeposeError, match=r"resnet34\.pth: these weights are of another backbone: layer1\.2.*unexpected"
    ):
        load_backbone(build("qrpose_edge", **SMALL), tmp_path / "resnet34.pth")
    with pytest.raises(EdgeposeError, match="no published weights for this model's backbone"):
        load_backbone(build("qrpose_tiny", **SMALL), tmp_path / "resnet34.pth")
    with pytest.raises(EdgeposeError, match=r"nothing\.pth: no such file"):
        load_backbone(build("qrpose_edge", **SMALL), tmp_path / "nothing.pth")


def test_a_small_backbone_starts_from_one_like_it(tmp_path: Path) -> None:
    """Of another QueryPose network, or of a QR-Pose network; a narrower or flat layer is refused by name."""
    network = build("querypose_tiny", size=(64, 64))
    body = network.get_submodule("backbone.body")
    for prefix in ("backbone.body.", "backbone."):
        given = {prefix + key: value + 1 for key, value in body.state_dict().items()}
        save_file({**given, "backbone.neck.more": torch.zeros(3)}, tmp_path / "one.safetensors")
        load_backbone(network, tmp_path / "one.safetensors")
        assert all(torch.equal(value, given[prefix + key]) for key, value in body.state_dict().items())
    key = "backbone.stage8.first.0.weight"
    for wrong, said in (
        (given[key][:-1], r"stage8.first.0.weight is \(63, "),
        (torch.zeros(3), r"stage8.first.0.weight is \(3,\)"),
    ):
        save_file({**given, key: wrong}, tmp_path / "other.safetensors")
        with pytest.raises(EdgeposeError, match=rf"other\.safetensors: .*another backbone: {said}"):
            load_backbone(network, tmp_path / "other.safetensors")


def lively(name: str, gain: float) -> QrPose:
    """Far offsets, unequal scores and uneven batch statistics, as after training."""
    network = build(name, **SMALL)
    assert isinstance(network, QrPose)
    network.load_state_dict({key: filled(key, value, gain) for key, value in network.state_dict().items()})
    return network.eval()


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        ("qrpose_edge", 1.0),
        pytest.param("qrpose_dla34", 1.2, marks=pytest.mark.slow),
        pytest.param("qrpose_hrnet32", 0.7, marks=pytest.mark.slow),
        pytest.param("qrpose_hrnet48", 0.7, marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_says_what_torch_says(name: str, gain: float, tmp_path: Path) -> None:
    """The sparse graph of each profile, at another batch than it was exported with."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    network, path = lively(name, gain), tmp_path / "graph.onnx"
    outputs = ["scores", "boxes", "keypoints", "keypoint_scores"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own future
        torch.onnx.export(
            network,
            (torch.randn(2, 3, 64, 64),),
            str(path),
            input_names=["images"],
            output_names=outputs,
            opset_version=18,
            dynamo=True,
            verbose=False,
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=16)}},
        )
    assert not FORBIDDEN & {node.op_type for node in onnx.load(str(path)).graph.node}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 64, 64)
    found = dict(zip(outputs, session.run(outputs, {"images": images.numpy()}), strict=True))
    with torch.no_grad():
        expected = {key: value.numpy() for key, value in network(images).items()}
    assert expected["keypoints"].std() > 4
    assert np.abs(found["scores"] - expected["scores"]).max() < 1e-4
    apart = np.abs(np.diff(expected["scores"], prepend=2.0, append=-1.0)) > 1e-5
    told = apart[:, 1:] & apart[:, :-1] & (expected["scores"] > 0)  # equal scores may change places
    assert told.sum() > 12
    for key, tolerance in (("keypoints", 0.05), ("boxes", 0.05), ("keypoint_scores", 1e-4)):
        assert np.abs(found[key] - expected[key])[told].max() < tolerance, key
