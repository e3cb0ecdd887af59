"""QueryPose's matching, losses and training bookkeeping, against brute force, closed forms and plain sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgepose.training.batch import People
from edgepose.training.models import build
from edgepose.training.models.querypose import TINY
from edgepose.training.models.querypose.boxes import (
    absolute,
    corners,
    generalised_iou,
    inside,
    moved,
    relative,
)
from edgepose.training.models.querypose.flow import Flow
from edgepose.training.models.querypose.losses import (
    Aim,
    Learned,
    Loss,
    Outputs,
    Weights,
    aim_of,
    errors_of,
    focal,
    looked_away,
    residual_likelihood,
    wanted_looks,
)
from edgepose.training.models.querypose.matching import Matches, costs, matched
from edgepose.training.models.querypose.network import QueryPose
from edgepose.training.models.querypose.parts import PARTS
from edgepose.training.models.querypose.pose_stage import Joints
from edgepose.training.models.querypose.targets import Targets, targets_of

SIZE = (96, 64)  # width, height
SIZES = torch.tensor([SIZE] * 2).float()


def boxes_at(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows).float()


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    low = 60 * torch.rand(*shape, 2, generator=generator)
    return torch.cat([low, low + 1 + 40 * torch.rand(*shape, 2, generator=generator)], -1)


def crowd(people: tuple[int, ...] = (2, 3), seed: int = 0, joints: int = 17) -> Targets:
    """So many people in each picture, all joints labelled and in the middle half of their boxes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(people), max(*people, 0))
    boxes = random_boxes(generator, *shape)
    places = 0.5 * torch.rand(*shape, joints, 2, generator=generator) - 0.25
    valid = torch.arange(shape[1]) < torch.tensor(people)[:, None]
    return Targets(boxes, absolute(places, boxes), torch.ones(*shape, joints, dtype=torch.bool), valid)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(2))


def made(**options: Any) -> QueryPose:
    """Queries that see different things from the first step on."""
    network = build(TINY, size=SIZE, **options)
    assert isinstance(network, QueryPose)
    nn.init.uniform_(network.queries.boxes, 0.2, 0.8)
    for stage in network.box_stages:
        nn.init.normal_(stage.delta.weight, std=0.1)
        nn.init.normal_(stage.logit.weight, std=0.5)
    return network.train()


# Boxes.


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),  # hull 6, union 6
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),  # apart: hull 3, union 2
        ((0, 0, 1, 1), (9, 9, 10, 10), -0.98),
        ((0, 0, 4, 4), (1, 1, 2, 2), 1 / 16),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),  # nothing shares nothing with nothing
    ],
)
def test_generalised_iou(a: Any, b: Any, expected: float) -> None:
    found = generalised_iou(boxes_at(a), boxes_at(b)), generalised_iou(boxes_at(b), boxes_at(a))
    assert [value.item() for value in found] == pytest.approx([expected] * 2, abs=1e-6)


def test_a_box_moves_by_half_sides_and_grows_by_logarithms() -> None:
    """Section 7: weights 2, 2, 1, 1, and a guard against overflow."""
    box = boxes_at((10, 20, 30, 60))
    assert torch.equal(moved(box, torch.zeros(1, 4)), box)
    assert moved(box, boxes_at((1, -1, 0, 0))).tolist() == [[20, 0, 40, 40]]
    assert moved(box, boxes_at((0, 0, math.log(2), math.log(0.5)))).tolist()[0] == pytest.approx(
        [0, 30, 40, 50]
    )
    wide = moved(box, boxes_at((0, 0, 1e9, 0)))[0]
    assert (wide[2] - wide[0]).item() == pytest.approx(20 * 100_000 / 16, rel=1e-4)
    assert corners(boxes_at((5, 6, 2, 4))).tolist() == [[4, 4, 6, 8]]


@given(seed=st.integers(0, 10_000))
def test_places_in_a_box_come_back(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, points = random_boxes(generator, 3), 100 * torch.rand(3, 5, 2, generator=generator)
    there = relative(points, boxes)
    assert torch.allclose(absolute(there, boxes), points, atol=1e-3)
    # Right at a border rounding decides.
    clear = ((there.abs() - 0.5).abs() > 1e-3).all(-1)
    assert torch.equal((there.abs() <= 0.5).all(-1)[clear], inside(points, boxes)[clear])
    assert relative(boxes[:, None, :2], boxes)[0, 0].tolist() == pytest.approx([-0.5, -0.5])


# Matching.


def by_hand(logit: float, box: Any, person: Any) -> float:
    """The cost of one pair, in float64 (section 10)."""
    p = 1 / (1 + math.exp(-logit))
    classify = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    l1 = sum(abs(a - b) / side for a, b, side in zip(box, person, (*SIZE, *SIZE), strict=True))
    giou = generalised_iou(torch.tensor(box).double(), torch.tensor(person).double()).item()
    return 2 * classify + 5 * l1 - 2 * giou


def test_the_cost_of_a_pair_is_written_out() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, generator=generator)
    boxes, people = random_boxes(generator, 2, 4), random_boxes(generator, 2, 3)
    cost = costs(logits, boxes, people, SIZES)
    for image, query, person in itertools.product(range(2), range(4), range(3)):
        pair = (logits[image, query].item(), boxes[image, query].tolist(), people[image, person].tolist())
        assert cost[image, query, person].item() == pytest.approx(by_hand(*pair), rel=1e-4, abs=1e-4)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 5),
    people=st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_matching_is_the_cheapest_of_all(seed: int, queries: int, people: list[int]) -> None:
    """Against every way to give each person a query of their own, as far as queries go."""
    generator = torch.Generator().manual_seed(seed)
    B, P = len(people), max(people)
    valid = torch.zeros(B, P, dtype=torch.bool)
    for image, count in enumerate(people):  # not the first ones: padding may lie between
        valid[image, torch.randperm(P, generator=generator)[:count]] = True
    targets = Targets(
        random_boxes(generator, B, P),
        torch.zeros(B, P, 17, 2),
        torch.zeros(B, P, 17, dtype=torch.bool),
        valid,
    )
    logits, boxes = torch.randn(B, queries, generator=generator), random_boxes(generator, B, queries)
    sizes = torch.tensor([SIZE] * B).float()
    matches, cost = (
        matched(logits, boxes, targets, sizes),
        costs(logits, boxes, targets.boxes, sizes).double(),
    )
    for image in range(B):
        mine = matches.image == image
        query, person = matches.query[mine].tolist(), matches.person[mine].tolist()
        there = valid[image].nonzero()[:, 0].tolist()
        count = min(queries, len(there))
        assert query == sorted(set(query))
        assert len(query) == count
        assert set(person) <= set(there)
        assert len(set(person)) == count
        ways = itertools.product(
            itertools.combinations(range(queries), count), itertools.permutations(there, count)
        )
        best = min(sum(cost[image, q, p].item() for q, p in zip(*way, strict=True)) for way in ways)
        assert sum(cost[image, q, p].item() for q, p in zip(query, person, strict=True)) == pytest.approx(
            best, abs=1e-6
        )
    assert torch.equal(matches.image, matches.image.sort().values)


def test_matching_survives_what_is_no_number() -> None:
    """So that the loss shows it: the loop names the picture then."""
    targets = crowd((1, 2))
    boxes = random_boxes(torch.Generator().manual_seed(1), 2, 4)
    boxes[0] = torch.nan
    matches = matched(torch.zeros(2, 4), boxes, targets, SIZES)
    assert matches.image.tolist() == [0, 1, 1]
    pictures = images()
    pictures[1, 0, 3, 3] = torch.nan
    terms = Loss()(made()(pictures, targets), targets)
    assert not all(term.isfinite() for term in terms.values())


# The losses.


def test_focal_is_written_out() -> None:
    logits = torch.tensor([[-3.0, -0.2, 0.0, 1.5, 60.0, -60.0]])
    found = torch.tensor([[0.0, 1, 0, 1, 0, 1]])
    expected = 0.0
    for logit, here in zip(logits[0].tolist(), found[0].tolist(), strict=True):
        right = 1 / (1 + math.exp(-logit if here else logit))
        expected += (0.25 if here else 0.75) * (1 - right) ** 2 * -math.log(max(right, 1e-300))
    assert focal(logits, found).item() == pytest.approx(expected, rel=1e-5)


def test_residual_likelihood_is_written_out() -> None:
    generator = torch.Generator().manual_seed(5)
    k, t = torch.randn(2, 2, 3, 2, generator=generator)
    s = torch.rand(2, 3, 2, generator=generator)
    log_phi = torch.randn(2, 3, generator=generator)
    counts = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    expected = 0.0
    for person, joint, axis in itertools.product(range(2), range(3), range(2)):
        deviation, apart = s[person, joint, axis].item(), abs((k - t)[person, joint, axis].item())
        term = math.log(deviation) - log_phi[person, joint].item()
        term += math.log(deviation * math.sqrt(2 * math.pi)) + apart / (math.sqrt(2) * deviation + 1e-9)
        expected += counts[person, joint].item() * term
    aim = Aim(t, counts)
    assert residual_likelihood(Joints(k, s), aim, log_phi).item() == pytest.approx(expected, rel=1e-5)
    errors = errors_of(Joints(k, s), aim)
    assert torch.allclose(errors[0, 0], ((k - t) / s)[0, 0])
    assert not errors[0, 1].any(), "a joint that does not count has no error, however far off"


def test_the_flow_is_a_density() -> None:
    """Its integral is 1, wherever training has bent it; before, it is nearly the normal one."""
    flow = Flow()
    flow.start()
    step = 0.05
    along = torch.arange(-9, 9, step)
    places = torch.stack(torch.meshgrid(along, along, indexing="ij"), -1)
    normal = -places.square().sum(-1) / 2 - math.log(2 * math.pi)
    with torch.no_grad():
        near = places.norm(dim=-1) < 2
        assert (flow(places) - normal)[near].abs().max() < 0.1
        for layer in (layer for layer in flow.modules() if isinstance(layer, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight, gain=0.7)
            nn.init.normal_(layer.bias, std=0.2)
        bent = flow(places)
    assert (bent - normal)[near].abs().max() > 0.3
    assert bent.exp().sum().item() * step**2 == pytest.approx(1, abs=0.01)


def test_joints_count_where_they_are_labelled_and_in_the_box() -> None:
    targets = Targets(
        boxes_at((0, 0, 10, 10))[None],
        torch.tensor([[[[5.0, 5], [10, 0], [10.1, 5], [5, 5]] + [[0, 0]] * 13]]),
        torch.tensor([[[True, True, True, False] + [False] * 13]]),
        torch.ones(1, 1, dtype=torch.bool),
    )
    matches = Matches(*(torch.zeros(1, dtype=torch.int64) for _ in range(3)))
    box = boxes_at((0, 0, 10, 10)).requires_grad_()
    aim = aim_of(box, matches, targets)
    assert aim.counts[0, :4].tolist() == [1, 1, 0, 0], "borders included"
    assert aim.coordinates[0, :4].tolist() == [[0, 0], [0.5, -0.5], [0, 0], [0, 0]]
    assert not aim.coordinates.requires_grad, "boxes learn nothing from joints"


def stage_of(targets: Targets, matches: Matches, queries: int = 4) -> Learned:
    """Random answers for given matches."""
    generator = torch.Generator().manual_seed(9)
    boxes = random_boxes(generator, len(targets.valid), queries)
    M = len(matches.image)
    joints = Joints(torch.randn(M, 17, 2, generator=generator), torch.rand(M, 17, 2, generator=generator))
    aim = aim_of(boxes[matches.image, matches.query], matches, targets)
    logits = torch.randn(len(targets.valid), queries, generator=generator)
    log_phi, looks = torch.randn(M, 17, generator=generator), torch.randn(M, 7, 36, generator=generator)
    return Learned(logits, boxes, matches, joints, aim, log_phi, looks)


def test_a_part_is_to_be_looked_for_at_its_joints_that_count() -> None:
    """Each joint's share written out, cell by cell."""
    generator = torch.Generator().manual_seed(3)
    parts, side = ((0, 2), (1,), (3, 4)), 6
    coordinates = torch.rand(2, 5, 2, generator=generator) - 0.5
    counts = torch.tensor([[1.0, 1, 1, 0, 1], [0, 1, 0, 0, 0]])
    wanted = wanted_looks(Aim(coordinates, counts), parts, side)

    def along(place: float) -> list[float]:
        line = [math.exp(-((((place + 0.5) * side - 0.5 - cell) / 0.7) ** 2) / 2) for cell in range(side)]
        return [value / sum(line) for value in line]

    for person, (part, joints) in itertools.product(range(2), enumerate(parts)):
        there = [joint for joint in joints if counts[person, joint]]
        expected = np.zeros((side, side))
        for joint in there:
            x, y = (along(place) for place in coordinates[person, joint].tolist())
            expected += np.outer(y, x) / len(there)
        assert wanted[person, part].reshape(side, side).numpy() == pytest.approx(expected, abs=1e-6)
    assert wanted.sum(-1).tolist() == [pytest.approx([1, 1, 1]), pytest.approx([0, 1, 0])]


def test_looking_where_the_joints_are_costs_least() -> None:
    """Then what is left is the wanted looks' own entropy; joints that do not count teach no look anything."""
    generator = torch.Generator().manual_seed(4)
    aim = Aim(torch.rand(3, 17, 2, generator=generator) - 0.5, torch.ones(3, 17))
    aim.counts[2] = 0
    wanted = wanted_looks(aim, PARTS["coco17"], 28)
    entropy = -torch.xlogy(wanted.double(), wanted.double()).sum().item() / 7
    best = wanted.clamp(min=1e-30).log()
    assert looked_away(best, wanted).item() == pytest.approx(entropy, rel=1e-5)
    looks = (best + torch.randn(best.shape, generator=generator)).requires_grad_()
    away = looked_away(looks, wanted)
    assert away.item() > entropy + 0.1
    away.backward()
    assert looks.grad is not None
    assert looks.grad[:2].any()
    assert not looks.grad[2].any()


def test_looks_are_a_term_if_they_count() -> None:
    network, targets = made(), crowd((1, 2))
    outputs = network(images(), targets)
    plain, more = Loss()(outputs, targets), Loss(Weights(look=0.5))(outputs, targets)
    assert more.keys() - plain.keys() == {"look_0", "look_1", "look_2"}
    assert all(torch.equal(more[name], term) for name, term in plain.items())
    stage = outputs.stages[1]
    wanted = wanted_looks(stage.aim, PARTS["coco17"], 28)
    assert more["look_1"].item() == pytest.approx(0.5 * looked_away(stage.looks, wanted).item() / 3, rel=1e-6)
    seen: list[Tensor] = []
    embedding = network.pose_stages[1].embedding
    with torch.no_grad():  # the same logits that the stage reads by
        hook = embedding.attend.register_forward_hook(lambda _, inputs, out: seen.append(out.flatten(2)))
        looks = network.train()(images(), targets).stages[1].looks
        hook.remove()
    assert torch.equal(looks, seen[0])


def test_terms_are_the_sums_of_the_spec() -> None:
    targets = crowd((1, 2))
    matches = Matches(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3]), torch.tensor([0, 1, 0]))
    stage = stage_of(targets, matches)
    terms = Loss()(Outputs([stage, stage], SIZES), targets)
    assert list(terms) == [f"{name}_{i}" for i in (0, 1) for name in ("score", "box", "overlap", "joints")]
    found = torch.zeros(2, 4)
    box = overlap = 0.0
    for image, query, person in zip(*(index.tolist() for index in matches), strict=True):
        found[image, query] = 1
        mine, theirs = stage.boxes[image, query], targets.boxes[image, person]
        box += ((mine - theirs).abs() / torch.tensor([*SIZE, *SIZE])).sum().item()
        overlap += 1 - generalised_iou(mine, theirs).item()
    joints = residual_likelihood(stage.joints, stage.aim, stage.log_phi).item() / 17
    expected = (2 * focal(stage.logits, found).item(), 5 * box, 2 * overlap, joints)
    assert [terms[f"{name}_1"].item() * 3 for name in ("score", "box", "overlap", "joints")] == pytest.approx(
        expected, rel=1e-5
    )


def test_weights_and_the_number_of_people_scale_the_terms() -> None:
    """`people` is what several processes agree on; without it each counts its own."""
    targets = crowd((1, 2))
    matches = Matches(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3]), torch.tensor([0, 1, 0]))
    outputs = Outputs([stage_of(targets, matches)], SIZES)
    plain, six = Loss()(outputs, targets), Loss()(outputs, targets, people=6)
    double = Loss(Weights(score=4, box=10, overlap=4, joints=2))(outputs, targets)
    for name, term in plain.items():
        assert six[name].item() == pytest.approx(term.item() / 2)
        assert double[name].item() == pytest.approx(term.item() * 2)
    assert Loss()(outputs, targets, people=0.25)["box_0"].item() == pytest.approx(3 * plain["box_0"].item())


# A training step.


def backward(network: QueryPose, targets: Targets) -> dict[str, Tensor]:
    terms = Loss()(network(images(len(targets.valid)), targets), targets)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters()
    )
    return terms


@pytest.mark.parametrize(
    "options", [{}, {"full": True}, {"reference": True, "full": True}, {"skeleton": "crowdpose14"}]
)
def test_every_weight_learns(options: dict[str, Any]) -> None:
    """One that never gets a gradient would stop data-parallel training.

    Some queries are so large that they read the coarser maps. Nothing moves a softmax's common bias.
    """
    network, targets = made(**options), crowd(joints=14 if "skeleton" in options else 17)
    with torch.no_grad():
        network.queries.boxes[:3, 2:] = torch.tensor([[2.0], [4.0], [8.0]])
    terms = backward(network, targets)
    assert len(terms) == 12
    still = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert [key for key in still if not key.endswith("embedding.attend.bias")] == []


@pytest.mark.parametrize("people", [(0, 0), (0, 3)])
def test_a_batch_or_a_picture_of_background_teaches_the_scores_alone(people: tuple[int, ...]) -> None:
    """Nobody at all: all losses but the scores' are 0, and no statistics are taken of nobody."""
    network, targets = made(), crowd(people)
    before = {key: value.clone() for key, value in network.pose_stages.state_dict().items()}
    terms = backward(network, targets)
    nobody = not any(people)
    assert all(
        (term.item() == 0) == (nobody and not name.startswith("score")) for name, term in terms.items()
    )
    parts = [value.grad for value in (*network.pose_stages.parameters(), *network.flow.parameters())]
    assert nobody != any(bool(gradient.any()) for gradient in parts if gradient is not None)
    if nobody:
        for key, value in network.pose_stages.state_dict().items():
            assert torch.equal(value, before[key]) or key.endswith("num_batches_tracked"), key


def test_pictures_without_room_for_people() -> None:
    """P is 0 where a whole batch has nobody."""
    empty = Targets(
        torch.zeros(2, 0, 4),
        torch.zeros(2, 0, 17, 2),
        torch.zeros(2, 0, 17, dtype=torch.bool),
        torch.zeros(2, 0, dtype=torch.bool),
    )
    assert all(
        term.item() == 0 for name, term in backward(made(), empty).items() if not name.startswith("score")
    )


def test_a_person_without_a_visible_joint_is_a_box() -> None:
    targets = crowd((1, 1))
    hidden = targets._replace(
        labelled=torch.zeros_like(targets.labelled), joints=torch.zeros_like(targets.joints)
    )
    network = made()
    terms = backward(network, hidden)
    for name, term in terms.items():
        assert (term.item() == 0) == name.startswith("joints"), name
    assert not any(value.grad.any() for value in network.pose_stages[-1].coordinates.parameters())


def test_more_people_than_queries() -> None:
    """Those without a query wait; the parts of the others stay with them."""
    network, targets = made(queries=3, top_k=None), crowd((5, 1))
    outputs = network(images(), targets)
    assert [len(stage.matches.image) for stage in outputs.stages] == [4, 4, 4]
    backward(network, targets)


@contextmanager
def parts_seen(network: QueryPose) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Part queries into and out of each pose stage."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        stage.register_forward_hook(
            lambda _, inputs, out: seen.append((inputs[2].detach(), out.parts.detach()))
        )
        for stage in network.pose_stages
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("reference", [False, True])
def test_parts_stay_with_their_person(reference: bool) -> None:
    """With the authors' bookkeeping they stay with their row, which at the next stage is somebody else's."""
    network, targets = made(reference=reference), crowd((4, 4), seed=2)
    with parts_seen(network) as seen:
        stages = network(images(), targets).stages
    orders = [
        list(zip(stage.matches.image.tolist(), stage.matches.person.tolist(), strict=True))
        for stage in stages
    ]
    assert orders[0] != orders[1], "this seed is to change places between stages"
    assert torch.equal(seen[0][0], network.queries.parts.detach().expand(8, -1, -1))
    for before, after in itertools.pairwise(range(3)):
        rows = range(8) if reference else [orders[before].index(person) for person in orders[after]]
        assert torch.equal(seen[after][0], seen[before][1][list(rows)])


@pytest.mark.parametrize("reference", [False, True])
def test_the_renewed_query_goes_on_in_the_authors_bookkeeping_alone(reference: bool) -> None:
    """Evaluation never hands it on, so neither does training, by default."""
    network, targets = made(full=True, reference=reference), crowd((2, 2))
    given_on: list[Tensor] = []
    first, second = network.box_stages[0], network.box_stages[1]
    hooks = [
        first.register_forward_hook(lambda _, inputs, found: given_on.append(found.queries.detach())),
        second.register_forward_pre_hook(lambda _, inputs: given_on.append(inputs[0].detach())),
    ]
    matches = network(images(), targets).stages[0].matches
    for hook in hooks:
        hook.remove()
    told, taken = given_on
    changed = (told != taken).any(-1)
    expected = torch.zeros_like(changed)
    if reference:
        expected[matches.image, matches.query] = True
    assert torch.equal(changed, expected)


def test_labels_count_from_a_pixels_corner() -> None:
    """And crowds are nobody's: section 9 and the authors' training."""
    joints = torch.rand(1, 3, 17, 2)
    people = People(
        joints=joints,
        labelled=torch.ones(1, 3, 17, dtype=torch.bool),
        area=torch.ones(1, 3),
        boxes=torch.rand(1, 3, 4),
        valid=torch.tensor([[True, False, True]]),
        ignored=torch.tensor([[False, True, False]]),
    )
    targets = targets_of(people)
    assert torch.equal(targets.joints, joints + 0.5)
    assert torch.equal(targets.boxes, people.boxes + 0.5)
    assert targets.valid.tolist() == [[True, False, True]]


@pytest.mark.slow
def test_some_steps_learn_a_picture() -> None:
    """Boxes close in on two people, joints on their places: what it is all for."""
    torch.manual_seed(4)
    network, targets = build(TINY, size=SIZE), crowd((2,), seed=5)
    assert isinstance(network, QueryPose)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    first: dict[str, float] = {}
    for _ in range(150):
        terms = Loss()(network(images(1), targets), targets)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        first = first or {name: term.item() for name, term in terms.items()}
    last = {name: term.item() for name, term in terms.items()}
    assert last["score_2"] < 0.2 * first["score_2"]
    assert last["box_2"] < 0.4 * first["box_2"]
    network.eval()
    with torch.no_grad():
        found = network(images(1))
    best = found["keypoints"][0, :2]
    apart = (best[:, None] - targets.joints[0]).norm(dim=-1).mean(-1)  # (2, 2) pixels, of 56 between the two
    assert sorted(apart.argmin(0).tolist()) == [0, 1], "each by a query of their own"
    assert apart.amin(0).max().item() < 4, "the middles of the boxes would be 8 pixels off"
