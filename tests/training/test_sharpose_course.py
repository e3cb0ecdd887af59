"""SHaRPose in the loop: who learns how fast, what decays, which person a step sees, and what is measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.score import evaluate
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import COCO17
from edgepose.training.batch import normalised
from edgepose.training.crops import Crops
from edgepose.training.families.sharpose import SharPoseCourse, SharPoseRecipe, layer_of
from edgepose.training.models.sharpose import build
from edgepose.training.models.sharpose.guide import guidance, tokens_at, watched
from edgepose.training.models.sharpose.scratch import waves
from edgepose.training.recipe import open_recipe, parse_recipe
from edgepose.training.topdown_data import croppable
from edgepose.training.topdown_evaluation import (
    EVERYBODY,
    NOBODY,
    correlation,
    curve,
    looks_at,
    operating,
    two_stage,
)

RECIPE = """
model: sharpose_tiny_128x96
seed: 3
data: {train: "synthetic:count=6,seed=1,size=96", workers: 0}
schedule: {steps: 5, batch: 4, learning_rate: 1.0, weight_decay: 0.1, layer_decay: 0.5, quality_start: 0.4}
"""


def recipe(**changes: str) -> SharPoseRecipe:
    text = RECIPE
    for old, new in changes.items():
        text = text.replace(old, new)
    parsed = parse_recipe(text, "test")
    assert isinstance(parsed, SharPoseRecipe)
    return parsed


def course(**changes: str) -> SharPoseCourse:
    return SharPoseCourse(recipe(**changes), rank=0)


def test_rates_are_the_published_ones_of_base() -> None:
    """The figures of specs/sharpose.md section 5: 0.75 for each of 13 layers below the head."""
    with torch.device("meta"):
        base = build("sharpose_base_256x192")
    settings = open_recipe("sharpose_base_256x192")
    assert isinstance(settings, SharPoseRecipe)
    names = {id(parameter): name for name, parameter in base.named_parameters()}
    scales = {
        names[id(parameter)]: group["scale"]
        for group in SharPoseCourse(settings, 0).groups(base)
        for parameter in group["params"]
    }
    assert scales.keys() == dict(base.named_parameters()).keys()
    for name in ("keypoint_tokens", "quality_token", "patch_embed.proj.weight", "pos_embed_list.1"):
        assert scales[f"backbone.{name}"] == pytest.approx(0.02376, abs=1e-5)
    assert scales["backbone.blocks.11.mlp.fc1.bias"] == 0.75
    assert scales["backbone.blocks.0.attn.qkv.weight"] == pytest.approx(0.75**12)
    for name in ("norm.weight", "reuse_block.1.fc1.weight", "quality_predictor.mlp.0.weight"):
        assert scales[f"backbone.{name}"] == 1
    assert scales["keypoint_head.heatmap_mlp.1.weight"] == 1


def test_only_matrices_that_map_tokens_decay() -> None:
    model = build("sharpose_tiny_128x96")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in course().groups(model) for p in g["params"]}
    assert set(decay.values()) == {0, 0.1}
    decaying = {name for name, value in decay.items() if value}
    blocks = {
        f"blocks.{i}.{part}" for i in range(4) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    backbone = {*blocks, "patch_embed.proj", "reuse_block.1.fc1", "reuse_block.1.fc2"}
    heads = {f"keypoint_head.heatmap_mlp.{place}.weight" for place in (1, 4)}
    assert decaying == {f"backbone.{part}.weight" for part in backbone} | heads


def test_muon_learns_the_matrices_inside() -> None:
    """q, k and v, which one weight holds, are three; what the blocks are fed with, and heads, are none."""
    plan = course(**{"layer_decay: 0.5": "muon: 4.0, muon_decay: 0.7"})
    model = plan.fresh_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in plan.groups(model) for p in group["params"]}
    blocks = {
        f"blocks.{i}.{part}": count
        for i in range(4)
        for part, count in (("attn.qkv", 3), ("attn.proj", 1), ("mlp.fc1", 1), ("mlp.fc2", 1))
    }
    others = ("reuse_block.1.fc1", "reuse_block.1.fc2")
    inside = {f"backbone.{name}.weight": count for name, count in (blocks | dict.fromkeys(others, 1)).items()}
    assert {name: group["orthogonal"] for name, group in groups.items() if group["orthogonal"]} == inside
    assert {(group["scale"], group["weight_decay"]) for name, group in groups.items() if name in inside} == {
        (4.0, 0.7)
    }
    assert {group["scale"] for name, group in groups.items() if name not in inside} == {1.0}


def test_the_quality_predictor_is_as_it_began_until_its_loss_joins() -> None:
    """Weight decay alone would shrink it: 100,000 steps of it leave less than a hundredth."""
    plan = course()
    model = plan.fresh_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(plan.groups(model), 0.01)
    moved = []
    for step, batch in enumerate(plan.batches(0)):
        optimizer.zero_grad()
        torch.stack(list(plan.terms(model, batch, step).values())).sum().backward()
        optimizer.step()
        after = dict(model.named_parameters())
        moved.append({name for name, value in before.items() if not torch.equal(value, after[name])})
    predictor = {name for name in before if "quality_predictor" in name}
    assert not moved[1] & predictor
    assert "backbone.blocks.0.mlp.fc1.weight" in moved[1]
    assert predictor <= moved[-1]


@pytest.mark.parametrize("rules", ["corrected", "reference"])
def test_the_rules_reach_the_network_and_the_loss(rules: str) -> None:
    plan = course(**{"seed: 3": f"seed: 3\nrules: {rules}"})
    assert plan.fresh_model().config.reference == plan._loss.reference == (rules == "reference")


def test_mae_weights_are_taken_and_others_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = build("sharpose_tiny_128x96").backbone.state_dict()
    kept = {n: v for n, v in source.items() if n.startswith(("blocks.", "norm.", "patch_embed."))}
    torch.save({"model": {**kept, "pos_embed": torch.randn(1, 197, 64)}}, tmp_path / "mae.pth")
    plan = course(**{"seed: 3": f"seed: 3\nmae: {tmp_path}/mae.pth"})
    torch.manual_seed(2)
    model = plan.fresh_model()
    plan.begin(model)
    assert torch.equal(model.backbone.blocks[2].mlp.fc1.weight, kept["blocks.2.mlp.fc1.weight"])
    assert model.backbone.pos_embed_list[1].abs().sum() > 0
    with pytest.raises(EdgeposeError, match=r"other\.pth: no such file"):
        course(**{"seed: 3": f"seed: 3\nmae: {tmp_path}/other.pth"}).begin(model)


def test_crops_follow_from_the_number_alone() -> None:
    """Whatever was asked before, cached or not, and with an epoch that shows every person."""
    cached = recipe(**{"workers: 0": "workers: 0, cache: true"})
    first, second = Crops(recipe(), (96, 128)), Crops(cached, (96, 128))
    dataset = open_dataset(recipe().data.train)
    people = [person for index in range(6) for _, person in croppable(dataset.people(index), (96, 96))]
    assert len(first) == len(second) == len(people)
    for ordinal in (7, 0, 13):
        (a, a_id), (b, b_id) = first[ordinal], second[ordinal]
        assert a_id == b_id
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.joints, b.joints)
    assert not np.array_equal(first[0][0].image, first[len(first)][0].image)


STILL = (
    "workers: 0, changes: {shift_share: 0, half_body_share: 0, scale: 0, rotation_share: 0, flip_share: %d}"
)


def test_every_person_is_shown_once_before_anybody_again() -> None:
    crops = Crops(recipe(**{"workers: 0": STILL % 0}), (96, 128))
    passes = [{crops[start + n][0].image.tobytes() for n in range(len(crops))} for start in (0, len(crops))]
    assert len(passes[0]) == len(crops)
    assert passes[0] == passes[1]


def test_mirrored_crops_are_mirrored() -> None:
    plain, mirrored = (Crops(recipe(**{"workers: 0": STILL % flip}), (96, 128)) for flip in (0, 1))
    for ordinal in range(4):
        np.testing.assert_array_equal(mirrored[ordinal][0].image, plain[ordinal][0].image[:, ::-1])


def test_crops_go_through_a_codec_where_they_are_asked_to() -> None:
    plain, sent = (Crops(recipe(**{"workers: 0": f"workers: 0, coded: {c}"}), (96, 128)) for c in (0, 1))
    for ordinal in range(4):
        before, after = plain[ordinal][0], sent[ordinal][0]
        np.testing.assert_array_equal(after.joints, before.joints)
        off = np.abs(after.image.astype(int) - before.image).mean()
        assert 0.2 < off < 20


def test_processes_share_the_people_out() -> None:
    two = recipe(**{"seed: 3": "seed: 3\nprocesses: 2"})
    shares = [Crops(two, (96, 128), rank) for rank in (0, 1)]
    assert sum(len(share) for share in shares) == len(Crops(recipe(), (96, 128)))
    assert {shares[0][n][1] for n in range(30)}.isdisjoint({shares[1][n][1] for n in range(30)})


def test_a_batch_is_the_same_from_worker_processes_and_after_a_resume() -> None:
    plain, shared = course(), course(**{"workers: 0": "workers: 1"})
    whole = list(plain.batches(0))
    for batches in (shared.batches(0), [*whole[:2], *plain.batches(2)]):
        for a, b in zip(whole, batches, strict=True):
            assert a.ids == b.ids
            assert all(torch.equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True))


def coco(folder: Path) -> Path:
    """One picture with a white blob at every joint of one person, a crowd, and a person without labels."""
    image, rng = np.zeros((120, 100, 3), np.uint8), np.random.default_rng(0)
    joints = rng.uniform((30, 30), (70, 90), (17, 2)).round()
    for x, y in joints.astype(int).tolist():
        image[y, x] = 255
    cv2.imwrite(str(folder / "a.png"), image)
    known = np.concatenate([joints, np.full((17, 1), 2)], 1).ravel().tolist()
    plain = {"image_id": 9, "category_id": 1, "area": 2000.0, "bbox": [28, 28, 44, 64]}
    people = [
        {**plain, "id": 1, "iscrowd": 0, "keypoints": known, "num_keypoints": 17},
        {**plain, "id": 2, "iscrowd": 1, "keypoints": known, "num_keypoints": 17},
        {**plain, "id": 3, "iscrowd": 0, "keypoints": [0.0] * 51, "num_keypoints": 0},
    ]
    values = {
        "images": [{"id": 9, "file_name": "a.png", "width": 100, "height": 120}],
        "annotations": people,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}],
    }
    (folder / "annotations.json").write_text(json.dumps(values))
    return folder


def test_a_coco_folder_gives_crops_whose_joints_lie_on_their_pixels(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    crops = Crops(recipe(**{"synthetic:count=6,seed=1,size=96": str(folder)}), (96, 128))
    assert len(crops) == 1
    for ordinal in range(8):
        seen, picture = crops[ordinal]
        assert picture == 9
        inside = ((seen.joints > 1) & (seen.joints < np.array([94, 126]))).all(1)
        x, y = seen.joints[inside].round().astype(int).T
        near = np.stack([seen.image[y + dy, x + dx, 0] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
        assert (near.max(0) > 20).all()


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(3)
    network = build("sharpose_tiny_128x96").eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_every_place_on_the_dial_is_what_the_camera_s_estimator_says(network: Any) -> None:
    """Assembled from both looks at everybody, against the estimator run with that limit."""
    dataset, spec = open_dataset("synthetic:count=4,seed=5,size=192"), course().spec
    looks = looks_at(network, dataset, spec)
    middle = float(np.median(np.concatenate([one.quality for one in looks])))
    for limit in (NOBODY, middle, EVERYBODY):
        estimator = two_stage(network, spec, limit)
        found = []
        for index, one in enumerate(looks):
            boxes = np.array([box for box, _ in croppable(one.truth, (192, 192))]).reshape(-1, 4)
            found.append(estimator(dataset[index].image, boxes, np.ones(len(boxes))))
            np.testing.assert_allclose(one.at(limit).keypoints, found[-1].keypoints, atol=1e-3)
            np.testing.assert_allclose(one.at(limit).scores, found[-1].scores, atol=1e-5)
        expected = evaluate([one.truth for one in looks], found, COCO17, 48.0)
        assert operating(looks, limit, COCO17).score == expected
    assert operating(looks, middle, COCO17).refined == pytest.approx(0.5, abs=0.1)


def test_the_dial_refines_the_shares_asked_for(network: Any) -> None:
    looks = looks_at(network, open_dataset("synthetic:count=4,seed=5,size=192"), course().spec)
    people = sum(len(one.people) for one in looks)
    for share, place in zip((0, 0.5, 1), curve(looks, (0, 0.5, 1), COCO17), strict=True):
        assert place.refined == pytest.approx(share, abs=0.5 / people)


def test_a_person_s_similarity_is_that_of_their_own_pose(network: Any) -> None:
    looks = looks_at(network, open_dataset("synthetic:count=2,seed=5,size=192"), course().spec)
    for one in looks:
        own = np.stack([person.keypoints for person in one.people])
        exact = type(one.coarse)(own, one.coarse.keypoint_scores, one.coarse.scores, one.coarse.boxes)
        np.testing.assert_allclose(one.similarity(exact, COCO17), 1)
        assert (one.similarity(one.coarse, COCO17) < 1).all()


def test_layers_are_counted_from_what_feeds_the_blocks() -> None:
    assert layer_of("backbone.pos_embed_list.0", 4) == 0
    assert layer_of("backbone.blocks.3.norm1.weight", 4) == 4
    assert layer_of("backbone.norm.weight", 4) == 5


def plain_token(x: int, y: int, order: list[int], fine: bool) -> int:
    """Which token shows the heatmap pixel, by walking over the fine look's tokens one by one."""
    column, row = x // 8, y // 8  # 32 crop pixels
    if not fine:
        return row * 3 + column
    tokens = []
    for cell in order[:5]:
        r, c = divmod(cell, 3)
        tokens += [(2 * r + i, 2 * c + j) for i in (0, 1) for j in (0, 1)]
    sharp = (y // 4, x // 4)
    if sharp in tokens:
        return tokens.index(sharp)
    return len(tokens) + order[5:].index(row * 3 + column)


def test_every_place_has_its_token_in_both_looks() -> None:
    config = build("sharpose_tiny_128x96").config
    order = torch.stack([torch.randperm(12) for _ in range(3)])
    places = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij"), -1).flatten(0, 1)
    coarse, fine = tokens_at(places.expand(3, -1, 2), order, config)
    for person in range(3):
        ranking = order[person].tolist()
        for index, (x, y) in enumerate(places.tolist()):
            assert coarse[person, index] == plain_token(x, y, ranking, fine=False)
            assert fine[person, index] == plain_token(x, y, ranking, fine=True)


def test_guidance_teaches_the_tokens_to_look_at_their_joints() -> None:
    """A few steps on one batch: the attention paid to the right cell rises, in both looks."""
    plan = course()
    model, batch = plan.fresh_model().train(), next(iter(plan.batches(0)))
    plan.begin(model)
    config = model.config
    images = normalised(batch.images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    targets = plan.targets(batch, torch.device("cpu"))
    optimizer, missed = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(12):
        with watched(model.backbone.blocks) as seen:
            order = model(images)["region_order"]
        assert len(seen) == 2 * config.depth
        loss = guidance(seen, order, targets, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        missed.append(float(loss.detach()))
    assert missed[-1] < 0.8 * missed[0]
    model(images)
    assert len(seen) == 2 * config.depth  # nobody listens any more


def test_the_guidance_falls_to_nothing_when_the_quality_begins() -> None:
    guided = {"quality_start: 0.4": "quality_start: 0.4, guidance: 0.5", "steps: 5": "steps: 10"}
    plan = course(**guided, **{"seed: 3": "seed: 3\nnetwork: {drop_path: 0}"})
    model = plan.fresh_model().train()
    plan.begin(model)
    batch = next(iter(plan.batches(0)))
    terms = [plan.terms(model, batch, step) for step in range(10)]
    names = ["guidance" in term for term in terms]
    assert names == [True] * 4 + [False] * 6
    values = [float(term["guidance"].detach()) for term in terms[:4]]
    assert values == pytest.approx([values[0] * left for left in (1, 0.75, 0.5, 0.25)], rel=1e-4)
    assert "guidance" not in course().terms(model, batch, 0)


def test_from_scratch_joints_and_places_are_told_apart() -> None:
    """With the authors' zeros all joints have one heatmap, and a picture's cells may change places."""
    plan = course()
    torch.manual_seed(0)
    model = plan.fresh_model().eval()
    crops = torch.randn(2, 3, 128, 96)
    moved = torch.cat([crops[:, :, 32:], crops[:, :, :32]], 2)
    with torch.no_grad():
        zeros, again = model(crops, threshold=9.0)["heatmaps"], model(moved, threshold=9.0)["heatmaps"]
        torch.testing.assert_close(zeros[:, 1:], zeros[:, :1].expand(-1, 16, -1, -1))
        torch.testing.assert_close(zeros, again, atol=1e-5, rtol=0)
        plan.begin(model)
        begun, other = model(crops, threshold=9.0)["heatmaps"], model(moved, threshold=9.0)["heatmaps"]
    apart = (begun[:, :, None] - begun[:, None]).abs().amax((0, 3, 4)) + torch.eye(17)
    assert apart.min() > 1e-3
    assert (begun - other).abs().max() > 1e-3


def test_no_two_cells_have_the_same_place() -> None:
    table = waves((6, 8), 64)[0]
    assert table.shape == (48, 64)
    assert torch.cdist(table, table).add(9 * torch.eye(48)).min() > 0.5
    assert waves((6, 8), 66).shape == (1, 48, 66)


def test_correlation_is_pearsons_where_there_is_one() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 9))
    assert correlation(a, b) == pytest.approx(statistics.correlation(a.tolist(), b.tolist()))
    assert correlation(a[:1], b[:1]) is None
    assert correlation(a, np.ones(9)) is None
    assert correlation(a, np.append(b[1:], np.nan)) is None
