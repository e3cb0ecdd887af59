"""As few float layers as it takes: blame says which, the network quantized anew says whether."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from standin_people import SPEC, network

from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates
from edgepose.compression.auto import Asked, Islands, float_islands
from edgepose.compression.graph import Graph, copy, set_constant
from edgepose.compression.groups import switches_of
from edgepose.compression.quantize import Quantized
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.spec import Spec

BAD = ("layer2.first.0", "kpt.0.0")


class Quantizer:
    """Quantizes in no time, by switches; what it makes has bad layers unless `mended` nodes are float."""

    def __init__(self, bad: tuple[str, ...], spoilt_below: int = 0) -> None:
        fp32, int8, _ = network()
        self._honest, self._spoilt_below = int8, spoilt_below
        model = copy(int8.model)
        for layer in bad:
            graph = Graph(model)
            dequantize = graph.producers[graph.named[layer].input[1]]
            scale = 8 * graph.value(dequantize.input[1])
            dequantize.input[1] = set_constant(model, f"corrupted_{layer}", scale)
        self._switches = switches_of({"pose": fp32}, {"pose": model}, (64, 64))["pose"]
        self.asked: list[list[str]] = []

    def __call__(self, keep: Mapping[str, str]) -> tuple[dict[str, Quantized], Spec]:
        floats = [group.name for group in self._switches.groups if set(group.nodes) <= keep.keys()]
        assert {node for g in self._switches.groups if g.name in floats for node in g.nodes} == keep.keys()
        self.asked.append(floats)
        spoilt = 0 < len(floats) < self._spoilt_below  # worse than the switches said
        model = self._switches.model([] if spoilt else floats)
        return {"pose": replace(self._honest, model=model)}, SPEC


@pytest.fixture
def run(tmp_path: Path):
    fp32 = tmp_path / "pose.fp32.onnx"
    fp32.write_bytes(network()[0].SerializeToString())

    def islands(quantizer: Quantizer, gates: Gates) -> Islands:
        return float_islands(
            Asked(Shown(network()[2]), gates), {"pose": fp32}, quantizer, tmp_path / "out.blame"
        )

    return islands


def test_nothing_stays_float_when_the_gates_hold(run) -> None:
    quantizer = Quantizer(())
    found = run(quantizer, Gates(max_ap_loss=0.5))
    assert (found.keep, found.point.floats, found.point.failures) == ({}, 0, ())
    assert quantizer.asked == [[]]


def test_bad_layers_stay_float_with_the_reason_in_words(run) -> None:
    quantizer = Quantizer(BAD)
    found = run(quantizer, Gates(max_ap_loss=0.4))
    assert set(BAD) <= found.keep.keys()
    assert found.point.floats == len(quantizer.asked[-1]) < 6
    assert not found.point.failures
    assert all(reason.startswith("blame: costs +") for reason in found.keep.values())
    assert len(quantizer.asked) == 2  # the walk is by switches


def test_what_is_quantized_anew_has_the_last_word(run) -> None:
    easy = run(Quantizer(BAD), Gates(max_ap_loss=0.4)).point.floats
    quantizer = Quantizer(BAD, spoilt_below=easy + 2)
    assert run(quantizer, Gates(max_ap_loss=0.4)).point.floats == easy + 2
    assert [len(floats) for floats in quantizer.asked] == [0, easy, easy + 1, easy + 2]


def test_gates_that_only_fp32_holds(run) -> None:
    with pytest.raises(GateFailed, match=r"with one of 12 layers in INT8 the gates still fail .*deploy FP32"):
        run(Quantizer((), spoilt_below=99), Gates(max_ap_loss=0.05))
