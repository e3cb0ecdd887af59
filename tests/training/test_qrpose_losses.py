"""Labels and losses of QR-Pose against closed forms, pycocotools and slow versions (U1 to U7, U9, U14)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgepose.runtime.skeleton import COCO17
from edgepose.training.batch import People
from edgepose.training.models.qrpose import losses
from edgepose.training.models.qrpose.losses import Loss, Weights, oks, quality_focal
from edgepose.training.models.qrpose.network import Choice, Config, Look, QrPose, Raw
from edgepose.training.models.qrpose.sampling import pixel_centres
from edgepose.training.models.qrpose.targets import Chooser, Targets, assign, corner_radius, heatmaps

SIDE = 24  # of the map
GRID = pixel_centres((SIDE, SIDE))
K = len(COCO17)


def people(joints: Tensor, labelled: Tensor | None = None, area: Tensor | None = None) -> People:
    """Valid people (B, P, K, 2) in input pixels with their tight boxes."""
    shape = joints.shape[:2]
    return People(
        joints=joints,
        labelled=torch.ones(joints.shape[:3], dtype=torch.bool) if labelled is None else labelled,
        area=torch.full(shape, 900.0) if area is None else area,
        boxes=torch.cat([joints.amin(2), joints.amax(2)], -1),
        valid=torch.ones(shape, dtype=torch.bool),
        ignored=torch.zeros(shape, dtype=torch.bool),
    )


def somebody(seed: int = 0, batch: int = 2, count: int = 2) -> People:
    generator = torch.Generator().manual_seed(seed)
    middle = 16 + 60 * torch.rand(batch, count, 1, 2, generator=generator)
    spread = torch.tensor([14.0, 24.0])
    return people(middle + spread * (torch.rand(batch, count, K, 2, generator=generator) - 0.5))


def raw_of(targets: Targets, offset: Tensor | None = None) -> Raw:
    """A network's answer at all pixels: perfect poses for the owner of each pixel, plus `offset` (2,)."""
    batch = len(targets.owner)
    pixels = torch.arange(SIDE * SIDE).expand(batch, -1)
    joints = torch.stack([j[o.clamp(min=0)] for j, o in zip(targets.joints, targets.owner, strict=True)])
    offsets = joints - GRID[None, :, None]
    if offset is not None:
        offsets = offsets + offset
    flat = torch.zeros(batch, SIDE * SIDE)
    return Raw(
        coarse=flat.reshape(batch, SIDE, SIDE),
        heatmaps=torch.zeros(batch, K, SIDE, SIDE),
        pixels=pixels,
        share=torch.ones(batch, SIDE * SIDE),
        hinted=0,
        logits=flat,
        offsets=offsets,
        coarse_offsets=offsets.clone(),
        confidence=torch.zeros(batch, SIDE * SIDE, K),
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), hidden=st.integers(0, 10), area=st.floats(50, 40_000))
def test_oks_is_cocos(seed: int, hidden: int, area: float) -> None:
    """U1."""
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(seed)
    truth, found = rng.uniform(0, 200, (2, K, 2))
    found = truth + (found - 100) / 10
    flags = np.ones(K)
    flags[rng.permutation(K)[:hidden]] = 0
    labels = np.column_stack([truth, 2 * flags]).ravel()
    evaluator = cocoeval.COCOeval(iouType="keypoints")
    evaluator.params.imgIds, evaluator.params.catIds = [1], [1]
    evaluator._gts[1, 1] = [{"keypoints": labels.tolist(), "bbox": [0, 0, 200, 200], "area": area}]
    detection = np.column_stack([found, flags]).ravel()
    evaluator._dts[1, 1] = [{"keypoints": detection.tolist(), "score": 1.0}]
    expected = evaluator.computeOks(1, 1)[0, 0]
    double = torch.float64
    got = oks(
        torch.tensor(found, dtype=double),
        torch.tensor(truth, dtype=double),
        torch.tensor(flags, dtype=torch.bool),
        torch.tensor(area, dtype=double),
    )
    assert float(got) == pytest.approx(expected, abs=1e-6)


def label_of(targets: Targets, raw: Raw, kind: losses.CirTarget = "oks") -> Tensor:
    positives = losses._Positives(raw, targets, GRID)
    return losses.cir_label(positives.oks(positives.poses), positives, targets, GRID, kind)


def test_label_is_the_oks_of_the_regressed_pose() -> None:
    """U2: at each positive pixel, against a plain loop; 0 elsewhere."""
    targets = assign(somebody(), GRID)
    raw = raw_of(targets)
    raw = raw._replace(offsets=raw.offsets + torch.randn(raw.offsets.shape))
    label = label_of(targets, raw)
    sigmas = np.array(COCO17.sigmas)
    checked = 0
    for image in range(2):
        for pixel in range(SIDE * SIDE):
            owner = int(targets.owner[image, pixel])
            if owner < 0:
                assert label[image, pixel] == 0
                continue
            place = np.array([pixel % SIDE, pixel // SIDE])
            pose = place + raw.offsets[image, pixel].numpy()
            squared = ((pose - targets.joints[image, owner].numpy()) ** 2).sum(-1)
            area = float(targets.area[image, owner])
            expected = np.exp(-squared / (2 * area * (2 * sigmas) ** 2)).mean()
            assert float(label[image, pixel]) == pytest.approx(expected, abs=1e-5)
            checked += 1
    assert checked >= 18
    assert not label.requires_grad


@settings(max_examples=25, deadline=None)
@given(distance=st.floats(0, 6), angle=st.floats(0, 6.2))
def test_label_of_a_displaced_pose_has_a_closed_form(distance: float, angle: float) -> None:
    """U3."""
    targets = assign(somebody(), GRID)
    offset = distance * torch.tensor([math.cos(angle), math.sin(angle)])
    label = label_of(targets, raw_of(targets, offset))
    expected = np.exp(-(distance**2) / (2 * (900 / 16) * (2 * np.array(COCO17.sigmas)) ** 2)).mean()
    positive = targets.owner >= 0
    assert torch.allclose(label[positive], torch.tensor(expected).float(), atol=2e-5)


def test_perfect_poses_have_label_one_and_baselines_are_what_they_say() -> None:
    """U3 and the other two kinds of label."""
    targets = assign(somebody(), GRID)
    positive = targets.owner >= 0
    assert torch.allclose(label_of(targets, raw_of(targets))[positive], torch.ones(int(positive.sum())))
    shifted = raw_of(targets, torch.tensor([1.0, 0.0]))
    assert torch.equal(label_of(targets, shifted, "gauss"), positive.float())
    both = label_of(targets, raw_of(targets), "oks_gauss")
    assert torch.allclose(both, targets.gaussian, atol=1e-6)


def test_label_does_not_change_with_the_scale_of_the_picture() -> None:
    """U9: the area scales with the square; the trap is to scale it once."""
    small = somebody(batch=1, count=1)
    offset = torch.tensor([0.4, 0.3])
    labels = []
    for factor in (1.0, 1.25):
        scaled = small._replace(joints=small.joints * factor, area=small.area * factor**2)
        targets = assign(scaled, GRID)
        positives = losses._Positives(raw_of(targets, offset * factor), targets, GRID)
        labels.append(float(positives.oks(positives.poses)[0]))
    assert labels[0] == pytest.approx(labels[1], abs=1e-4)
    assert labels[0] < 0.98


def test_with_label_one_it_is_the_penalty_reduced_focal_loss() -> None:
    """U4: CenterNet's loss by its own formula."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(200, generator=generator)
    gaussian = torch.rand(200, generator=generator) * 0.99
    peak = torch.rand(200, generator=generator) < 0.1
    p = torch.sigmoid(logits).clamp(1e-4, 1 - 1e-4).double()
    at_peak = (1 - p) ** 2 * torch.log(p)
    elsewhere = (1 - gaussian.double()) ** 4 * p**2 * torch.log(1 - p)
    expected = -torch.where(peak, at_peak, elsewhere).sum()
    got = quality_focal(logits, peak.float(), torch.where(peak, 1.0, (1 - gaussian) ** 4))
    assert float(got) == pytest.approx(float(expected), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(target=st.floats(0.05, 0.95), step=st.floats(0.05, 2.0))
def test_score_loss_is_least_where_the_score_is_the_label(target: float, step: float) -> None:
    """U5."""
    label = torch.tensor([target])
    best = torch.logit(label)

    def slope(logit: Tensor) -> float:
        logit = logit.clone().requires_grad_()
        return float(torch.autograd.grad(quality_focal(logit, label, torch.ones(1)), logit)[0])

    assert slope(best + step) >= 0 >= slope(best - step)
    assert abs(slope(best)) < 1e-6


def test_score_loss_is_finite_at_the_ends_and_blind_where_ignored() -> None:
    """U5."""
    logits = torch.tensor([-200.0, 200.0, 0.3], requires_grad=True)
    loss = quality_focal(logits, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert math.isfinite(float(loss.detach()))
    (slope,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(slope).all()
    assert slope[2] == 0


@pytest.mark.parametrize("detach", [True, False])
def test_the_score_loss_moves_the_pose_only_without_detach(detach: bool) -> None:
    """U6: exactly zero with the stop-gradient; the other case shows that the test can see it."""
    torch.manual_seed(0)
    network = QrPose(Config(size=(64, 64), pqe_detach=detach)).train()
    look = network.looks[1]
    assert isinstance(look, Look)
    torch.nn.init.normal_(look.off.weight, std=0.1)
    raw = network(torch.randn(2, 3, 64, 64), None)
    weight = torch.ones_like(raw.logits)
    layers = [network.off1.weight, look.off.weight, look.position.weight]
    slopes = torch.autograd.grad(quality_focal(raw.logits, 0.7 * weight, weight), layers, allow_unused=True)
    moved = [slope is not None and bool(slope.abs().max() > 0) for slope in slopes]
    assert moved == [not detach] * 3


def test_an_overlap_belongs_to_the_smaller_person() -> None:
    """U7."""
    joints = torch.full((1, 2, K, 2), 40.0)
    joints[0, 1] += 4.0  # one map pixel aside
    for areas, small in (((900.0, 400.0), 1), ((400.0, 900.0), 0)):
        targets = assign(people(joints, area=torch.tensor([areas])), GRID)
        owner = targets.owner.reshape(SIDE, SIDE)
        assert (owner == small).sum() == 9
        assert (owner == 1 - small).sum() == 9 - 4


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_positives_are_a_square_about_the_centre(radius: int) -> None:
    targets = assign(somebody(batch=1, count=1), GRID, radius)
    mine = GRID[targets.owner[0] == 0]
    assert len(mine) == (2 * radius + 1) ** 2
    assert torch.equal(mine.mean(0), targets.centres[0, 0])


def test_crowds_and_tiny_people_are_neither_right_nor_wrong() -> None:
    """U7: no positive pixels, no weight in their box, weight everywhere else."""
    everyone = somebody(batch=1, count=1)
    ignored = everyone._replace(valid=~everyone.valid, ignored=~everyone.ignored)
    targets = assign(ignored, GRID)
    assert (targets.owner < 0).all()
    x0, y0, x1, y1 = (ignored.boxes[0, 0] / 4).tolist()
    for (x, y), counts in zip(GRID.tolist(), targets.counts[0].tolist(), strict=True):
        assert counts == (0.0 if x0 <= x <= x1 and y0 <= y <= y1 else 1.0)


@pytest.mark.parametrize("radius", [0, 1])
def test_the_specified_loss_is_section_6_to_the_letter(radius: int) -> None:
    """Every term against plain loops, people by people and pixel by pixel, with hidden joints."""
    generator = torch.Generator().manual_seed(6)
    labelled = torch.rand(2, 2, K, generator=generator) < 0.8
    joints = somebody(7).joints
    middle = joints.mean(2, keepdim=True)
    joints = middle + 3 * (joints - middle)  # so large that their Gaussians reach beyond one pixel
    targets = assign(people(joints, labelled, torch.tensor([[900.0, 500.0], [1600.0, 700.0]])), GRID, radius)
    raw = raw_of(targets)
    noise = [torch.randn(raw.offsets.shape, generator=generator) for _ in range(2)]
    raw = raw._replace(
        logits=torch.randn(raw.logits.shape, generator=generator),
        coarse=torch.randn(raw.coarse.shape, generator=generator),
        heatmaps=torch.randn(raw.heatmaps.shape, generator=generator),
        confidence=torch.randn(raw.confidence.shape, generator=generator),
        offsets=raw.offsets + noise[0],
        coarse_offsets=raw.offsets + 2 * noise[1],
    )
    got = Loss(specified=True)(raw, targets, GRID, 0.0)
    sigmas, positives = np.array(COCO17.sigmas), 0
    score = {"score": 0.0, "coarse_score": 0.0}
    far, lost, counted, confidence = np.zeros(2), np.zeros(2), 0, []
    for image in range(2):
        for pixel in range(SIDE * SIDE):
            owner, label = int(targets.owner[image, pixel]), 0.0
            weight = (1 - float(targets.gaussian[image, pixel])) ** 4
            if owner >= 0:
                true, shown = targets.joints[image, owner].numpy(), labelled[image, owner].numpy()
                scale = 2 * float(targets.area[image, owner]) * (2 * sigmas) ** 2
                for kind, offsets in enumerate((raw.offsets, raw.coarse_offsets)):
                    apart = GRID[pixel].numpy() + offsets[image, pixel].numpy() - true
                    similar = np.exp(-(apart**2).sum(-1) / scale) * shown
                    far[kind] += (np.abs(apart).sum(-1) * shown).sum()
                    lost[kind] += 1 - similar.sum() / shown.sum()
                    if kind == 0:
                        label, weight, sure = similar.sum() / shown.sum(), 1.0, similar
                said = 1 / (1 + np.exp(-raw.confidence[image, pixel].double().numpy()))
                confidence.append(-(sure * np.log(said) + (1 - sure) * np.log(1 - said)))
                positives, counted = positives + 1, counted + int(shown.sum())
            for name, logits in (("score", raw.logits), ("coarse_score", raw.coarse.flatten(1))):
                s = 1 / (1 + math.exp(-float(logits[image, pixel])))
                entropy = -(label * math.log(s) + (1 - label) * math.log(1 - s))
                score[name] += weight * (label - s) ** 2 * entropy
    heat = 0.0
    for image, joint, y, x in np.ndindex(2, K, SIDE, SIDE):
        near = [
            math.exp(-float((GRID[y * SIDE + x] - targets.joints[image, p, joint]).square().sum()) / 4.5)
            for p in range(2)
            if labelled[image, p, joint]
        ]
        s = 1 / (1 + math.exp(-float(raw.heatmaps[image, joint, y, x])))
        heat += (s - max(near, default=0.0)) ** 2 / (2 * K * SIDE * SIDE)
    expected = {
        "score": score["score"] / positives,
        "coarse_score": 0.5 * score["coarse_score"] / positives,
        "offset": far[0] / counted,
        "coarse_offset": 0.5 * far[1] / counted,
        "oks": 5 * lost[0] / positives,
        "coarse_oks": 2.5 * lost[1] / positives,
        "heatmap": heat,
        "confidence": 0.5 * np.mean(confidence),
    }
    assert {name: float(value) for name, value in got.items()} == pytest.approx(expected, rel=1e-4)
    ours = Loss()(raw, targets, GRID, 0.0)
    differ = {name for name in expected if float(ours[name]) != float(got[name])}
    assert differ == {"offset", "coarse_offset", "heatmap"}


def test_each_rival_learns_its_own_label_at_the_same_pixels() -> None:
    """As the one score of a network would that learns this label alone."""
    targets = assign(somebody(), GRID)
    raw = raw_of(targets, torch.tensor([1.0, 0.5]))
    generator = torch.Generator().manual_seed(4)
    rivals = {name: torch.randn(raw.logits.shape, generator=generator) for name in losses.LEARNS}
    terms = Loss()(raw._replace(rivals=rivals), targets, GRID, 0.0)
    alone: dict[str, losses.CirTarget] = {"cir": "oks", "gauss_pqe": "gauss", "gauss": "gauss"}
    for name, kind in alone.items():
        expected = Loss(target=kind)(raw._replace(logits=rivals[name]), targets, GRID, 0.0)["score"]
        assert float(terms[f"{name}_score"]) == pytest.approx(float(expected), rel=1e-6)
    assert set(terms) - set(Loss()(raw, targets, GRID, 0.0)) == {f"{name}_score" for name in alone}


def test_nobody_gives_a_finite_loss() -> None:
    """A batch of empty pictures must not divide by zero."""
    none = somebody()._replace(valid=torch.zeros(2, 2, dtype=torch.bool))
    targets = assign(none, GRID)
    terms = Loss()(raw_of(targets), targets, GRID, 0.0)
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert terms["offset"] == terms["oks"] == terms["coarse_offset"] == 0


def test_mirrored_people_give_mirrored_maps() -> None:
    """U14, on whole-number positions, where floor() is symmetric too."""
    joints = torch.randint(2, SIDE - 3, (1, 1, K, 2))
    labelled = torch.arange(K)[None, None] > 0  # 16 of them: their mean is exact in any order of the sum
    missing = int(-joints[0, 0, 1:, 0].sum()) % 16
    joints[0, 0, 1 : 1 + missing, 0] += 1  # so that the centre is a whole number
    joints = 4.0 * joints
    direct = assign(people(joints, labelled), GRID)
    mirrored = joints[:, :, list(COCO17.mirror)].clone()
    mirrored[..., 0] = 4 * (SIDE - 1) - mirrored[..., 0]
    flipped = assign(people(mirrored, labelled), GRID)

    def shown(values: Tensor) -> Tensor:
        return values.reshape(-1, SIDE, SIDE)

    assert torch.equal(shown(direct.owner).flip(-1), shown(flipped.owner))
    assert torch.allclose(shown(direct.gaussian).flip(-1), shown(flipped.gaussian), atol=1e-6)
    heat, other = heatmaps(direct, (SIDE, SIDE)), heatmaps(flipped, (SIDE, SIDE))
    assert torch.allclose(heat[:, list(COCO17.mirror)].flip(-1), other, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(width=st.floats(1, 200), height=st.floats(1, 200))
def test_a_box_moved_by_the_radius_keeps_the_overlap(width: float, height: float) -> None:
    """The worst of the three cases of CornerNet has exactly the promised overlap, by counting areas."""
    r = float(corner_radius(*torch.tensor([width, height], dtype=torch.float64)))

    def overlap(x0: float, y0: float, x1: float, y1: float) -> float:
        inner = max(0.0, min(x1, width) - max(x0, 0)) * max(0.0, min(y1, height) - max(y0, 0))
        return inner / ((x1 - x0) * (y1 - y0) + width * height - inner)

    cases = [
        overlap(r, r, width + r, height + r),
        overlap(r, r, width - r, height - r),
        overlap(-r, -r, width + r, height + r),
    ]
    assert min(cases) == pytest.approx(0.7, abs=1e-6)


def chooser(targets: Targets, count: int, hinted: int, seed: int = 1) -> Chooser:
    return Chooser(targets, GRID, count, hinted, torch.Generator().manual_seed(seed))


def test_chosen_pixels_hold_all_positives_and_no_pixel_twice() -> None:
    targets = assign(somebody(), GRID)
    coarse = torch.randn(2, SIDE, SIDE)
    pixels, share, hints = chooser(targets, 64, 0).choose(coarse)
    assert hints.shape == (2, 0, K, 2)
    assert torch.equal(pixels, chooser(targets, 64, 0).choose(coarse).pixels)
    for row, owners, logits in zip(pixels, targets.owner, coarse.flatten(1), strict=True):
        assert len(set(row.tolist())) == 64
        assert set((owners >= 0).nonzero()[:, 0].tolist()) <= set(row.tolist())
        background = torch.where(owners >= 0, -torch.inf, logits)
        assert int(background.argmax()) in row.tolist()
    assert torch.allclose(share.sum(1), torch.full((2,), float(SIDE**2)))
    assert (share[targets.owner.gather(1, pixels) >= 0] == 1).all()


def test_in_a_crowd_all_positives_are_chosen_and_hard_background_too() -> None:
    """One left out would learn that it is background."""
    centres = torch.tensor([[x, y] for y in (16.0, 48.0, 80.0) for x in (16.0, 48.0, 80.0)])
    nine = centres[None, :, None] + torch.randn(1, 9, K, 2)
    targets = assign(people(nine), GRID)
    assert int((targets.owner >= 0).sum()) == 81
    coarse = torch.randn(1, SIDE, SIDE)
    pixels, share, _ = chooser(targets, 112, 0).choose(coarse)
    assert set((targets.owner[0] >= 0).nonzero()[:, 0].tolist()) <= set(pixels[0].tolist())
    background = torch.where(targets.owner >= 0, -torch.inf, coarse.flatten(1))
    assert set(background[0].topk(10).indices.tolist()) <= set(pixels[0].tolist())
    assert float(share.sum()) == pytest.approx(SIDE**2)


def test_hinted_poses_take_no_weight_from_the_background() -> None:
    """The score's background counts by the people, as in section 6, however many hints there are."""
    targets = assign(somebody(), GRID)
    raw = raw_of(targets)
    wrong = torch.where(targets.owner >= 0, 10.0, 0.0)  # right on people, whose poses are perfect
    alone = Loss()(raw._replace(logits=wrong), targets, GRID, 0.0)["score"]
    again = torch.topk((targets.owner >= 0).float(), 9, 1).indices
    hinted = raw._replace(
        pixels=torch.cat([raw.pixels, again], 1),
        share=torch.ones(2, SIDE**2 + 9),
        hinted=9,
        logits=torch.cat([wrong, torch.full((2, 9), 10.0)], 1),
        offsets=torch.cat([raw.offsets, raw.offsets[torch.arange(2)[:, None], again]], 1),
        coarse_offsets=torch.cat([raw.offsets, raw.offsets[torch.arange(2)[:, None], again]], 1),
        confidence=torch.zeros(2, SIDE**2 + 9, K),
    )
    assert float(Loss()(hinted, targets, GRID, 0.0)["score"]) == pytest.approx(float(alone), rel=1e-4)


def test_chosen_pixels_stand_for_all() -> None:
    """What is summed over them is, in the mean of many choices, the sum over the whole map."""
    targets = assign(somebody(count=1), GRID)
    coarse, values = torch.randn(2, SIDE, SIDE), torch.rand(2, SIDE**2)
    sums = []
    for seed in range(400):
        choice = chooser(targets, 64, 0, seed).choose(coarse)
        sums.append((choice.share * values.gather(1, choice.pixels)).sum(1))
    found = torch.stack(sums)
    margin = 4 * found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - values.sum(1)).abs() < margin).all()


def test_hints_are_true_poses_with_noise_of_the_persons_size() -> None:
    """Over many draws the noise has mean 0 and the standard deviation of a uniform share of sqrt(area)."""
    targets = assign(somebody(count=1), GRID)
    rest = []
    for seed in range(60):
        pixels, _, hints = chooser(targets, 64, 9, seed).choose(torch.zeros(2, SIDE, SIDE))
        again = pixels[:, -9:]
        assert (targets.owner.gather(1, again) == 0).all()
        rest.append(hints + GRID[again][:, :, None] - targets.joints[:, :1])
    noise = torch.stack(rest) / targets.area.sqrt()[0, 0]
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(0.3 / math.sqrt(3), rel=0.05)


def test_hinted_poses_start_from_the_hint_and_leave_the_map_alone() -> None:
    """Their coarse offsets are the hints, they carry no coarse loss, the score map's label ignores them."""
    torch.manual_seed(0)
    network = QrPose(Config(size=(96, 96))).train()
    targets = assign(somebody(), GRID)
    chosen: list[Tensor] = []

    def choose(coarse: Tensor) -> Choice:
        choice = chooser(targets, 64, 20).choose(coarse)
        chosen.append(choice.hints)
        return choice

    raw = network(torch.randn(2, 3, 96, 96), choose)
    assert raw.hinted == 20
    assert torch.allclose(raw.coarse_offsets[:, -20:], chosen[0])
    terms = Loss()(raw, targets, GRID, 0.0)
    without = raw._replace(coarse_offsets=raw.coarse_offsets.clone())
    without.coarse_offsets[:, -20:] += 5
    again = Loss()(without, targets, GRID, 0.0)
    for name in ("coarse_offset", "coarse_oks", "coarse_score"):
        assert torch.equal(terms[name], again[name]), name
    positives = losses._Positives(raw, targets, GRID)
    quality = torch.where(positives.own, 0.25, 0.75)
    label = losses.cir_label(quality, positives, targets, GRID, "oks")
    assert torch.equal(label, 0.25 * (targets.owner >= 0))


def test_training_can_fit_one_batch() -> None:
    """The loss falls and the poses come out: 40 steps on two pictures."""
    torch.manual_seed(0)
    network = QrPose(Config(size=(96, 96))).train()
    targets = assign(somebody(), GRID)
    images = torch.randn(2, 3, 96, 96)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    totals, loss = [], Loss(Weights())
    for step in range(40):
        raw = network(images, chooser(targets, 128, 20, step).choose)
        total = torch.stack(list(loss(raw, targets, GRID, 0.0).values())).sum()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.4 * totals[0]
