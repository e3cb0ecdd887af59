"""As few float layers as it takes: blame says which, the network quantized anew says whether."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from standin_people import SPEC, network

from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates
from edgepose.compression import verb_compress
from edgepose.compression.artefact import Source
from edgepose.compression.auto import Asked, Islands, float_islands
from edgepose.compression.graph import Graph, copy, set_constant
from edgepose.compression.groups import switches_of
from edgepose.compression.quantize import Quantized
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.spec import Spec

BAD = ("layer2.first.0", "kpt.0.0")


def corrupted(bad: tuple[str, ...]) -> ModelProto:
    """The INT8 network, the weights of whose `bad` layers are eight times as large as they should be."""
    model = copy(network()[1].model)
    for layer in bad:
        graph = Graph(model)
        dequantize = graph.producers[graph.named[layer].input[1]]
        scale = 8 * graph.value(dequantize.input[1])
        dequantize.input[1] = set_constant(model, f"corrupted_{layer}", scale)
    return model


class Quantizer:
    """Quantizes in no time, by switches; what it makes has bad layers unless these are float."""

    def __init__(self, bad: tuple[str, ...], spoilt_below: int = 0) -> None:
        fp32, self._honest, _ = network()
        self._spoilt_below = spoilt_below
        self._switches = switches_of({"pose": fp32}, {"pose": corrupted(bad)}, (64, 64))["pose"]
        self.asked: list[list[str]] = []

    def __call__(self, by_graph: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, Quantized], Spec]:
        keep = by_graph.get("pose", {})
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
    assert set(BAD) <= found.keep["pose"].keys()
    assert found.point.floats == len(quantizer.asked[-1]) < 6
    assert not found.point.failures
    assert all(reason.startswith("blame: costs +") for reason in found.keep["pose"].values())
    assert len(quantizer.asked) == 2  # the walk is by switches


def test_what_is_quantized_anew_has_the_last_word(run) -> None:
    easy = run(Quantizer(BAD), Gates(max_ap_loss=0.4)).point.floats
    quantizer = Quantizer(BAD, spoilt_below=easy + 2)
    assert run(quantizer, Gates(max_ap_loss=0.4)).point.floats == easy + 2
    assert [len(floats) for floats in quantizer.asked] == [0, easy, easy + 1, easy + 2]


def test_gates_that_only_fp32_holds(run) -> None:
    with pytest.raises(GateFailed, match=r"with one of 11 layers in INT8 the gates still fail .*deploy FP32"):
        run(Quantizer((), spoilt_below=99), Gates(max_ap_loss=0.05))


def test_a_layer_of_one_graph_frees_no_namesake_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the same network; the people are those of the first, in which layers are bad."""
    fp32, honest, pictures = network()
    spec, models, paths = replace(SPEC, graphs=("coarse", "fine")), {}, {}
    for name in spec.graphs:
        models[name], paths[name] = copy(fp32), tmp_path / f"{name}.onnx"
        models[name].graph.name = name
        onnx.save(models[name], paths[name])
    int8 = {"coarse": corrupted(BAD), "fine": honest.model}
    switches = switches_of(models, int8, (64, 64))

    def by_switches(model: ModelProto, feeds: object, family: str, keep: Mapping[str, str]) -> Quantized:
        each = switches[model.graph.name]
        floats = [group.name for group in each.groups if set(group.nodes) <= keep.keys()]
        return replace(honest, model=each.model(floats), plan=dict(keep))

    monkeypatch.setattr(verb_compress, "quantize", by_switches)
    source = Source(spec, {}, paths, {}, "", [])
    frames = [{"images": np.zeros((1, 3, 64, 64), np.float32)}]
    asked = Asked(Shown(pictures), Gates(max_ap_loss=0.4))
    found = verb_compress._quantized(source, frames, {"stem.*": "asked for"}, asked, tmp_path / "blame")
    assert set(BAD) <= found.quantized["coarse"].plan.keys()
    assert found.quantized["fine"].plan == {"stem.*": "asked for"}
    kept = [group for group in switches["coarse"].groups if set(group.nodes) <= found.keep["coarse"].keys()]
    whole = sum(each.macs for each in switches.values())
    int8_macs = sum(group.macs for each in switches.values() for group in each.groups if group not in kept)
    assert found.point.macs == int8_macs / whole
