"""Accuracy of a network that looks twice, in the labels' boxes: of each look, and of both by the quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgepose.calibration.dataset import Dataset
from edgepose.calibration.oks import oks_matrix
from edgepose.calibration.sample import Person
from edgepose.calibration.score import Score, evaluate
from edgepose.runtime.backend import Array
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.progress import track
from edgepose.runtime.skeleton import Skeleton
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import F64, Regions, prepare
from edgepose.runtime.topdown.score import each_once, poses
from edgepose.runtime.topdown.twostage import TwoStage
from edgepose.training.evaluation import MIN_HEIGHT_PX
from edgepose.training.models.sharpose.deploy import CoarseGraph, FineGraph
from edgepose.training.models.sharpose.network import SharPose
from edgepose.training.topdown_data import croppable

NOBODY, EVERYBODY = -np.inf, np.inf  # limits of the quality below which people are looked at again


class TorchGraph:
    """A network's graph where a backend is asked for."""

    def __init__(self, graph: nn.Module) -> None:
        self._graph = graph.eval()

    @torch.no_grad()
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name."""
        outputs = self._graph(**{name: torch.from_numpy(np.asarray(value)) for name, value in feeds.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def close(self) -> None: ...

    def __enter__(self) -> TorchGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def two_stage(model: SharPose, spec: Spec, limit: float) -> TwoStage:
    """The camera's estimator on the torch network."""
    return TwoStage(TorchGraph(CoarseGraph(model)), TorchGraph(FineGraph(model)), spec, limit)


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """What both looks see of the P people of a picture who have a box, in one order."""

    truth: tuple[Person, ...]  # all of the picture
    people: tuple[Person, ...]  # (P,) those with a box
    regions: Regions
    quality: F32  # (P,) of the coarse pose, as predicted
    coarse: Poses
    fine: Poses

    def at(self, limit: float) -> Poses:
        """What the camera's estimator says with that limit."""
        chosen = np.where(self.quality < limit, len(self.people), 0) + np.arange(len(self.people))
        pairs = zip(*(_parts(both) for both in (self.coarse, self.fine)), strict=True)
        found = Poses(*(np.concatenate(pair)[chosen] for pair in pairs))
        return each_once(found, self.regions)

    def similarity(self, found: Poses, skeleton: Skeleton) -> F64:
        """(P,) OKS of each person's own pose."""
        return np.asarray(oks_matrix(found.keypoints, self.people, skeleton.sigma_array()).diagonal())


def _parts(found: Poses) -> tuple[npt.NDArray[np.float32], ...]:
    return found.keypoints, found.keypoint_scores, found.scores, found.boxes


def looks_at(model: SharPose, dataset: Dataset, spec: Spec) -> list[Looks]:
    """Both looks at all labelled people of a data set, in their own boxes with a score of 1."""
    first, second = (two_stage(model, spec, limit) for limit in (NOBODY, EVERYBODY))
    found = []
    for index in track(range(len(dataset)), "evaluating"):
        sample = dataset[index]
        with_boxes = croppable(sample.people, dataset.size(index))
        boxes = np.array([box for box, _ in with_boxes], np.float64).reshape(-1, 4)
        regions = Regions.around(boxes, (spec.width, spec.height))
        crops, sure = prepare(sample.image, regions, spec), np.ones(len(boxes))
        coarse, fine = first.look(crops), second.look(crops)
        found.append(
            Looks(
                truth=sample.people,
                people=tuple(person for _, person in with_boxes),
                regions=regions,
                quality=coarse.quality,
                coarse=poses(coarse.heatmaps, regions, sure),
                fine=poses(fine.heatmaps, regions, sure),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Operating:
    """One place on the dial between speed and accuracy."""

    limit: float  # of the quality below which people are looked at again
    refined: float  # share of the people with a box
    score: Score


def operating(
    looks: Sequence[Looks], limit: float, skeleton: Skeleton, min_height_px: float = MIN_HEIGHT_PX
) -> Operating:
    """Accuracy and the share of people refined at a limit."""
    quality = np.concatenate([one.quality for one in looks])
    score = evaluate([one.truth for one in looks], [one.at(limit) for one in looks], skeleton, min_height_px)
    return Operating(limit, float((quality < limit).mean()), score)


def curve(looks: Sequence[Looks], shares: Iterable[float], skeleton: Skeleton) -> list[Operating]:
    """The dial at limits that refine these shares of the people."""
    quality = np.sort(np.concatenate([one.quality for one in looks]))
    inside = np.append(quality, EVERYBODY)
    return [operating(looks, float(inside[round(share * len(quality))]), skeleton) for share in shares]


def score_two_stage(model: SharPose, dataset: Dataset, spec: Spec) -> dict[str, Any]:
    """JSON-able: the score at the spec's limit, beside those of each look alone.

    People lower than 48 px neither count nor cost, but for `ap_all`.
    """
    looks, skeleton = looks_at(model, dataset, spec), dataset.skeleton
    limit = spec.limit("fp32")
    chosen = operating(looks, limit, skeleton)
    quality = np.concatenate([one.quality for one in looks])
    similar = np.concatenate([one.similarity(one.coarse, skeleton) for one in looks])
    return {
        **chosen.score.to_dict(),
        "refine_below": limit,
        "refined": chosen.refined,
        "ap_all": operating(looks, limit, skeleton, 0.0).score.ap,
        "ap_coarse": operating(looks, NOBODY, skeleton).score.ap,
        "ap_fine": operating(looks, EVERYBODY, skeleton).score.ap,
        "quality_correlation": correlation(quality, similar),
    }


def correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float | None:
    """Pearson's, of (P,) values each; None where there is none, as of one person."""
    spread = np.ptp(np.stack([a, b]), axis=1)
    if not (np.isfinite(spread) & (spread > 0)).all():
        return None
    return float(np.corrcoef(a, b)[0, 1])
