"""QueryPose in the loop: how fast what learns, who is to be found, and that a batch is learnt."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed

from edgepose.calibration.dataset import open_dataset
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import COCO17
from edgepose.training.batch import Batch
from edgepose.training.families.querypose import QueryPoseCourse, QueryPoseRecipe, people_each
from edgepose.training.loop import CHECKPOINT, Trainer
from edgepose.training.models import build, shipped_weights
from edgepose.training.models.querypose.losses import Outputs
from edgepose.training.models.querypose.targets import targets_of
from edgepose.training.models.weights import read_weights
from edgepose.training.recipe import open_recipe, parse_recipe

RECIPE = """
model: querypose_tiny
size: 64
seed: 3
data: {train: "synthetic:count=6,seed=1,size=64", workers: 0, min_area: 0}
schedule: {steps: 5, batch: 2, learning_rate: 2.0e-3}
"""
TERMS = ("score", "box", "overlap", "joints")


def recipe(**changes: str) -> QueryPoseRecipe:
    text = RECIPE
    for old, new in changes.items():
        text = text.replace(old, new)
    parsed = parse_recipe(text, "test")
    assert isinstance(parsed, QueryPoseRecipe)
    return parsed


def course(**changes: str) -> QueryPoseCourse:
    return QueryPoseCourse(recipe(**changes), rank=0)


def without(batch: Batch, **fields: Tensor) -> Batch:
    return batch._replace(people=batch.people._replace(**fields))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return next(iter(course().batches(0)))


def test_rates_and_decay_are_the_papers() -> None:
    """Section 10: everything decays, and what is called flow learns ten times as fast."""
    settings = open_recipe("querypose_hrnet32")
    assert isinstance(settings, QueryPoseRecipe)
    with torch.device("meta"):
        model = build(settings.model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = QueryPoseCourse(settings, 0).groups(model)
    scales = {names[id(p)]: group["scale"] for group in groups for p in group["params"]}
    assert scales.keys() == dict(model.named_parameters()).keys()
    assert sum(len(group["params"]) for group in groups) == len(scales)
    assert {name for name, scale in scales.items() if scale != 1} == {n for n in scales if "flow" in n}
    assert {scale for name, scale in scales.items() if "flow" in name} == {10}
    assert {group["weight_decay"] for group in groups} == {1e-4}
    schedule = settings.schedule
    assert (schedule.learning_rate, schedule.clip) == (2.5e-5, 1.0)
    assert settings.processes * schedule.batch == 16
    drops = [round(drop * schedule.steps, -3) for drop in schedule.drops or ()]
    assert (schedule.steps, drops) == (280_000, [220_000, 260_000])
    assert round(schedule.rise * schedule.steps) == pytest.approx(1000, abs=1)
    assert astuple(QueryPoseCourse(settings, 0)._loss.weights) == (2, 5, 2, 1, 0)


def test_muon_learns_what_lies_inside() -> None:
    """Kernels of the body and matrices of the stages; not what the stages say, nor queries, nor the flow."""
    groups = course(**{"learning_rate: 2.0e-3": "learning_rate: 2.0e-3, muon: 3, muon_decay: 0.3"})
    model = build("querypose_tiny", size=(64, 64))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group for group in groups.groups(model) for p in group["params"]}
    assert found.keys() == dict(model.named_parameters()).keys()
    inside = {name: group["orthogonal"] for name, group in found.items() if group["orthogonal"]}
    assert {count for name, count in inside.items() if name.endswith("qkv.weight")} == {3}
    assert {count for name, count in inside.items() if not name.endswith("qkv.weight")} == {1}
    outside = {name for name in found if name.endswith("weight")} - inside.keys()
    for name in (
        "backbone.body.stem.0.weight",
        "pose_stages.1.convs.2.weight",
        "box_stages.0.feed.fc1.weight",
    ):
        assert name in inside
    for part in ("logit", "delta", "coordinates.0", "deviations.6", "embedding.attend", "feed_norm"):
        assert any(f".{part}.weight" in name for name in outside), part
        assert not any(f".{part}.weight" in name for name in inside), part
    assert not any(name.startswith(("flow.", "queries.", "backbone.neck.")) for name in inside)
    rates = {(g["scale"], g["weight_decay"]) for name, g in found.items() if name in inside}
    assert rates == {(3.0, 0.3)}


def test_a_body_that_has_learnt_before_learns_at_its_own_rate() -> None:
    """Kernels by Muon and norms by AdamW alike; the rest of the network as without."""
    muon = "learning_rate: 2.0e-3, muon: 3"
    slow, plain = (course(**{"learning_rate: 2.0e-3": rates}) for rates in (f"{muon}, body: 0.05", muon))
    model = build("querypose_tiny", size=(64, 64))
    before, after = (
        {id(p): group["scale"] for group in plan.groups(model) for p in group["params"]}
        for plan in (plain, slow)
    )
    ratios = {name: after[id(p)] / before[id(p)] for name, p in model.named_parameters()}
    body = {name for name in ratios if name.startswith("backbone.body.")}
    assert len(body) == len(list(model.backbone.body.parameters()))
    assert ratios == pytest.approx({name: 0.05 if name in body else 1 for name in ratios})


@pytest.mark.parametrize("rules", ["corrected", "reference"])
def test_the_recipe_reaches_the_network(rules: str) -> None:
    changed = course(**{"seed: 3": f"seed: 3\nrules: {rules}\nnetwork: {{queries: 9, top_k: 4}}"})
    config = changed.fresh_model().config
    assert (config.reference, config.queries, config.top_k) == (rules == "reference", 9, 4)
    assert config.size == (changed.spec.width, changed.spec.height) == (64, 64)


def test_the_recipe_says_what_looks_count(batch: Batch) -> None:
    changed = course(**{"seed: 3": "seed: 3\nloss: {look: 1.5}"})
    terms = changed.terms(changed.fresh_model().train(), batch, 0)
    assert list(terms) == [f"{name}_{stage}" for stage in range(3) for name in (*TERMS, "look")]


def test_the_recipe_starts_the_backbone_from_a_model_that_ships() -> None:
    """Of the layers that are wider there the first channels; nothing else changes."""
    plan = course(**{"seed: 3": "seed: 3\nbackbone: qrpose_tiny"})
    model = plan.fresh_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan.begin(model)
    theirs, taken = load_file(shipped_weights("qrpose_tiny")), 0
    for key, value in model.state_dict().items():
        other = theirs.get(key.replace("backbone.body.", "backbone."))
        if key.startswith("backbone.body.") and other is not None:
            assert torch.equal(value, other[tuple(slice(side) for side in value.shape)]), key
            taken += 1
        else:
            assert torch.equal(value, before[key]), key
    assert taken == sum(key.startswith("backbone.body.") for key in before)


def test_frozen_stages_stay_as_the_backbone_fills_them(tmp_path: Path) -> None:
    """Their statistics too, while all else learns; after a resume as well."""
    smoke = recipe(**{"seed: 3": "seed: 3\nbackbone: qrpose_tiny\nfrozen: 3"})
    trainer = Trainer(smoke, tmp_path)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.learn(next(iter(trainer.course.batches(0))))
    trainer.save()
    again = Trainer(smoke, tmp_path)
    again.resume()
    again.learn(next(iter(again.course.batches(1))))
    stages = tuple(f"backbone.body.{stage}." for stage in ("stem", "stage4", "stage8"))
    same = {key for key, value in again.model.state_dict().items() if torch.equal(value, before[key])}
    assert same == {key for key in before if key.startswith(stages)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "key 'frozen' keeps what 'backbone' gives: name one"),
        ("backbone: qrpose_tiny\ninitial: shipped", "and leave 'initial' out"),
    ],
)
def test_only_what_a_backbone_gives_is_frozen(more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeposeError, match=message):
        Trainer(recipe(**{"seed: 3": f"seed: 3\nfrozen: 3\n{more}"}), tmp_path)


def test_other_bodies_have_no_stages_to_freeze() -> None:
    plan = course(**{"model: querypose_tiny": "model: querypose_r50\nfrozen: 2"})
    with torch.device("meta"), pytest.raises(EdgeposeError, match="not for querypose_r50; leave it out"):
        plan.begin(plan.fresh_model())


def test_a_batch_is_learnt(batch: Batch) -> None:
    """The same two pictures again and again: what the last stage says of them comes nearer."""
    plan = course()
    model = plan.fresh_model().train()
    optimizer = torch.optim.AdamW(plan.groups(model), 2e-3)
    seen = []
    for step in range(20):
        terms = plan.terms(model, batch, step)
        assert list(terms) == [f"{name}_{stage}" for stage in range(3) for name in TERMS]
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append({name: float(term.detach()) for name, term in terms.items()})
    first, last = seen[0], seen[-1]
    for name in ("box_2", "overlap_2", "score_2"):
        assert last[name] < 0.7 * first[name], name


def test_a_batch_is_the_same_from_worker_processes_and_after_a_resume() -> None:
    plain, shared = course(), course(**{"workers: 0": "workers: 1"})
    whole = list(plain.batches(0))
    for batches in (shared.batches(0), [*whole[:2], *plain.batches(2)]):
        for a, b in zip(whole, batches, strict=True):
            assert a.ids == b.ids
            assert torch.equal(a.images, b.images)
            assert all(torch.equal(x, y) for x, y in zip(a.people, b.people, strict=True))


def test_boxes_end_where_the_picture_does() -> None:
    """Scaled by up to 1.35 and moved, many people reach beyond it."""
    for batch in course(**{"steps: 5": "steps: 8"}).batches(0):
        people = batch.people
        boxes = people.boxes[people.valid]
        assert (boxes >= -0.5).all()
        assert (boxes <= 63.5).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def coco(folder: Path) -> Path:
    """A picture of three people: one labelled, one without a joint, and a crowd."""
    cv2.imwrite(str(folder / "a.png"), np.zeros((64, 64, 3), np.uint8))
    known, unknown = [30.0, 30.0, 2.0] * 17, [0.0] * 51
    people = [
        {"id": index, "image_id": 9, "category_id": 1, "area": 900.0, "bbox": [17, 17, 30, 30]}
        | {"iscrowd": int(index == 2), "keypoints": joints, "num_keypoints": 17 * (joints is known)}
        for index, joints in enumerate((known, unknown, known))
    ]
    values = {
        "images": [{"id": 9, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": people,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}],
    }
    (folder / "annotations.json").write_text(json.dumps(values))
    return folder


def test_who_is_to_be_found_in_a_coco_folder(tmp_path: Path) -> None:
    changed = course(**{"synthetic:count=6,seed=1,size=64": str(coco(tmp_path))})
    people = next(iter(changed.batches(0))).people
    assert people.valid.tolist() == [[True, True, False]] * 2
    assert people.labelled.any(-1)[:, :2].tolist() == [[True, False]] * 2


def learnt(plan: QueryPoseCourse, batch: Batch) -> tuple[dict[str, Tensor], Any]:
    """One step's terms, and the network with its gradients."""
    model = plan.fresh_model().train()
    terms = plan.terms(model, batch, 0)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    return terms, model


@pytest.mark.parametrize("rules", ["corrected", "reference"])
def test_a_batch_of_background_teaches_scores_alone(batch: Batch, rules: str) -> None:
    plan = course(**{"seed: 3": f"seed: 3\nrules: {rules}"})
    terms, model = learnt(plan, without(batch, valid=torch.zeros_like(batch.people.valid)))
    values = {name: float(term.detach()) for name, term in terms.items()}
    for stage in range(3):
        assert values[f"score_{stage}"] > 0
        assert [values[f"{name}_{stage}"] for name in TERMS[1:]] == [0, 0, 0]
    assert float(model.pose_stages[0].convs[0].weight.grad.abs().sum()) == 0
    assert float(model.box_stages[0].logit.weight.grad.abs().sum()) > 0


def test_people_without_a_labelled_joint_are_boxes_to_be_found(batch: Batch) -> None:
    plan = course()
    labelled = torch.zeros_like(batch.people.labelled)
    terms, model = learnt(plan, without(batch, labelled=labelled))
    for stage in range(3):
        assert float(terms[f"box_{stage}"].detach()) > 0
        assert float(terms[f"joints_{stage}"].detach()) == 0
    assert float(model.flow.t[0][0].weight.grad.abs().sum()) == 0
    outputs = model(torch.zeros(2, 3, 64, 64), targets_of(without(batch, labelled=labelled).people))
    assert isinstance(outputs, Outputs)
    assert len(outputs.stages[0].matches.person) == int(batch.people.valid.sum())


def test_the_terms_are_of_each_person_of_all_processes(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which the other one has 6 people more: the mean divides."""
    targets, count = targets_of(batch.people), int(batch.people.valid.sum())
    assert people_each(targets) == count > 0
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.mul_(2).add_(6))
    assert people_each(targets) == count + 3


def test_frozen_layers_are_saved_and_resumed(tmp_path: Path) -> None:
    """As in querypose_r50, whose first layers never learn and have no moments."""

    class Frozen(Trainer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.model.backbone.requires_grad_(False)

    smoke = open_recipe("querypose_smoke")
    run = Frozen(smoke, tmp_path)
    run.learn(next(iter(run.course.batches(0))))
    run.save()
    kept = read_weights(tmp_path / CHECKPOINT)
    moments = {name for name in kept if "exp_avg" in name}
    assert moments
    assert not any("backbone" in name for name in moments)
    again = Frozen(smoke, tmp_path)
    again.resume()
    assert again.step == 1
    again.learn(next(iter(again.course.batches(1))))


class NotANumber(Trainer):
    """A run whose step 3 loses its numbers in one of the pictures' pixels."""

    def learn(self, batch: Any) -> dict[str, float]:
        if self.step == 2:
            images = batch.images.float()
            images[1, 0, 0, 0] = torch.nan
            batch = batch._replace(images=images)
        return super().learn(batch)


def test_a_picture_that_is_no_number_stops_a_run_that_then_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    smoke = open_recipe("querypose_smoke")
    smoke = smoke.model_copy(update={"schedule": smoke.schedule.model_copy(update={"steps": 3})})
    whole, out = Trainer(smoke, tmp_path / "whole"), tmp_path / "run"
    whole.run()
    ids = list(whole.course.batches(0))[2].ids
    with pytest.raises(EdgeposeError, match="the loss of step 3 is no finite number") as caught:
        NotANumber(smoke, out).run()
    assert f"for pictures {', '.join(map(str, ids))} of synthetic:" in str(caught.value)
    resumed = Trainer(smoke, out)
    resumed.resume()
    assert resumed.step == 2
    resumed.run()
    expected, found = read_weights(tmp_path / "whole" / CHECKPOINT), read_weights(out / CHECKPOINT)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed: 3", "seed: 3\nnetwork: {stages: 2}"), "unknown key 'network.stages'"),
        (("seed: 3", "seed: 3\nnetwork: {queries: 0}"), "key 'network.queries' is 0"),
        (("seed: 3", "seed: 3\nloss: {boxes: 2}"), "unknown key 'loss.boxes'; did you mean 'box'"),
        (("seed: 3", "seed: 3\nrules: plain"), "key 'rules' is 'plain'"),
        (("batch: 2", "batch: 2, flow: 0"), "key 'schedule.flow' is 0: .*greater than 0"),
        (("batch: 2", "batch: 2, body: -1"), "key 'schedule.body' is -1: .*greater than 0"),
        (("seed: 3", "seed: 3\nfrozen: 6"), "key 'frozen' is 6: .*less than or equal to 5"),
    ],
)
def test_wrong_keys_are_named(change: tuple[str, str], message: str) -> None:
    with pytest.raises(EdgeposeError, match=message):
        recipe(**dict([change]))


def test_the_score_is_of_the_validation_pictures() -> None:
    """An untrained network finds no pose of a picture that it is asked about."""
    plan = course()
    score = plan.score(plan.fresh_model(), open_dataset("synthetic:count=1,seed=5,size=192"))
    assert 0 <= score["ap"] < 0.1
