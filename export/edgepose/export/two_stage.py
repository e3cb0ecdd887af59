"""Families that look at crops twice: SHaRPose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgepose.compression.execution import INPUT, Outputs
from edgepose.compression.graph import Array
from edgepose.export.contract import Contract, Difference, Ports
from edgepose.runtime.oks import F64
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import CONTEXT, GRAPHS, ORDER, QUALITY
from edgepose.training.models.sharpose.deploy import CoarseGraph, FineGraph, folded
from edgepose.training.models.sharpose.network import SharPose

HEATMAPS = frozenset({"coarse_heatmaps", "heatmaps"})


@dataclass(frozen=True, slots=True)
class LookDifference(Difference):
    """The largest differences between what two results see of the same crops."""

    heatmaps: float  # whose hills are about 1 high; a share of the largest value where that is beyond 1
    quality: float
    regions: float  # share of the cells to be seen sharp that only one of the results names
    context: float  # what is handed to the second look, as a share of its largest value


def difference(expected: Outputs, actual: Outputs, cells: int) -> LookDifference:
    """Compare the outputs of one of the graphs, of which the second one was shown the same context.

    Of the order the first `cells` count, as a set: equal scores may be sorted either way.
    """
    found = dict.fromkeys(("heatmaps", "quality", "regions", "context"), 0.0)
    for name, wanted in expected.items():
        if name == ORDER:
            shared = shared_cells(wanted, actual[name], cells)
            kind, apart = "regions", 1 - float(shared.min(initial=1))
        elif name == QUALITY:
            kind, apart = "quality", _apart(wanted, actual[name])
        else:
            kind = "heatmaps" if name in HEATMAPS else "context"
            high = float(np.abs(wanted).max(initial=0))
            apart = _apart(wanted, actual[name]) / (max(high, 1) if name in HEATMAPS else high or 1)
        found[kind] = float(np.maximum(found[kind], apart))  # keeps not-a-number
    return LookDifference(**found)


def shared_cells(one: Array, other: Array, cells: int) -> F64:
    """(B,) the share of the first `cells` of an order (B, n0) that are among the first of the other, too."""
    same = one[:, :cells, None] == other[:, None, :cells]  # (B, k, k)
    return np.asarray(same.any(2).mean(1), np.float64)


def _apart(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(np.float64) - other).max(initial=0))


def _described(spec: Spec, network: SharPose) -> Spec:
    config = network.config
    return replace(spec, resize="crop", refine_below=config.threshold, sharp_cells=config.selected)


def _modules(network: SharPose) -> Mapping[str, CoarseGraph | FineGraph]:
    return dict(zip(GRAPHS, (CoarseGraph(network), FineGraph(network)), strict=True))


# Another machine may round the scores of two cells the other way; a fifth is one of the tiny model's five.
_INT8 = LookDifference(heatmaps=5e-2, quality=2e-2, regions=0.2, context=5e-2)
_VIEWS: Mapping[str, LookDifference] = {
    "fp32": LookDifference(heatmaps=1e-3, quality=1e-3, regions=0.0, context=1e-3),
    "fp16": LookDifference(heatmaps=2e-2, quality=1e-2, regions=0.2, context=2e-2),
    "int8.ort": _INT8,
    "int8.trt": _INT8,
    "int8.trt-typed": _INT8,
}

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
    difference=lambda expected, actual, spec: difference(expected, actual, spec.sharp_cells or 0),
    traced=LookDifference(heatmaps=1e-5, quality=1e-5, regions=0.0, context=1e-5),
    views=_VIEWS,
)
