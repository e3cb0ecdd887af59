"""The bench against ViTPose-B: what is timed is what is said; the times themselves are no test's business."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from edgepose.export.vitpose_bench import Case, _crops, _look, bundle_of, table, vitpose
from edgepose.runtime.backend import Array
from edgepose.runtime.bench import Timing
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import CONTEXT

SPEC = Spec("sharpose", "x", 24, 32, graphs=("coarse", "fine"), resize="crop")


class Graph:
    """Either graph; counts its crops. The quality of crop i is the i-th that is told."""

    def __init__(self, quality: list[float]) -> None:
        self.quality, self.batches = quality, []

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        count = len(feeds["images"])
        self.batches.append(count)
        heatmaps = np.zeros((count, 17, 8, 6), np.float32)
        context = {name: np.zeros((count, 1), np.float32) for name in CONTEXT}
        quality = np.array(self.quality[:count], np.float32)
        return {"heatmaps": heatmaps, "coarse_heatmaps": heatmaps, "quality": quality, **context}


@pytest.mark.parametrize(("share", "again"), [(0.5, 2), (1.0, 4)])
def test_that_share_of_the_crops_is_looked_at_twice(share: float, again: int) -> None:
    coarse, fine = Graph([0.4, 0.1, 0.3, 0.2]), Graph([])
    look = _look([coarse, fine], SPEC, _crops(4, (24, 32)), share)  # type: ignore[list-item]
    fine.batches.clear()
    look()
    assert coarse.batches[-1] == 4
    assert fine.batches == [again]


def test_a_case_says_what_its_timings_say() -> None:
    first, second = Timing("rival", 100, 110, 1, 1, 1), Timing("ours", 480, 500, 4.8, 4.4, 5.2)
    case = Case.of("m", "a person of 8", (first, second), share=1 / 8)
    assert (case.against, case.ms, case.against_ms) == ("rival", 60, 100)
    assert (case.ratio, case.low, case.high) == pytest.approx((0.6, 0.55, 0.65))
    good, bad = (Case("m", "w", "a", 1, 1, 0.7, 0.7, 0.7, target) for target in (0.75, 0.65))
    console = Console(width=110, record=True)
    console.print(table([case, good, bad]))
    lines = console.export_text().splitlines()
    assert [mark for line in lines for mark in "✓✗" if mark in line] == ["✓", "✗"]


def test_what_is_neither_a_name_nor_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(EdgeposeError, match="no such bundle"):
        bundle_of("sharpose_huge", tmp_path)


def test_the_rival_is_vitpose_b() -> None:
    pytest.importorskip("transformers", reason="an extra of its own: pip install 'edgepose[bench]'")
    with torch.device("meta"):
        network = vitpose((192, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 89_994_513  # "90.0M" of its paper
    with torch.device("meta"), torch.no_grad():
        assert network(torch.zeros(2, 3, 256, 192)).shape == (2, 17, 64, 48)
