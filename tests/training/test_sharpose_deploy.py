"""The two graphs together are the network, whoever is refined, and the camera's estimator joins them."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import pytest
import torch
from torch import nn

from edgepose.runtime.backend import Array
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import Regions, prepare
from edgepose.runtime.topdown.heatmaps import decode
from edgepose.runtime.topdown.twostage import MOST, TwoStage
from edgepose.training.models.sharpose import build
from edgepose.training.models.sharpose.deploy import CoarseGraph, FineGraph

SPEC = Spec("sharpose", "sharpose_tiny_128x96", 96, 128, graphs=("coarse", "fine"), resize="crop")


class Torch:
    """A graph behind the backend's protocol, which counts its crops."""

    def __init__(self, graph: nn.Module) -> None:
        self.graph, self.batches = graph, []

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(feeds["images"]))
        with torch.no_grad():
            outputs = self.graph(**{name: torch.from_numpy(np.asarray(v)) for name, v in feeds.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def close(self) -> None: ...

    def __enter__(self) -> Torch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    network = build("sharpose_tiny_128x96").eval()
    for parameter in network.parameters():  # tokens and position tables start at 0: nobody would differ
        nn.init.normal_(parameter, std=0.1)
    return network


def two_stage(network: nn.Module, limit: float) -> tuple[TwoStage, Torch, Torch]:
    coarse, fine = Torch(CoarseGraph(network)), Torch(FineGraph(network))
    return TwoStage(coarse, fine, SPEC, limit), coarse, fine


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 3, 128, 96)).astype(np.float32)


def middle(network: nn.Module, images: np.ndarray) -> float:
    """A limit between the qualities of the crops."""
    with torch.no_grad():
        quality = network(torch.from_numpy(images), threshold=-9.0)["quality"].numpy()
    low, high = np.sort(quality)[len(quality) // 2 - 1 :][:2]
    assert high > low
    return float((low + high) / 2)


@pytest.mark.parametrize("who", ["nobody", "half", "everybody"])
def test_both_graphs_are_the_network(network: nn.Module, who: str) -> None:
    images = crops(MOST + 4)
    limit = {"nobody": -9.0, "half": middle(network, images), "everybody": 9.0}[who]
    estimator, coarse, fine = two_stage(network, limit)
    seen = estimator.look(images)
    with torch.no_grad():
        expected = network(torch.from_numpy(images), threshold=limit)
    assert (seen.refined == expected["refined"].numpy()).all()
    np.testing.assert_allclose(seen.quality, expected["quality"].numpy(), atol=1e-6)
    np.testing.assert_allclose(seen.heatmaps, expected["heatmaps"].numpy(), atol=1e-5)
    assert coarse.batches == [MOST, 4]
    assert sum(fine.batches) == {"nobody": 0, "half": MOST // 2 + 2, "everybody": MOST + 4}[who]


def test_poses_lie_in_the_frame(network: nn.Module) -> None:
    frame = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)
    boxes = np.array([[20.0, 30, 60, 120], [400, 0, 50, 50], [200, 60, 80, 90]])  # the second one is outside
    poses = two_stage(network, 9.0)[0](frame, boxes, np.array([0.5, 0.9, 0.4]))
    regions = Regions.around(boxes[[0, 2]], (96, 128))
    with torch.no_grad():
        heatmaps = network(torch.from_numpy(prepare(frame, regions, SPEC)), threshold=9.0)["heatmaps"].numpy()
    expected = regions.to_frame(decode(heatmaps)[0], (24, 32))
    assert len(poses) == 2
    for pose in poses.keypoints:
        assert min(np.abs(pose - other).max() for other in expected) < 0.05


def test_nobody(network: nn.Module) -> None:
    estimator, coarse, fine = two_stage(network, 0.5)
    assert len(estimator(np.zeros((40, 30, 3), np.uint8), np.zeros((0, 4)), np.zeros(0))) == 0
    assert not coarse.batches
    assert not fine.batches
