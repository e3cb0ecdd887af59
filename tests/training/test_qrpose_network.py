"""The network and its two graphs: sampling, ties, dense and sparse, static ONNX, ONNX Runtime and torch."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import normalise
from edgepose.runtime.spec import Spec
from edgepose.training.batch import normalised
from edgepose.training.models import BUILDERS, build, load_published, shipped_weights
from edgepose.training.models.qrpose import deploy
from edgepose.training.models.qrpose.network import Heads, Look, QrPose, Queries, Sampler, Trunk
from edgepose.training.models.qrpose.sampling import at_pixels, bilinear, grid_sample, pixel_centres

OUTPUTS = ("scores", "boxes", "keypoints", "keypoint_scores")
# What TensorRT has parsed since 8.0; above all no GridSample, NonZero, If, Loop or Scatter.
ALLOWED = {
    *(
        "Abs",
        "Add",
        "And",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "Div",
        "Equal",
        "Expand",
    ),
    *(
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "Greater",
        "Identity",
        "Less",
        "Min",
        "Mul",
        "Range",
        "ReduceMax",
        "ReduceMean",
    ),
    *(
        "ReduceMin",
        "Relu",
        "Reshape",
        "Resize",
        "Shape",
        "Sigmoid",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "TopK",
        "Transpose",
    ),
    *("Unsqueeze", "Where"),
}


def lively(network: QrPose) -> QrPose:
    """Far offsets, unequal scores and uneven batch statistics, as after training."""
    torch.manual_seed(1)
    for layer in (network.score0, network.score):
        nn.init.normal_(layer.weight, std=3.0)
    nn.init.normal_(network.off1.weight, std=0.2)
    for look in network.looks:
        assert isinstance(look, Look)
        nn.init.normal_(look.off.weight, std=0.1)
        nn.init.normal_(look.body[1].weight)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            assert module.running_mean is not None
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.2)
    return network.eval()


def made(**options: object) -> QrPose:
    network = build("qrpose_tiny", **options)
    assert isinstance(network, QrPose)
    return network


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), width=st.integers(3, 12), height=st.integers(3, 12))
def test_sampling_reads_where_it_says(seed: int, width: int, height: int) -> None:
    """U8: a ramp in R comes back as the position, clamped beyond the border; both samplers agree."""
    generator = torch.Generator().manual_seed(seed)
    grid = pixel_centres((width, height)).T.reshape(2, height, width)
    ramp = grid.repeat(3, 1, 1)[None]  # 3 joints of 2 channels: x and y
    positions = torch.rand(2, 3, 2, 20, generator=generator) * 20 - 5
    read = bilinear(ramp.expand(2, -1, -1, -1), positions).reshape(2, 3, 2, 20)
    x, y = positions.unbind(2)
    expected = torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], 2)
    assert torch.allclose(read, expected, atol=1e-5)
    noise = torch.randn(2, 6, height, width, generator=generator)
    assert torch.allclose(bilinear(noise, positions), grid_sample(noise, positions), atol=1e-4)


@pytest.mark.parametrize("sample", [bilinear, grid_sample])
def test_the_sampled_position_has_the_slope_of_the_map(sample: Sampler) -> None:
    """KQE's gradient goes through the position at full strength: a ramp has slope 1."""
    ramp = pixel_centres((8, 8)).T.reshape(1, 2, 8, 8)
    positions = torch.tensor([[[[3.3], [4.6]]]], requires_grad=True)
    (slope,) = torch.autograd.grad(sample(ramp, positions)[0, 0].sum(), positions)
    assert torch.allclose(slope.flatten(), torch.tensor([1.0, 0.0]), atol=1e-5)


@pytest.mark.parametrize("reach", [0.25, 0.07])
def test_queries_stand_around_the_pose_as_far_as_it_is_large(reach: float) -> None:
    """U8 for the whole square of queries: with x and y as R's channels, what is read is where it was read."""
    network = made(size=(128, 96), joint_channels=2)
    ramp = network.grid.T.reshape(2, 24, 32).repeat(17, 1, 1)[None]
    coarse = torch.randn(1, 34, 1, 5) * 3
    here = torch.tensor([[[16.0, 12.0], [3.0, 3.0], [30.0, 22.0], [10.0, 2.0], [20.0, 12.0]]])
    read = network.read(ramp, here, bilinear, coarse, reach)
    semantics = read.semantics.reshape(17, 2, 9, 5)
    for pixel in range(5):
        pose = coarse[0, :, 0, pixel].reshape(17, 2) + here[0, pixel]
        sides = pose.max(0).values - pose.min(0).values
        spacing = max(0.75, float(sides.mean()) * reach)
        assert float(read.spacing[0, 0, 0, pixel]) == pytest.approx(spacing, rel=1e-5)
        for query in range(9):
            place = pose + spacing * torch.tensor([query % 3 - 1.0, query // 3 - 1.0])
            expected = torch.minimum(place.clamp(min=0), torch.tensor([31.0, 23.0]))
            assert torch.allclose(semantics[:, :, query, pixel], expected, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"kqe": False}, {"pqe": False}, {"kqe": False, "pqe": False}, {"rivals": True}]
)
def test_heads_at_pixels_are_the_dense_heads_at_those_pixels(options: dict[str, bool]) -> None:
    """U12: one set of weights, two layouts."""
    network = lively(made(size=(96, 64))) if not options else made(size=(96, 64), **options).eval()
    with torch.no_grad():
        trunk = network.trunk(torch.randn(2, 3, 64, 96))
        pixels = torch.randint(0, 24 * 16, (2, 50))
        some, everywhere = network.heads_at(trunk, pixels), network.heads_everywhere(trunk)
    assert len(some.rivals) == (3 if "rivals" in options else 0)
    few, every = ((*heads[:-1], *heads.rivals.values()) for heads in (some, everywhere))
    for got, full in zip(few, every, strict=True):
        assert torch.allclose(got, at_pixels(full, pixels), atol=1e-3, rtol=1e-3)


def test_rivals_score_the_same_poses_and_only_two_of_the_four_see_them() -> None:
    """specs/qrpose-evaluation.md section 2: CIR's or the Gaussian's label, with the pose or without."""
    network = lively(made(size=(64, 64), rivals=True))
    with torch.no_grad():
        trunk = network.trunk(torch.randn(1, 3, 64, 64))
        before = network.heads_everywhere(trunk)
        network.looks[-1].off.bias += 3.0  # other poses of the same features
        after = network.heads_everywhere(trunk)
    moved = {name: not torch.equal(before.rivals[name], after.rivals[name]) for name in before.rivals}
    assert moved == {"cir": False, "gauss_pqe": True, "gauss": False}
    assert not torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_inference_takes_the_peaks_of_the_score_it_is_told_to(head: str) -> None:
    options = {"size": (64, 64), "rivals": True, "head": head, "ensemble": False, "candidates": 256}
    own = lively(made(**options))
    for rival in own.rivals.values():
        nn.init.normal_(rival.score.weight)
    scores = {}
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        heads = own.heads_everywhere(own.trunk(images))
        for ranking in ("cir_pqe", "cir", "gauss_pqe", "gauss"):
            told = made(**options, ranked_by=ranking).eval()
            told.load_state_dict(own.state_dict())
            scores[ranking] = told(images)["scores"]
    highest = {name: torch.sigmoid(logits.max()) for name, logits in heads.rivals.items()}
    highest["cir_pqe"] = torch.sigmoid(heads.logits.max())
    for ranking, found in scores.items():
        assert float(found[0, 0]) == pytest.approx(float(highest[ranking]), abs=1e-3)
    assert len({round(float(found.sum()), 4) for found in scores.values()}) == 4


def test_a_ranking_that_is_not_there_is_refused() -> None:
    with pytest.raises(EdgeposeError, match="needs rivals=true"):
        build("qrpose_tiny", ranked_by="gauss")
    with pytest.raises(EdgeposeError, match="'gaus': Input should be 'cir_pqe'"):
        build("qrpose_tiny", rivals=True, ranked_by="gaus")


def test_each_look_starts_where_the_one_before_it_ended() -> None:
    """The first around the coarse pose, the second nearer around the first one's: as one look alone says."""
    once, twice = lively(made(size=(64, 64), reaches=(0.25,))), lively(made(size=(64, 64)))
    twice.load_state_dict(once.state_dict(), strict=False)
    asked: list[tuple[Tensor, float]] = []
    read = twice.read

    def recorded(joints: Tensor, here: Tensor, sample: Sampler, pose: Tensor, reach: float) -> Queries:
        asked.append((pose, reach))
        return read(joints, here, sample, pose, reach)

    twice.read = recorded  # type: ignore[method-assign]
    with torch.no_grad():
        trunk = once.trunk(torch.randn(1, 3, 64, 64))
        pixels = torch.arange(30)[None]
        one, two = once.heads_at(trunk, pixels), twice.heads_at(trunk, pixels)
    assert [reach for _, reach in asked] == [0.25, 0.07]
    assert torch.allclose(asked[0][0], one.coarse_offsets)
    assert torch.allclose(asked[1][0], one.offsets, atol=1e-5)
    assert (two.offsets - one.offsets).abs().max() > 0.01


def planted(network: QrPose, peaks: list[list[tuple[int, int, float]]], offset: float) -> dict[str, Tensor]:
    """The graph's outputs when its heads say: these peaks (x, y, logit), one offset everywhere."""
    width, height = network.config.map_size
    logits = torch.full((len(peaks), 1, height, width), -40.0)
    for image, found in enumerate(peaks):
        for x, y, logit in found:
            logits[image, 0, y, x] = logit

    def say(shape: torch.Size, values: Tensor) -> Heads:
        joints = network.config.joints
        offsets = torch.full((shape[0], 2 * joints, *shape[2:]), offset)
        return Heads(values, offsets, offsets, torch.zeros(shape[0], joints, *shape[2:]))

    def at(trunk: Trunk, pixels: Tensor, hints: Tensor | None = None) -> Heads:
        chosen = at_pixels(logits, pixels)
        return say(chosen.shape, chosen)

    def everywhere(trunk: Trunk) -> Heads:
        return say(logits.shape, logits)

    network.heads_at = at  # type: ignore[method-assign]
    network.heads_everywhere = everywhere  # type: ignore[method-assign]
    graph = deploy.sparse if network.config.head == "sparse" else deploy.dense
    return graph(network, Trunk(logits, logits, logits))


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_planted_people_come_back(head: str) -> None:
    """U10: positions, N slots, empty slots 0, two pictures, a map that is not square."""
    network = made(size=(128, 96), head=head)
    out = planted(network, [[(5, 7, 2.0), (20, 3, 1.0), (11, 15, -2.0)], [(31, 23, 0.0)]], offset=1.5)
    assert out["scores"].shape == (2, 20)
    # All planted joints are confident to one half, and 6.6, 4.6 and 7.4 pixels from the nearest edge; S is
    # below 0.2 for the third person alone: 0.119.
    shown = torch.sigmoid(torch.tensor([6.625, 4.625, 7.375]))
    assert torch.allclose(out["scores"][0, :3], torch.tensor([0.5, 0.5, 0.298]) / shown, atol=1e-3)
    assert torch.allclose(out["keypoints"][0, 0], torch.tensor([4 * 6.5, 4 * 8.5]).expand(17, 2))
    assert torch.allclose(out["keypoints"][0, 1], torch.tensor([4 * 21.5, 4 * 4.5]).expand(17, 2))
    assert torch.allclose(out["keypoints"][1, 0], torch.tensor([4 * 32.5, 4 * 24.5]).expand(17, 2))
    assert torch.equal(out["boxes"][..., :2], out["keypoints"].amin(2))
    assert (out["scores"][0, 3:] < 1e-6).all()
    network.config = replace(network.config, ensemble=False)
    out = planted(network, [[(5, 7, 2.0), (20, 3, 1.0)]], offset=1.5)
    assert torch.allclose(out["scores"][0, :2], torch.sigmoid(torch.tensor([2.0, 1.0])), atol=1e-3)


def test_a_joint_is_where_those_say_who_are_near_and_sure() -> None:
    """Three candidates of one person and one far away; the closed form of their weighted mean."""
    joints = torch.zeros(1, 3, 2, 4)
    joints[0, 0] = torch.tensor([[0.0, 1.0, 0.0, 900.0], [0.0, 0.0, 1.0, 0.0]])
    # All say the same of the other two joints, which make a pose 90 wide and high.
    joints[0, 1:] = torch.tensor([[90.0, 0.0], [0.0, 90.0]])[..., None]
    sure = torch.full((1, 3, 4), 0.5)
    sure[0, 0] = torch.tensor([0.2, 0.8, 0.8, 0.9])
    likely = torch.tensor([[0.9, 0.6, 0.1, 0.9]])
    alone = deploy.Found(joints[..., :1], sure[..., :1], likely[:, :1])
    found = deploy.agreed(alone, deploy.Found(joints, sure, likely))
    # 1 pixel of a reach of 6.3 weighs nearly as much as none.
    weights = sure[0, 0, :3].square() * likely[0, :3]
    assert torch.allclose(found.joints[0, 0, :, 0], weights[1:] / weights.sum(), atol=0.01)
    assert torch.allclose(
        found.confidence[0, 0, 0], (weights * sure[0, 0, :3]).sum() / weights.sum(), atol=0.01
    )
    assert torch.allclose(found.joints[0, 1:], joints[0, 1:, :, :1])
    deaf = deploy.agreed(alone, deploy.Found(joints[..., 3:], sure[..., 3:], torch.zeros(1, 1)))
    assert torch.equal(deaf.joints, joints[..., :1])  # who hears of nobody says what he saw


def test_joints_beyond_the_picture_cost_no_score() -> None:
    """They are not labelled, so no OKS counts them: the others' mean, by the closed form."""
    joints = torch.full((1, 17, 2, 1), 8.0)
    joints[:, 10:, 0] = 40.0  # a map of 16 x 16 pixels
    sure = torch.zeros(1, 17, 1)
    sure[:, :10] = 0.8
    shown = deploy.in_picture(joints, (16, 16))
    assert torch.allclose(shown[0, [0, 16], 0], torch.tensor([1.0, 0.0]), atol=1e-3)
    edge = torch.tensor([[[[-0.125], [8.0]]]])  # of the first pixel
    assert deploy.in_picture(edge, (16, 16)) == 0.5
    assert torch.allclose(deploy.expected_oks(torch.ones(1, 1), sure, shown), torch.tensor(0.8), atol=1e-3)
    nowhere = deploy.in_picture(joints + 900, (16, 16))
    found = deploy.expected_oks(torch.ones(1, 1), sure, nowhere)  # as labelled as they are sure: 0.47 of all
    assert torch.allclose(found, sure.mean() / 0.5)
    assert float(deploy.expected_oks(torch.ones(1, 1), torch.ones(1, 17, 1), nowhere)) == 1.0


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_wide_hills_leave_room_for_the_others(head: str) -> None:
    """More than 64 pixels of one person are likelier than the top of another, and both people are found."""

    def hill(x: int, y: int) -> float:
        wide = 5 - ((x - 20) ** 2 + (y - 20) ** 2) / 12
        small = 2 - 2 * ((x - 50) ** 2 + (y - 40) ** 2)
        return max(wide, small, -8.0)

    peaks = [(x, y, hill(x, y)) for x in range(64) for y in range(64)]
    assert sum(logit > 2 for _, _, logit in peaks) > 64
    out = planted(made(size=(256, 256), head=head, candidates=64), [peaks], 0.0)
    centres = out["keypoints"][0, :2, 0]
    found = {(round(float(x) / 4), round(float(y) / 4)) for x, y in centres}
    assert found == {(20, 20), (50, 40)}


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_an_empty_slot_is_all_zeros(head: str) -> None:
    """One person and a map that is one hill, so that everything else is suppressed."""
    network = made(size=(64, 64), head=head, candidates=25, slots=20)
    hill = [(x, y, 5.0 - abs(x - 7) - abs(y - 7)) for x in range(16) for y in range(16)]
    out = planted(network, [hill], 0.5)
    empty = out["scores"][0] == 0
    assert 10 < int(empty.sum()) < 20
    for name in OUTPUTS:
        assert not out[name][0, empty].any(), name


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_a_plateau_is_one_person(head: str) -> None:
    """U11: equal neighbours, as 8-bit scores have them; without the ramp each would be a person."""
    block = [(x, y, 1.0) for x in (9, 10, 11) for y in (5, 6)]
    network = made(size=(64, 64), head=head)
    assert int((planted(network, [block], 0.0)["scores"] > 0.01).sum()) == 1
    network.ramp.zero_()
    assert int((planted(network, [block], 0.0)["scores"] > 0.01).sum()) == len(block)


def test_neighbours_beyond_the_window_are_two_people() -> None:
    places = torch.tensor([[[4.0, 4.0], [6.0, 6.0], [7.0, 4.0]]])
    logits = torch.tensor([[3.0, 2.0, 1.5]])
    # The second is near the first; the third only near the second, which is itself suppressed.
    assert deploy.lacking(logits, places).tolist() == [[0.0, 1.0, 0.5]]
    assert deploy.lacking(logits.flip(1), places.flip(1)).tolist() == [[0.5, 1.0, 0.0]]


def test_both_graphs_find_the_same_people() -> None:
    """The sparse graph with all pixels as candidates is the dense graph but for the test of peaks."""
    sparse = lively(made(size=(64, 64), candidates=256, slots=5))
    dense = made(size=(64, 64), head="dense", candidates=256, slots=5).eval()
    dense.load_state_dict(sparse.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        a, b = sparse(images), dense(images)
    for name in OUTPUTS:
        assert torch.allclose(a[name], b[name], atol=2e-3), name


def test_training_normalises_as_the_camera_does() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    spec = Spec("qrpose", "qrpose_tiny", 64, 64)
    got = normalised(torch.from_numpy(image)[None], spec.mean, spec.std)
    assert np.abs(got.numpy() - normalise(image, spec)).max() < 1e-5


@cache
def exported(folder: Path, dynamo: bool) -> tuple[Path, QrPose]:
    onnx = pytest.importorskip("onnx")
    assert onnx
    network = lively(made())
    path = folder / f"{dynamo}.onnx"
    batch = torch.export.Dim("batch", min=1, max=16)
    shapes = {"dynamic_shapes": {"images": {0: batch}}} if dynamo else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn about their own future
        torch.onnx.export(
            network,
            (torch.randn(2, 3, 256, 256),),
            str(path),
            input_names=["images"],
            output_names=list(OUTPUTS),
            opset_version=18 if dynamo else 17,
            dynamo=dynamo,
            verbose=False,
            **({"dynamic_axes": {"images": {0: "batch"}}} if not dynamo else shapes),
        )
    return path, network


@pytest.fixture(scope="module", params=[True, False], ids=["dynamo", "torchscript"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QrPose]:
    return exported(tmp_path_factory.mktemp("graph"), request.param)


def test_the_graph_is_static(graph: tuple[Path, QrPose]) -> None:
    """U13."""
    import onnx

    model = onnx.load(str(graph[0]))
    used = Counter(node.op_type for node in model.graph.node)
    assert not set(used) - ALLOWED, set(used) - ALLOWED
    assert used["TopK"] == 3
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_runtime_says_what_torch_says(graph: tuple[Path, QrPose], count: int) -> None:
    """U12, at another batch than it was exported with."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(graph[0]), options, providers=["CPUExecutionProvider"])
    images = torch.randn(count, 3, 256, 256)
    found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"images": images.numpy()}), strict=True))
    network = graph[1]
    with torch.no_grad():
        expected = network(images)
        network.config = replace(network.config, ensemble=False)
        ranking = network(images)["scores"]
        network.config = replace(network.config, ensemble=True)
    apart = distinct(ranking.numpy())
    assert apart.mean() > 0.4
    tolerances = {"scores": 1e-4, "keypoints": 0.05, "boxes": 0.05, "keypoint_scores": 1e-4}
    for name, tolerance in tolerances.items():
        assert np.abs(found[name] - expected[name].numpy())[apart].max() < tolerance, name


def distinct(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(B, N) slots whose score no neighbour shares: equal ones may change places between two runtimes."""
    gaps = np.diff(scores, prepend=2.0, append=-1.0, axis=1)
    return np.asarray((np.minimum(-gaps[:, 1:], -gaps[:, :-1]) > 1e-5) | (scores == 0))


def test_every_model_builds_and_shows_its_contract() -> None:
    for name in (name for name in BUILDERS if name.startswith("qrpose")):
        network = build(name, size=(64, 64)).eval()
        with torch.no_grad():
            out = network(torch.randn(1, 3, 64, 64))
        shapes = [tuple(out[key].shape) for key in OUTPUTS]
        assert shapes == [(1, 20), (1, 20, 4), (1, 20, 17, 2), (1, 20, 17)]
        assert list(out) == list(OUTPUTS)


def test_unknown_names_and_options_name_the_nearest() -> None:
    with pytest.raises(EdgeposeError, match="unknown model 'qrpose_tyni'; did you mean 'qrpose_tiny'"):
        build("qrpose_tyni")
    with pytest.raises(EdgeposeError, match="unknown option 'haed' of qrpose_tiny; did you mean 'head'"):
        build("qrpose_tiny", haed="dense")


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_weights_of_a_torch_file_load(tmp_path: Path, wrapper: str | None) -> None:
    source, model = made(), made()
    state: object = source.state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pt")
    load_published(model, tmp_path / "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))


def test_weights_of_another_model_are_refused_with_the_first_keys(tmp_path: Path) -> None:
    state = made().state_dict()
    state["head.extra"] = state.pop("off1.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(EdgeposeError, match=r"off1\.bias is missing; head\.extra is unexpected"):
        load_published(made(), tmp_path / "w.pt")
    torch.save(made(widths=(8, 16, 16, 16, 16)).state_dict(), tmp_path / "w.pt")
    with pytest.raises(EdgeposeError, match=r"backbone.* is \(.*\), not \(.*\)"):
        load_published(made(), tmp_path / "w.pt")


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "foreign", "folder"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        path.write_text("model: qrpose_tiny\n")
    elif kind != "missing":
        if name.endswith("pt"):
            torch.save(made().state_dict(), path)
        else:
            from safetensors.torch import save_file

            save_file(made().state_dict(), path)
        path.write_bytes(path.read_bytes()[: 5000 if kind == "truncated" else 0])
    with pytest.raises(EdgeposeError, match=name):
        load_published(made(), path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", b"GIF89a", b"\x80\x02", b"PK\x03\x04"]), rest=st.binary(max_size=60))
def test_no_bytes_at_all_give_a_traceback(tmp_path: Path, start: bytes, rest: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(start + rest)
    with pytest.raises(EdgeposeError, match=r"w\.pt"):
        load_published(made(size=(64, 64)), tmp_path / "w.pt")


def test_a_weights_file_never_runs_code(tmp_path: Path) -> None:
    torch.save({"model": Trap()}, tmp_path / "w.pt")
    with pytest.raises(EdgeposeError, match=r"w\.pt"):
        load_published(made(), tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(EdgeposeError, match="no state dict"):
        load_published(made(), tmp_path / "list.pt")


def test_shipped_weights_fit_both_graphs_and_the_limit() -> None:
    path = shipped_weights("qrpose_tiny")
    assert path.stat().st_size <= 4_000_000
    for head in ("sparse", "dense"):
        load_published(made(head=head), path)
    with pytest.raises(EdgeposeError, match="no weights are shipped"):
        shipped_weights("qrpose_huge")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *(({"candidates": M}, f"20 slots of {M} candidates of 4096 map") for M in (-4, 0, 10, 4097)),
        ({"slots": 100}, "100 slots of 64 candidates"),
        ({"slots": 0}, "choose a slot or more"),
        *(({"size": size}, "sides of 64 or more that 32 divides") for size in ((0, 0), (240, 320), (64, 32))),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_made(
    options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(EdgeposeError, match=sentence):
        build("qrpose_tiny", **options)
