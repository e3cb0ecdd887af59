"""SHaRPose against the outputs, losses and gradients of the authors' code (specs/sharpose.md section 10)."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgepose.training.models import build
from edgepose.training.models.sharpose import PROFILES
from edgepose.training.models.sharpose.losses import Loss, oks, quality_weight
from edgepose.training.models.sharpose.network import SharPose
from edgepose.training.models.sharpose.targets import Targets

GOLDEN = Path(__file__).parents[3] / "shared/golden/sharpose"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the SHaRPose goldens are not beside the project"
)
COMPARED = ("tiny_128x96", "small_256x192", "base_384x288")  # those whose arrays lie there
# Largest differences to the authors' code, of sections 4 and 10.
HEATMAPS, QUALITY, SCORES, LOSS, GRADIENT = 1e-5, 1e-6, 1e-7, 1e-6, 1e-5


def named_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the goldens' README derives from a name."""
    values = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    if key.endswith(".bias"):
        values = 0.01 * values
    elif key.endswith(".weight"):
        values = 1 + 0.1 * values if len(shape) == 1 else values / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.5 * values
    return torch.from_numpy(values.astype(np.float32))


def golden_keys(name: str) -> list[tuple[str, tuple[int, ...]]]:
    lines = (GOLDEN / f"keys_{name}.txt").read_text().splitlines()
    return [(key, tuple(int(side) for side in shape.split("x"))) for key, shape, _ in map(str.split, lines)]


@cache
def golden_info(name: str) -> dict[str, Any]:
    return dict(json.loads((GOLDEN / "info.json").read_text())[name])


@cache
def golden_arrays(name: str) -> dict[str, npt.NDArray[np.float32]]:
    with np.load(GOLDEN / f"golden_{name}.npz") as arrays:
        return dict(arrays)


def golden_network(name: str) -> SharPose:
    with torch.device("meta"):
        network = build(f"sharpose_{name}", reference=True)
    assert isinstance(network, SharPose)
    network.load_state_dict({key: named_weight(key, shape) for key, shape in golden_keys(name)}, assign=True)
    return network.eval()


def golden_crops(name: str) -> Tensor:
    info = golden_info(name)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(info["input_tag"].encode())))
    height, width = info["img_sizes"][1]
    parts = generator.standard_normal((2, 3, height // 32, width // 32))
    noise = generator.standard_normal((2, 3, height, width))
    return torch.from_numpy((np.kron(parts, np.ones((1, 1, 32, 32))) + 0.5 * noise).astype(np.float32))


def apart(got: Tensor, expected: npt.NDArray[np.float32]) -> float:
    return float((got - torch.from_numpy(expected)).abs().max())


@needs_golden
@pytest.mark.parametrize("name", [profile.removeprefix("sharpose_") for profile in PROFILES])
def test_weights_have_the_authors_names_shapes_and_order(name: str) -> None:
    with torch.device("meta"):
        state = build(f"sharpose_{name}").state_dict()
    assert [(key, tuple(value.shape)) for key, value in state.items()] == golden_keys(name)


@needs_golden
@pytest.mark.parametrize("name", COMPARED)
def test_both_stages_say_what_the_authors_say(name: str) -> None:
    network, images, expected = golden_network(name), golden_crops(name), golden_arrays(name)
    backbone, info = network.backbone, golden_info(name)
    assert (network.config.selected, network.config.threshold) == (info["k"], info["qp_threshold"])
    with torch.no_grad():
        coarse = backbone.coarse(images)
        tokens = backbone.fine(images, coarse.order, coarse.reuse, coarse.embedded)
        mixed = network(images, threshold=float(expected["mixed_threshold"]))
        fine = network.keypoint_head(tokens)
    assert apart(mixed["coarse_heatmaps"], expected["coarse_heatmaps"]) < HEATMAPS
    assert apart(fine, expected["fine_heatmaps"]) < HEATMAPS
    assert apart(coarse.tokens, expected["coarse_tokens"]) < HEATMAPS
    assert apart(tokens, expected["fine_tokens"]) < HEATMAPS
    assert apart(coarse.quality, expected["quality"]) < QUALITY
    assert apart(coarse.scores, expected["region_score"]) < SCORES
    order = np.concatenate([expected["selected_index"], expected["unselected_index"]], 1)
    assert np.array_equal(mixed["region_order"].numpy(), order)
    mask = expected["mixed_mask"]
    assert sorted(mask.tolist()) == [False, True]
    assert np.array_equal(mixed["refined"].numpy(), mask)
    final = np.where(mask[:, None, None, None], expected["fine_heatmaps"], expected["coarse_heatmaps"])
    assert apart(mixed["heatmaps"], final) < HEATMAPS


@needs_golden
@pytest.mark.parametrize("name", [*COMPARED[:2], pytest.param(COMPARED[2], marks=pytest.mark.slow)])
def test_losses_and_gradients_are_the_authors(name: str) -> None:
    """With everybody refined by the profile's own threshold."""
    network, arrays, info = golden_network(name), golden_arrays(name), golden_info(name)
    boxes = 200 * torch.tensor([[0.75, 1.0], [1.5, 2.0]])
    weights = torch.from_numpy(arrays["target_weight"][:, :, 0])
    targets = Targets(torch.from_numpy(arrays["target"]), weights, boxes)
    outputs = network(golden_crops(name))
    terms = Loss(reference=True)(outputs, targets, quality_weight(2, 1))
    similarity = oks(outputs["coarse_heatmaps"].detach(), targets, reference=True)
    found, expected = {key: term.item() for key, term in terms.items()}, info["losses"]
    assert similarity.mean().item() == pytest.approx(expected["oks_0"], rel=LOSS)
    assert found["coarse"] == pytest.approx(expected["heatmap_loss_0"], rel=LOSS)
    assert found["fine"] == pytest.approx(expected["heatmap_loss_1"], rel=LOSS)
    assert found["quality"] == pytest.approx(expected["qp_loss_0"], abs=1e-8)  # QUALITY, squared and weighted
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(expected["loss"], rel=LOSS)
    total.backward()
    parameters = dict(network.named_parameters())
    for key, norm in info["grad_l2"].items():
        gradient = parameters[key].grad
        assert gradient is not None
        assert gradient.double().norm().item() == pytest.approx(norm, rel=GRADIENT), key


@needs_golden
@pytest.mark.parametrize("size", ["256x192", "384x288"])
def test_training_oks_is_the_authors(size: str) -> None:
    arrays = golden_arrays("pipeline")
    predicted = torch.from_numpy(arrays[f"oks_in_seed_{size}"])
    rows, columns = predicted.shape[2:]
    stride = (4 * np.array([columns, rows]) - 1) / (np.array([columns, rows]) - 1)
    places = np.rint(arrays[f"decode_joints_{size}"] / stride).astype(int)
    truth = torch.zeros_like(predicted)
    mask = arrays[f"oks_mask_{size}"]
    for person, joint in np.argwhere(mask):
        x, y = np.clip(places[person, joint], 0, (columns - 1, rows - 1))
        truth[person, joint, y, x] = 1
    boxes = torch.from_numpy(200 * arrays[f"scale_{size}"][:2])
    targets = Targets(truth, torch.from_numpy(mask.astype(np.float32)), boxes)
    assert apart(oks(predicted, targets, reference=True), arrays[f"oks_{size}"]) < QUALITY
    assert apart(oks(predicted, targets), arrays[f"oks_{size}"]) > 100 * QUALITY
