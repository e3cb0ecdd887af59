"""QueryPose's parts against other implementations, its gating, its size, and what it refuses."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_querypose import SIZE, images, made
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import SKELETONS
from edgepose.training.models import build
from edgepose.training.models.querypose import NAMES, TINY
from edgepose.training.models.querypose.dynamic import DynamicConv
from edgepose.training.models.querypose.network import QueryPose
from edgepose.training.models.querypose.parts import PARTS, places
from edgepose.training.models.querypose.pose_stage import chance
from edgepose.training.models.querypose.pyramids import Fpn, HrFpn, HrFpnV1
from edgepose.training.models.querypose.roi import (
    STRIDES,
    multiplied,
    multiplied_by_size,
    pooled,
    pooled_by_size,
)

GOLDEN = Path(__file__).parents[3] / "shared/golden/querypose"
README = Path(__file__).parents[2] / "training/README.md"
OUTPUTS = ("scores", "boxes", "keypoints", "keypoint_scores")


def published(name: str, top_k: int | None) -> QueryPose:
    network = build(name, size=SIZE, top_k=top_k)
    assert isinstance(network, QueryPose)
    return network


def lively(network: QueryPose) -> QueryPose:
    """Unequal queries, boxes of many sizes and far joints, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_((0.2 if ".delta." in name else 1.0) * noise / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.01 * noise if name.endswith("bias") else 1 + 0.1 * noise)
        centre, size = torch.randn(2, len(network.queries.boxes), 2)
        boxes = torch.cat([0.5 + 0.2 * centre.tanh(), 0.05 + 1.2 * torch.sigmoid(1.5 * size)], -1)
        network.queries.boxes.copy_(boxes)
    return network.eval()


# Pooling.


def onnx_roi_align(features: Tensor, boxes: Tensor, stride: int, cells: int) -> Tensor:
    """ONNX Runtime's own, for boxes (N, 4) in one picture's map (1, C, H, W), all float64.

    In float32 a box of 1,400 pixels is 3e-5 off by rounding alone.
    """
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto
    node = helper.make_node(
        "RoiAlign",
        ["x", "rois", "images"],
        ["y"],
        output_height=cells,
        output_width=cells,
        sampling_ratio=2,
        spatial_scale=1 / stride,
        coordinate_transformation_mode="half_pixel",
    )
    inputs = [
        helper.make_tensor_value_info(n, t, None)
        for n, t in zip(("x", "rois", "images"), (kind.DOUBLE, kind.DOUBLE, kind.INT64), strict=True)
    ]
    output = helper.make_tensor_value_info("y", kind.DOUBLE, None)
    graph = helper.make_graph([node], "roi", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": features.numpy(), "rois": boxes.numpy(), "images": np.zeros(len(boxes), np.int64)}
    return torch.from_numpy(session.run(None, feeds)[0])


def random_boxes(seed: int, count: int, side: float) -> Tensor:
    """(count, 4), many of them far outside a picture of `side` pixels, some turned inside out."""
    generator = torch.Generator().manual_seed(seed)
    centre = side * (torch.rand(count, 2, generator=generator) * 2 - 0.5)
    size = side * torch.randn(count, 2, generator=generator)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000), width=st.integers(1, 30), height=st.integers(1, 30), cells=st.integers(1, 9)
)
def test_pooling_is_roi_align(seed: int, width: int, height: int, cells: int) -> None:
    """Of two pictures, each of which must be read in its own map; products of any number of boxes in each."""
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)).double()
    side = 4.0 * max(width, height)
    boxes = torch.stack([random_boxes(seed + picture, 9, side) for picture in (0, 1)]).double()
    expected = torch.cat([onnx_roi_align(maps[i : i + 1], boxes[i], 4, cells) for i in (0, 1)])
    assert torch.allclose(pooled(maps, boxes, cells, "roialign"), expected, atol=1e-10)
    some = torch.rand(2, 9, generator=torch.Generator().manual_seed(seed)) < 0.5
    got = multiplied(maps, boxes[some], some.nonzero()[:, 0], cells)
    assert torch.allclose(got, expected[some.flatten()], atol=1e-10)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_each_box_is_read_from_the_map_of_its_size(seed: int) -> None:
    """The logarithm of section 6, and the coarsest or the finest map beyond."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(1, 2, 64 >> level, 64 >> level, generator=generator).double() for level in range(4)]
    centre = 256 * torch.rand(12, 2, generator=generator)
    side = 2 ** (3 + 8 * torch.rand(12, 2, generator=generator))
    boxes = torch.cat([centre - side / 2, centre + side / 2], -1).double()
    boxes[0] = boxes[0, [0, 1, 0, 1]]  # without area
    level = (4 + torch.log2((boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt() / 224 + 1e-8)).floor().clamp(2, 5)
    expected = [onnx_roi_align(maps[i], boxes, stride, 7) for i, stride in enumerate(STRIDES)]
    chosen = torch.stack([expected[int(i) - 2][row] for row, i in enumerate(level)])
    for got in (pooled_by_size(maps, boxes[None], 7, "roialign"), multiplied_by_size(maps, boxes[None], 7)):
        assert torch.allclose(got, chosen, atol=1e-10)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), count=st.sampled_from([1, 4]))
def test_products_have_the_gradients_of_gathered_samples(seed: int, count: int) -> None:
    """Of the maps and of the boxes, far outside and turned inside out too."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 3, 48 >> i, 32 >> i, generator=generator).double() for i in range(count)]
    boxes = torch.stack([random_boxes(seed + picture, 9, 400.0) for picture in (0, 1)]).double()
    boxes[0, 0] = torch.tensor([20.0, 10.0, 90.0, 100.0])  # with some seeds all others lie outside
    inputs = [value.requires_grad_() for value in (boxes, *maps)]
    if count > 1:
        gathered, products = pooled_by_size(maps, boxes, 7, "roialign"), multiplied_by_size(maps, boxes, 7)
    else:
        image = torch.arange(2).repeat_interleave(9)
        gathered, products = (
            pooled(*maps, boxes, 7, "roialign"),
            multiplied(*maps, boxes.flatten(0, 1), image, 7),
        )
    ways = torch.randn(gathered.shape, generator=generator).double()
    expected = torch.autograd.grad((gathered * ways).sum(), inputs)
    got = torch.autograd.grad((products * ways).sum(), inputs)
    assert any(value.any() for value in expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-9)


def test_the_level_changes_at_112_224_and_448_pixels() -> None:
    maps = [torch.full((1, 1, 512 >> level, 512 >> level), float(level)) for level in range(4)]
    sides = (8.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0)
    boxes = torch.tensor(
        [[[1000 - side / 2, 1000 - side / 2, 1000 + side / 2, 1000 + side / 2] for side in sides]]
    )
    levels = pooled_by_size(maps, boxes, 7, "roialign")[:, 0, 3, 3].tolist()
    assert levels == [0, 0, 1, 1, 2, 2, 3, 3]


# Layers.


def test_a_dynamic_layer_is_written_out() -> None:
    """Weights in the order of section 7: the first half (C, D), the second (D, C), cells before channels."""
    C, D = 6, 4
    layer, queries, regions = DynamicConv(C, D, 3), torch.randn(5, C), torch.randn(5, C, 3, 3)
    with torch.no_grad():
        got = layer(queries, regions)
        for person in range(5):
            made = layer.dynamic_layer(queries[person])
            first, second = made[: C * D].reshape(C, D), made[C * D :].reshape(D, C)
            cells = [regions[person, :, row, column] for row in range(3) for column in range(3)]
            seen = [functional.layer_norm(cell @ first, (D,)).relu() for cell in cells]
            seen = [functional.layer_norm(cell @ second, (C,)).relu() for cell in seen]
            expected = functional.layer_norm(layer.out_layer(torch.cat(seen)), (C,)).relu()
            assert torch.allclose(got[person], expected, atol=1e-5)


@pytest.mark.parametrize("neck", [Fpn, HrFpn, HrFpnV1])
def test_pyramids_keep_places(neck: Any) -> None:
    """Each level of each pyramid holds the mean place of its cells when its maps hold theirs."""
    made = neck((2, 2, 2, 2), 2).eval()
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            middle = module.kernel_size[0] // 2
            nn.init.zeros_(module.weight)
            inputs = module.weight.shape[1] // 2
            for channel in (0, 1):
                module.weight.data[channel, channel::2, middle, middle] = 1 / inputs
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    maps = []
    for stride in STRIDES:
        along = (torch.arange(128 // stride) + 0.5) * stride
        maps.append(torch.stack(torch.meshgrid(along, along, indexing="xy"))[None])
    with torch.no_grad():
        levels = made(maps)
    counts = {Fpn: (4, 3, 2, 1), HrFpn: (1, 1, 1, 1), HrFpnV1: (1, 2, 3, 4)}[neck]
    for level, features in enumerate(levels):
        assert features.shape == maps[level].shape
        # Nearest copies of FPN move a place by up to half a coarse cell; their mean over such a cell stays.
        whole = 8 >> level
        got, expected = functional.avg_pool2d(features, whole), functional.avg_pool2d(maps[level], whole)
        inner = got[..., 1:-1, 1:-1] / counts[level]
        assert torch.allclose(inner, expected[..., 1:-1, 1:-1], atol=1e-3)


@pytest.mark.parametrize("skeleton", PARTS)
def test_parts_hold_every_joint_once_and_are_mirrored(skeleton: str) -> None:
    parts, joints = PARTS[skeleton], SKELETONS[skeleton]
    written = [joint for part in parts for joint in part]
    assert sorted(written) == list(range(len(joints)))
    assert [written[place] for place in places(parts)] == list(range(len(joints)))
    assert {frozenset(joints.mirror[joint] for joint in part) for part in parts} == set(map(frozenset, parts))
    for part in parts:  # a limb is on one side, the others on both
        sides = {joints.joints[joint].partition("_")[0] for joint in part}
        assert len(sides) == 1 or {joints.mirror[joint] for joint in part} == set(part)
    if skeleton == "coco17":  # section 8.6
        assert places(parts) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 8, 10, 11, 12, 13, 15, 14, 16]


# The graph.


def test_a_chance_is_a_sigmoid_that_depends_on_nothing_else() -> None:
    logits = 5 * torch.randn(3000)
    whole = chance(logits)
    assert torch.allclose(whole, torch.sigmoid(logits), rtol=1e-6)
    assert all(torch.equal(chance(logits[:count].clone()), whole[:count]) for count in range(1, 300))
    assert chance(torch.tensor([-1e4, 1e4])).tolist() == [0, 1]


@pytest.mark.parametrize("top_k", [20, 10, 7])
def test_gating_changes_nothing_about_those_who_stay(top_k: int) -> None:
    """Not by a bit: with the default of 20, and with fewer, of one picture and of three."""
    gated, every = lively(made(top_k=top_k)), lively(made(top_k=None))
    for count in (1, 3):
        require_gated(gated, every, images(count))


def require_gated(gated: QueryPose, every: QueryPose, pictures: Tensor) -> None:
    """The best queries of `every`, best first, and all equal."""
    with torch.no_grad():
        few, all_ = gated(pictures), every(pictures)
        told = every.boxed(every.backbone(pictures), torch.tensor([SIZE] * len(pictures)).float())
    top_k = gated.config.top_k
    best = told[-1].logits.argsort(1, descending=True)[:, :top_k]
    for name in OUTPUTS:
        chosen = torch.stack([values[rows] for values, rows in zip(all_[name], best, strict=True)])
        assert few[name].shape[:2] == (len(pictures), top_k)
        assert (few[name] - chosen).abs().max().item() == 0.0, name
    assert torch.equal(all_["boxes"], told[-1].boxes), "without gating the queries keep their order"
    assert few["keypoints"].std() > 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["querypose_hrnet32", "querypose_r50_full"])
def test_gating_changes_nothing_in_a_published_network(name: str) -> None:
    """All 100 queries, and the 20 best."""
    gated, every = (lively(published(name, top_k)) for top_k in (20, None))
    require_gated(gated, every, images(1))


def test_outputs_hold_together() -> None:
    """Scores from persons and joints, keypoints from boxes: section 9."""
    network = lively(made(top_k=None))
    with torch.no_grad():
        maps = network.backbone(images(2))
        out = network(images(2))
        told = network.boxed(maps, torch.tensor([SIZE] * 2).float())
        joints = network.posed(maps[0], told)
    sure = (1 - joints.deviations.mean(-1)).reshape(2, 30, 17)
    assert torch.allclose(out["keypoint_scores"], sure)
    assert torch.allclose(out["scores"], torch.sigmoid(told[-1].logits) * sure.mean(-1))
    x0, y0, x1, y1 = out["boxes"].unbind(-1)
    place = joints.coordinates.reshape(2, 30, 17, 2)
    assert torch.allclose(
        out["keypoints"][..., 0], (place[..., 0] + 0.5) * (x1 - x0)[..., None] + x0[..., None], atol=1e-3
    )
    assert torch.allclose(
        out["keypoints"][..., 1], (place[..., 1] + 0.5) * (y1 - y0)[..., None] + y0[..., None], atol=1e-3
    )


def test_sizes_without_padding_scale_the_first_boxes_alone() -> None:
    """By default the whole input is the picture."""
    network = lively(made())
    with torch.no_grad():
        default = network(images(2))
        whole = network(images(2), sizes=torch.tensor([SIZE] * 2).float())
        half = network(images(2), sizes=torch.tensor([SIZE, (48, 64)]).float())
    for name in OUTPUTS:
        assert torch.equal(default[name], whole[name])
        assert torch.equal(default[name][0], half[name][0])
        assert not torch.equal(default[name][1], half[name][1])
    first = network.queries.first_boxes(torch.tensor([[200.0, 100.0]]))
    centre, size = network.queries.boxes[0, :2], network.queries.boxes[0, 2:]
    expected = torch.cat([centre - size / 2, centre + size / 2]) * torch.tensor([200.0, 100, 200, 100])
    assert torch.allclose(first[0, 0], expected)


def test_pictures_of_a_batch_do_not_meet() -> None:
    network = lively(made())
    with torch.no_grad():
        both, second = network(images(2)), network(images(2)[1:])
    for name in OUTPUTS:
        assert torch.allclose(both[name][1], second[name][0], atol=1e-3), name


def test_fourteen_joints_are_a_configuration() -> None:
    network = lively(made(skeleton="crowdpose14"))
    with torch.no_grad():
        out = network(images(1))
    assert [tuple(out[name].shape) for name in OUTPUTS] == [(1, 20), (1, 20, 4), (1, 20, 14, 2), (1, 20, 14)]
    with torch.device("meta"):
        published = build("querypose_hrnet32", skeleton="crowdpose14").state_dict()
    assert published["pose_stages.5.coordinates.0.weight"].shape == (4, 128)


# Bad input.


@pytest.mark.parametrize("size", [(31, 31), (96, 31), (0, 64), (100, 64)])
def test_images_that_the_maps_do_not_divide_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        EdgeposeError, match=rf"of {size[0]}x{size[1]} pixels; letterbox them to sides divisible by 32"
    ):
        made().eval()(images(1, size))


def test_the_smallest_image_and_an_empty_batch() -> None:
    with torch.no_grad():
        smallest, nobody = lively(made())(images(1, (32, 32))), lively(made())(images(0))
    assert all(value.isfinite().all() for value in smallest.values())
    assert [tuple(nobody[name].shape) for name in OUTPUTS] == [
        (0, 20),
        (0, 20, 4),
        (0, 20, 17, 2),
        (0, 20, 17),
    ]


def test_training_needs_targets() -> None:
    with pytest.raises(TypeError, match="needs the targets"):
        made().train()(images(1))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (TINY, {"top": 3}, "unknown option 'top' of querypose_tiny; did you mean 'top_k'"),
        (TINY, {"top_k": 31}, "top_k is 31 of 30 queries; choose at most 30"),
        (TINY, {"top_k": 0}, "querypose_tiny: option 'top_k"),
        (TINY, {"size": (100, 64)}, r"size is \(100, 64\); choose sides divisible by 32"),
        (TINY, {"heads": 3}, "do not split into 3 heads; choose multiples of 3"),
        (TINY, {"backbone": "resnet50"}, "unknown option 'backbone' of querypose_tiny"),
        (
            "querypose_r50",
            {"channels": 128},
            "unknown option 'channels' of querypose_r50; known are size, skeleton",
        ),
        ("querypose_r50", {"full": True}, "unknown option 'full' of querypose_r50"),
        ("querypose_r50", {"roi": "deformable"}, "querypose_r50: option 'roi' is 'deformable'"),
        ("querypose_r50", {"skeleton": "mpii"}, "querypose_r50: option 'skeleton' is 'mpii'"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgeposeError, match=sentence):
        build(name, **options)


# Size and work.

WORK = {  # GFLOP of backbone and pyramid at 512x512 (section 12), M parameters of both (section 1)
    "querypose_r50": (72.4, 23.455 + 3.344),
    "querypose_hrnet32": (112.2, 29.306 + 3.074),
    "querypose_hrnet48": (201.6, 65.325 + 3.318),
    "querypose_swint": (78.2, 27.521 + 2.730),
    "querypose_swinb": (201.4, 86.745 + 2.853),
    "querypose_swinl": (416.5, 194.998 + 3.099),
}


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


HEAVY = ("querypose_hrnet48", "querypose_swinb", "querypose_swinl")  # to build, even without numbers


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in WORK]
)
def test_backbones_have_the_size_and_do_the_work_of_the_spec(name: str) -> None:
    with torch.device("meta"):
        network = build(name).eval()
    assert isinstance(network, QueryPose)
    work, size = WORK[name]
    unread = {"querypose_hrnet32": 0.590, "querypose_hrnet48": 0.590 + 0.012}.get(
        name, 0
    )  # fpn_conv.4, lateral 0
    assert millions(network.backbone) + unread == pytest.approx(size, abs=1.5e-3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.backbone(torch.empty(1, 3, 512, 512, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(work, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "size", "work"),
    [
        ("querypose_r50", 82.552, {10: 304.4, 20: 608.7, 100: 3043.7}),
        ("querypose_r50_full", 216.471, {10: 307.8, 20: 615.6, 100: 3078.1}),
    ],
)
def test_heads_have_the_size_and_do_the_work_of_the_spec(
    name: str, size: float, work: dict[int, float]
) -> None:
    """Gating by ten makes the pose stages ten times cheaper (sections 1 and 12)."""
    with torch.device("meta"):
        network = build(name).eval()
        assert isinstance(network, QueryPose)
        unread = 6 * (128 * 128 + 256) / 1e6  # fc3 and its norm
        assert millions(network.pose_stages) + unread == pytest.approx(size, abs=1e-3)
        assert millions(network.box_stages) == pytest.approx(79.291, abs=1e-3)
        maps = [torch.empty(1, 256, 16 >> level, 16 >> level) for level in range(4)]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            told = network.boxed(maps, torch.empty(1, 2))
        assert counter.get_total_flops() / 1e9 == pytest.approx(17.8, rel=2e-3)
        for people, expected in work.items():
            chosen = [stage.chosen(torch.zeros(1, people, dtype=torch.int64)) for stage in told]
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network.posed(maps[0], chosen)
            assert counter.get_total_flops() / 1e9 == pytest.approx(expected, rel=1e-3)


def readme_row(name: str) -> list[float]:
    """Input, M parameters, G multiply-adds, and those of backbone and neck, as the README has them."""
    row = re.search(rf"^\| `{name}` \|(.*)\|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    return [float(re.sub(r"[^0-9.]", "", cell)) for cell in row[1].split("|")]


@pytest.mark.parametrize(
    "name", [TINY, *(pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in NAMES)]
)
def test_the_readme_says_what_a_network_is(name: str) -> None:
    """The default of 20 queries with a pose."""
    with torch.device("meta"):
        network = build(name).eval()
    assert isinstance(network, QueryPose)
    side, parameters, work, backbone = readme_row(name)
    assert network.config.size == (side, side)
    assert millions(network) == pytest.approx(parameters, abs=0.06)
    if name == TINY:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, int(side), int(side), device="meta"))
        found = counter.get_total_flops(), sum(counter.get_flop_counts()["QueryPose.backbone"].values())
        assert [value / 2e9 for value in found] == pytest.approx([work, backbone], abs=0.06)
    else:
        assert [backbone, work] == pytest.approx(
            [WORK[name][0] / 2, (WORK[name][0] + 17.8 + 608.7) / 2], abs=0.11
        )


def test_tiny_is_small() -> None:
    network = made()
    assert sum(value.numel() * value.element_size() for value in network.state_dict().values()) < 5.9e6
    assert len(network.box_stages) <= 3
    assert len(network.queries.features) <= 30
