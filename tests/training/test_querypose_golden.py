"""QueryPose against the outputs, losses and gradients of the authors' code (golden/querypose/README.md)."""

from __future__ import annotations

import math
import runpy
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from edgepose.training.models import build
from edgepose.training.models.backbones.swin import relative_positions
from edgepose.training.models.querypose.box_stage import BoxStage
from edgepose.training.models.querypose.losses import Learned, Loss
from edgepose.training.models.querypose.network import QueryPose, Told
from edgepose.training.models.querypose.pose_stage import Joints, PoseStage
from edgepose.training.models.querypose.published import named_here
from edgepose.training.models.querypose.targets import Targets

GOLDEN = Path(__file__).parents[3] / "shared/golden/querypose"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the QueryPose goldens are not beside the project"
)
# Largest differences, of the README's section 6.
VALUES, PIXELS, SCORES = 1e-4, 5e-3, 1e-5
CONFIGS = {
    "r50": "querypose_r50",
    "hrnet32": "querypose_hrnet32",
    "hrnet48": "querypose_hrnet48",
    "swinT": "querypose_swint",
    "swinB": "querypose_swinb",
    "swinL": "querypose_swinl",
}
UNREAD = {"fc3", "norm_fc3", "4", "0"}  # of the updater, and of the pyramids' lists of convolutions
CASES = {
    "hrnet32_light_256x320": "querypose_hrnet32",
    "r50_full_256x320": "querypose_r50_full",
    "swinT_full_256x320": "querypose_swint_full",
    "r50_full_batch2_padded": "querypose_r50_full",
}


def golden_keys(config: str) -> dict[str, tuple[int, ...]]:
    lines = (line.split() for line in (GOLDEN / "keys" / f"{config}.txt").read_text().splitlines())
    return {
        key: () if shape == "scalar" else tuple(int(side) for side in shape.split("x"))
        for key, shape, _ in lines
    }


@cache
def rule(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = runpy.run_path(str(GOLDEN / "fillrule.py"))[name]
    return found


@cache
def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the goldens' README derives from a name; the heads are the same in every backbone."""
    value: Tensor = rule("value_for")(key, torch.empty(shape))
    return value


def golden_network(name: str) -> QueryPose:
    """Filled by the README's rule, as a file of the authors is: by their names."""
    with torch.device("meta"):
        network = build(name, top_k=None, reference=True)
    assert isinstance(network, QueryPose)
    config = next(key for key, value in CONFIGS.items() if name.removesuffix("_full") == value)
    keys = golden_keys(f"{config}_{'full' if network.config.full else 'light'}")
    state = {ours: weight(key, shape) for key, shape in keys.items() if (ours := named_here(key)) is not None}
    for key, value in network.state_dict().items():
        if not value.is_floating_point():  # counters and Swin's table of positions stay as constructed
            state[key] = relative_positions() if "position" in key else torch.zeros((), dtype=torch.int64)
    # Training changes statistics in place, and the weights are shared.
    state = {key: value.clone() if "running" in key else value for key, value in state.items()}
    network.load_state_dict(state, assign=True)
    return network


@cache
def golden_arrays(case: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / f"{case}.npz") as arrays:
        return dict(arrays)


def golden_batch(images: list[npt.NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Normalised, then padded right and below to one size; and the sizes (B, 2) without padding."""
    mean, std = (np.array(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    sides = np.array([image.shape[1:] for image in images])
    height, width = (-(-sides.max(0) // 32) * 32).tolist()
    batch = np.zeros((len(images), 3, height, width), np.float32)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = (image.astype(np.float32) - mean) / std
    return torch.from_numpy(batch), torch.from_numpy(sides[:, ::-1].astype(np.float32))


def golden_images(case: str) -> tuple[Tensor, Tensor]:
    arrays = golden_arrays(case)
    images = [rule("make_image")(*seed_size) for seed_size in arrays["image_seeds_h_w"]]
    assert [zlib.crc32(image.tobytes()) for image in images] == arrays["image_crc32"].tolist()
    return golden_batch(images)


@contextmanager
def recorded(**modules: nn.Module) -> Iterator[dict[str, Any]]:
    """What each module was given, as NAME_in, and gave out, by the name it is passed under."""
    seen: dict[str, Any] = {}
    hooks = []
    for name, module in modules.items():

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> None:
            seen[name], seen[f"{name}_in"] = output, inputs

        hooks.append(module.register_forward_hook(hook))
    yield seen
    for handle in hooks:
        handle.remove()


class Comparison:
    """Golden arrays against ours, each once; every `step`-th person went through the pose stages."""

    def __init__(self, case: str, step: int) -> None:
        self.arrays, self.step = golden_arrays(case), step
        about_the_run = {"image_seeds_h_w", "image_crc32", "level_margin"}
        self.left = self.arrays.keys() - about_the_run

    def same(self, name: str, got: Tensor, tolerance: float = VALUES) -> None:
        """Of the array that was kept."""
        expected = self.arrays[name]
        assert got.shape == expected.shape, name
        assert np.abs(got.numpy() - expected).max() < tolerance, name
        self.left.discard(name)

    def sampled(self, name: str, got: Tensor, *steps: int) -> None:
        """Of every steps-th element along each axis, and of the whole tensor's statistics."""
        self.same(name, got[tuple(slice(None, None, step) for step in steps)])
        self.stats(name, got)

    def stats(self, name: str, got: Tensor) -> None:
        """Mean, standard deviation, largest and norm, where they were kept."""
        expected = self.arrays.get(f"{name}__stats")
        if expected is not None and self.step == 1:
            whole = got.double()
            moments = [whole.mean(), whole.std(correction=0), whole.abs().max(), whole.norm()]
            assert np.allclose(moments, expected, rtol=1e-4, atol=1e-5), name
            self.left.discard(f"{name}__stats")

    def people(
        self, name: str, got: Tensor, step: int = 1, cells: int = 1, tolerance: float = VALUES
    ) -> None:
        """Of (m, ...) people, of whom every `step`-th was kept, of these every `cells`-th channel."""
        self.stats(name, got)
        common = math.lcm(step, self.step)
        kept = self.arrays[name]
        if kept.shape[0] == 7:  # parts first, there
            kept = kept.transpose(1, 0, 2)
        ours = got[:: common // self.step, ::cells].numpy()
        expected = kept[:: common // step]
        assert ours.shape == expected.shape, name
        assert np.abs(ours - expected).max() < tolerance, name
        self.left.discard(name)

    def pictures(self, name: str, got: Tensor, tolerance: float) -> None:
        """Of (B, n, ...), for every step-th query of each picture."""
        expected = self.arrays[name][:, :: self.step]
        assert got.shape == expected.shape, name
        assert np.abs(got.numpy() - expected).max() < tolerance, name
        self.left.discard(name)


def compare_maps(network: QueryPose, images: Tensor, check: Comparison) -> list[Tensor]:
    """Backbone and pyramid."""
    maps = network.backbone.body(images)
    names = [name for name in check.arrays if name.startswith("bu_") and not name.endswith("__stats")]
    for name, features, (channels, places) in zip(
        names, maps, ((4, 8), (8, 4), (16, 2), (16, 2)), strict=True
    ):
        check.sampled(name, features, 1, channels, places, places)
    levels: list[Tensor] = network.backbone.neck(maps)
    for level, (features, places) in enumerate(zip(levels, (8, 4, 2, 1), strict=True), 2):
        check.sampled(f"fpn_p{level}", features, 1, 16, places, places)
    return levels


def compare_boxes(network: QueryPose, maps: list[Tensor], sizes: Tensor, check: Comparison) -> list[Told]:
    """All box stages, and the first one's inside."""
    first = network.box_stages[0]
    assert isinstance(first, BoxStage)
    with recorded(stage=first, attention=first.attention, dyn=first.interaction) as seen:
        told = network.boxed(maps, sizes)
    check.sampled("s0_box_roi", seen["stage_in"][1], 5, 16)
    check.same("s0_box_selfattn", seen["attention"].transpose(0, 1))
    check.sampled("s0_box_dyn", seen["dyn"], 4)
    for index, stage in enumerate(told):
        check.same(f"s{index}_logits", stage.logits[..., None])
        check.same(f"s{index}_boxes", stage.boxes, PIXELS)
        check.sampled(f"s{index}_obj", stage.queries.flatten(0, 1)[None], 1, 4)
    return told


def compare_poses(network: QueryPose, finest: Tensor, told: list[Told], check: Comparison) -> Joints:
    """All pose stages, and the first one's inside."""
    stages = cast(list[PoseStage], list(network.pose_stages))
    first = stages[0]
    inside = {"convs": first.convs, "up": first.embedding.raise_, "lsa": first.embedding.attend}
    inside |= {"spegm": first.embedding, "sim": first.selection, "part_selfattn": first.attention}
    if first.instance is not None:
        inside["dyn"] = first.instance.interaction
    with recorded(**inside, **{f"stage{index}": stage for index, stage in enumerate(stages)}) as seen:
        joints = network.posed(finest, told)
    check.people("s0_pose_roi", seen["stage0_in"][1], 10, 16)
    check.people("s0_pose_convs", seen["convs"], 10, 16)
    check.people("s0_pose_up", torch.relu(seen["up"]), 20, 32)
    check.people("s0_lsa_logits", seen["lsa"], 20)
    check.people("s0_spegm_out", seen["spegm"].embeddings, 4)
    check.people("s0_sim_out", seen["sim"], 4)
    check.people("s0_part_selfattn", seen["part_selfattn"], 4)
    if first.instance is not None:
        check.people("s0_pose_dyn", seen["dyn"], 4)
    for index, stage in enumerate(stages):
        parts = seen[f"stage{index}"].parts
        check.stats(f"s{index}_partq", parts)
        if f"s{index}_partq" in check.arrays:
            check.people(f"s{index}_partq", parts, 4)
        found = stage.joints(parts)
        check.people(f"s{index}_kpts", torch.cat([found.coordinates, found.scores[..., None]], -1))
        check.people(f"s{index}_sigma", found.deviations)
    return joints


def compare_outputs(out: dict[str, Tensor], sizes: Tensor, check: Comparison) -> None:
    """What the graph gives, and with all queries there what the authors made of it in the end."""
    check.pictures("final_scores", out["scores"], SCORES)
    pixels = torch.cat([out["keypoints"], out["keypoint_scores"][..., None]], -1)
    check.pictures("final_kpts_px", pixels, PIXELS)
    if check.step > 1:
        return
    for image, size in enumerate(sizes):
        wanted = (1.5 * size).floor()
        factor = wanted / size
        order = out["scores"][image].argsort(descending=True)
        boxes = (out["boxes"][image, order] * factor.repeat(2)).clamp(torch.zeros(4), wanted.repeat(2))
        keypoints = torch.cat([pixels[image, order, :, :2] * factor, pixels[image, order, :, 2:]], -1)
        check.same(f"post{image}_scores", out["scores"][image, order], SCORES)
        check.same(f"post{image}_boxes", boxes, PIXELS)
        check.same(f"post{image}_kpts", keypoints, PIXELS)


def compare(case: str, step: int) -> set[str]:
    """Everything the case holds, for every step-th query of its pictures; the arrays that were not."""
    network, check = golden_network(CASES[case]).eval(), Comparison(case, step)
    images, sizes = golden_images(case)
    with torch.no_grad():
        maps = compare_maps(network, images, check)
        told = compare_boxes(network, maps, sizes, check)
        chosen = torch.arange(0, 100, step).expand(len(images), -1)
        told = [stage.chosen(chosen) for stage in told]
        joints = compare_poses(network, maps[0], told, check)
        out = network.outputs(told[-1], joints)
        compare_outputs(out, sizes, check)
    return check.left


@needs_golden
@pytest.mark.parametrize("version", ["light", "full"])
@pytest.mark.parametrize("config", CONFIGS)
def test_weights_have_the_authors_names_and_shapes(config: str, version: str) -> None:
    """Through the one mapping, which leaves out what nobody reads and changes nothing that has our name."""
    with torch.device("meta"):
        state = build(CONFIGS[config] + ("_full" if version == "full" else "")).state_dict()
    theirs = golden_keys(f"{config}_{version}")
    named = {named_here(key): shape for key, shape in theirs.items()}
    unused = {key for key in theirs if named_here(key) is None}
    del named[None]
    assert named == {key: tuple(value.shape) for key, value in state.items()}
    assert len(named) + len(unused) == len(theirs)
    assert all(key.split(".")[-2] in UNREAD or key.endswith("flow.mask") for key in unused)
    assert [named_here(key) for key in state] == list(state)


@needs_golden
@pytest.mark.parametrize("case", list(CASES)[:3])
def test_a_tenth_of_the_queries_says_what_the_authors_say(case: str) -> None:
    """All box stages; the pose stages, which cost the most, for ten people."""
    left = compare(case, 10)
    assert all(name.startswith("post") or name.endswith("__stats") for name in left)


@needs_golden
@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute of one core, which may have to be shared
@pytest.mark.parametrize("case", CASES)
def test_all_queries_say_what_the_authors_say(case: str) -> None:
    assert compare(case, 1) == set()


# Training.

TRAINED = "train_r50_full"
LOSS, GRADIENT = 1e-3, 1e-2
TERMS = {"score": "loss_ce", "overlap": "loss_giou", "box": "loss_bbox", "joints": "loss_kps"}


def golden_targets() -> Targets:
    """Of two pictures, padded to the same number of people."""
    arrays = golden_arrays(TRAINED)
    boxes = [torch.from_numpy(arrays[f"gt{image}_boxes"]) for image in (0, 1)]
    joints = [torch.from_numpy(arrays[f"gt{image}_kpts"]) for image in (0, 1)]
    stacked = pad_sequence(joints, batch_first=True)
    valid = torch.arange(stacked.shape[1]) < torch.tensor([len(people) for people in boxes])[:, None]
    return Targets(pad_sequence(boxes, batch_first=True), stacked[..., :2], stacked[..., 2] > 0, valid)


def compare_stage(index: int, stage: Learned, seen: dict[str, Any], check: Comparison) -> None:
    """One stage of training: whom it finds, where, and what it hands on."""
    image, query, person = stage.matches
    for number in (0, 1):
        for name, found in (("pred", query), ("gt", person)):
            assert (
                found[image == number].tolist() == check.arrays[f"match_s{index}_img{number}_{name}"].tolist()
            )
    check.same(f"s{index}_logits", stage.logits.detach()[..., None])
    check.same(f"s{index}_boxes", stage.boxes.detach(), PIXELS)
    joints = torch.cat([stage.joints.coordinates, stage.joints.scores[..., None]], -1)
    check.same(f"s{index}_kpts", joints.detach())
    check.same(f"s{index}_sigma", stage.joints.deviations.detach())
    before = seen[f"box{index}"].queries.detach()
    renewed = seen[f"pose{index}"]
    after = before.index_put((image, query), renewed.queries.detach())
    if index < 5:
        assert torch.equal(seen[f"box{index + 1}_in"][0], after)
    check.same(f"s{index}_obj_before_pose", before.flatten(0, 1)[None, ::4])
    check.same(f"s{index}_obj_after_pose", after.flatten(0, 1)[None, ::4])
    check.same(f"s{index}_partq", renewed.parts.detach().transpose(0, 1))


def compare_gradients(network: QueryPose, check: Comparison) -> None:
    """Norms of all, and some in full; no norm where nothing was read."""
    gradients = {key: value.grad for key, value in network.named_parameters() if value.requires_grad}
    lines = (GOLDEN / f"{TRAINED}_gradnorms.txt").read_text().splitlines()
    norms = {ours: norm for key, norm in map(str.split, lines) if (ours := named_here(key)) is not None}
    assert norms.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert gradient is not None
        expected = 0.0 if norms[key] == "none" else float(norms[key])
        if not key.endswith("embedding.attend.bias"):  # softmax takes no notice of it: 0 but for rounding
            assert gradient.norm().item() == pytest.approx(expected, rel=GRADIENT), key
    total = torch.stack([gradient.double().norm() for gradient in gradients.values() if gradient is not None])
    assert total.norm().item() == pytest.approx(float(check.arrays["grad_norm_total"]), rel=GRADIENT)
    for name in (name for name in check.arrays if name.startswith("grad/")):
        gradient, expected = gradients[str(named_here(name[5:]))], torch.from_numpy(check.arrays[name])
        assert gradient is not None
        assert (gradient - expected).norm() < GRADIENT * expected.norm(), name
    for name in (name for name in check.arrays if name.startswith("after/")):
        check.same(name, network.state_dict()[str(named_here(name[6:]))])


@needs_golden
def test_a_training_step_is_the_authors() -> None:
    """Matching, all 24 losses, every gradient and the statistics, with the authors' bookkeeping."""
    network, check = golden_network("querypose_r50_full").train(), Comparison(TRAINED, 1)
    pictures = [rule("make_image")(5, 256, 320), rule("make_image")(6, 224, 288)]
    for number, picture in enumerate(pictures):
        assert zlib.crc32(picture.tobytes()) == check.arrays[f"img{number}_crc32"]
    images, sizes = golden_batch(pictures)
    targets = golden_targets()
    hooked = {f"box{i}": stage for i, stage in enumerate(network.box_stages)}
    hooked |= {f"pose{i}": stage for i, stage in enumerate(network.pose_stages)}
    with recorded(**hooked) as seen:
        outputs = network(images, targets, sizes)
    for index, stage in enumerate(outputs.stages):
        compare_stage(index, stage, seen, check)
    terms = Loss()(outputs, targets)
    assert len(terms) == 24
    for name, term in terms.items():
        kind, index = name.split("_")
        golden = f"loss/{TERMS[kind]}" + ("" if index == "5" else f"_{index}")
        assert term.item() == pytest.approx(float(check.arrays[golden]), rel=LOSS), name
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(float(check.arrays["loss_total"]), rel=LOSS)
    total.backward()
    compare_gradients(network, check)
