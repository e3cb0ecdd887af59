"""Families that look at crops twice: SHaRPose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgepose.compression.execution import INPUT
from edgepose.export.contract import Contract, Ports
from edgepose.runtime.agreement import LookDifference
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import CONTEXT, GRAPHS, QUALITY
from edgepose.training.models.sharpose.deploy import CoarseGraph, FineGraph, folded
from edgepose.training.models.sharpose.network import SharPose


def _described(spec: Spec, network: SharPose) -> Spec:
    config = network.config
    return replace(spec, resize="crop", refine_below=config.threshold, sharp_cells=config.selected)


def _modules(network: SharPose) -> Mapping[str, CoarseGraph | FineGraph]:
    return dict(zip(GRAPHS, (CoarseGraph(network), FineGraph(network)), strict=True))


TWO_STAGE = Contract(
    ports=dict(
        zip(
            GRAPHS,
            (
                Ports((INPUT,), ("coarse_heatmaps", QUALITY, *CONTEXT)),
                Ports((INPUT, *CONTEXT), ("heatmaps",)),
            ),
            strict=True,
        )
    ),
    modules=_modules,
    prepared=folded,
    described=_described,
    traced=LookDifference(heatmaps=1e-5, quality=1e-5, regions=0.0, context=1e-5),
)
