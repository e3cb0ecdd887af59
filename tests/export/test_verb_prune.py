"""`edgepose prune`, and that what it writes exports, quantizes and loads as any weights do."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from edgepose.calibration.calibration_set import make_calibration_set
from edgepose.calibration.dataset import open_dataset
from edgepose.compression.allocation import Times
from edgepose.compression.dependencies import groups_of
from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import load_onnx
from edgepose.compression.source_model import load_model
from edgepose.compression.sparse import sparse_nodes
from edgepose.compression.torch_quantize import load_quantized_torch
from edgepose.compression.verb_compress import compress
from edgepose.export import pruning
from edgepose.export.speed import Runnable, compared, runnable
from edgepose.export.verb_export import export
from edgepose.export.verb_prune import REPORT, prune
from edgepose.runtime.bench import Timing
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.training.checkpoint import save_tensors
from edgepose.training.loop import WEIGHTS
from edgepose.training.models import build
from edgepose.training.models.sparsity import keep, masks_of, sparse_layers

MODEL, DATA = "qrpose_tiny", "synthetic:count=4,seed=3,size=256"


def run(command: Any, *arguments: object) -> tuple[int, str]:
    """A verb's exit code and what it prints."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = guarded(lambda: command.main([str(a) for a in arguments], standalone_mode=False))
    return code, printed.getvalue()


def multiply_adds(model: nn.Module) -> dict[str, int]:
    """Of every convolution: outputs x inputs of a group x kernel x places, from the shapes that pass by."""
    counts: dict[str, int] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):

            def count(layer: nn.Module, _: Any, output: Tensor, name: str = name) -> None:
                counts[name] = counts.get(name, 0) + layer.weight.numel() * output[0, 0].numel()

            hooks.append(layer.register_forward_hook(count))
    width, height = model.config.size
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, height, width))
    for hook in hooks:
        hook.remove()
    return counts


def by_work(name: str, model: nn.Module) -> Any:
    """In place of traced graphs and a clock: a layer takes as long as it has multiply-adds."""
    counts = multiply_adds(model)
    total = sum(counts.values())
    times = Times({name: float(count) for name, count in counts.items()}, {}, float(total))
    return SimpleNamespace(multiply_adds=total, times=lambda: times)


def in_turns(networks: Mapping[str, Any], rounds: int) -> list[Timing]:
    """The times of `by_work`."""
    first = networks["before"].multiply_adds
    ratios = {name: network.multiply_adds / first for name, network in networks.items()}
    return [Timing(name, ratio, ratio, ratio, ratio, ratio) for name, ratio in ratios.items()]


@pytest.fixture(scope="module")
def steady() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "runnable", by_work)
        patch.setattr(pruning, "compared", in_turns)
        yield


def test_groups_timed_in_one_network_have_no_layer_in_common(folder: Path) -> None:
    model, _ = load_model(MODEL, None)
    groups = groups_of(model, "qrpose", (256, 256))
    sets = pruning._apart(groups)
    assert sorted(index for members in sets for index in members) == list(range(len(groups)))
    assert len(sets) < len(groups) / 3
    for members in sets:
        layers = [layer for index in members for layer in {part.layer for part in groups[index].parts}]
        assert len(layers) == len(set(layers))


def test_channels_that_bring_no_time_stay(
    steady: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The joints' kernels take as long with half of their channels, the others half as long for half."""
    dense = by_work(MODEL, load_model(MODEL, None)[0]).times().layers

    def stubborn(name: str, model: nn.Module) -> Any:
        network = by_work(name, model)
        layers = {
            layer: dense[layer] if layer.startswith(("kpt", "looks")) else seconds
            for layer, seconds in network.times().layers.items()
        }
        times = Times(layers, {}, sum(layers.values()))
        return SimpleNamespace(multiply_adds=int(times.total), times=lambda: times)

    monkeypatch.setattr(pruning, "runnable", stubborn)
    out = tmp_path / "out"
    words = (MODEL, "--data", DATA, "--importance", "magnitude", "--speed", 1.4, "--out", out)
    assert run(prune, *words)[0] == 0
    report = json.loads((out / REPORT).read_text())
    left = {name: after for name, (before, after) in report["units"].items() if after < before}
    assert left
    assert not any(name.startswith("looks") for name in left)
    assert report["units"]["kpt.1.0"] == [8, 8]


def test_a_network_much_faster_than_asked_for_is_not_the_last_try(
    steady: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is measured twice as fast as its multiply-adds say, the others as fast as they say."""
    tries = []

    def lucky_once(networks: Mapping[str, Any], rounds: int) -> list[Timing]:
        before, after = in_turns(networks, rounds)
        tries.append(after.ratio)
        return [before, replace(after, ratio=after.ratio / (2 if len(tries) == 1 else 1))]

    monkeypatch.setattr(pruning, "compared", lucky_once)
    out = tmp_path / "out"
    words = (MODEL, "--data", DATA, "--importance", "magnitude", "--speed", 1.5, "--out", out)
    assert run(prune, *words)[0] == 0
    report = json.loads((out / REPORT).read_text())
    assert len(tries) > 1
    assert 1.5 <= 1 / report["timing"]["ratio"] < 2
    assert report["multiply_adds"][1] / report["multiply_adds"][0] == pytest.approx(report["timing"]["ratio"])


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Runnable]:
    """A network on small pictures, really traced."""
    model = build(MODEL, size=(64, 64))
    return model, runnable(MODEL, model)


@pytest.fixture(scope="module")
def folder(steady: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prune") / "slim"
    words = ("--data", DATA, "--batches", 1, "--speed", 1.5, "--out", out, "--json")
    code, printed = run(prune, MODEL, *words)
    assert code == 0
    assert json.loads(printed) == {"out": str(out)} | {
        key: value for key, value in json.loads((out / REPORT).read_text()).items() if key != "pruned_from"
    }
    return out


def test_the_report_counts_what_is_left(folder: Path) -> None:
    report = json.loads((folder / REPORT).read_text())
    dense, _ = load_model(MODEL, None)
    slim, origin = load_model(MODEL, folder / WEIGHTS)
    assert report["parameters"] == [sum(p.numel() for p in net.parameters()) for net in (dense, slim)]
    assert report["multiply_adds"] == [sum(multiply_adds(net).values()) for net in (dense, slim)]
    assert report["multiply_adds"][0] >= 1.5 * report["multiply_adds"][1]
    widths = {name: list(width) for name, width in origin["widths"].items()}
    assert widths == report["widths"]
    for name, (before, after) in report["units"].items():
        assert (after < before) == (
            name in widths and widths[name][0] < dense.get_submodule(name).out_channels
        )
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert file.metadata()["edgepose.pruned_from"] == report["pruned_from"]


def test_multiply_adds_are_those_of_the_closed_form(small: tuple[nn.Module, Runnable]) -> None:
    model, network = small
    assert network.multiply_adds == sum(multiply_adds(model).values())


def test_layers_are_told_apart_by_their_names(small: tuple[nn.Module, Runnable]) -> None:
    model, network = small
    times = network.times()
    names = {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    assert times.layers.keys() == names - {"heatmap"}  # which training alone reads
    assert all(seconds > 0 for seconds in times.layers.values())
    assert times.read["looks.0.mix.0"] > 0
    assert sum(times.layers.values()) + sum(times.read.values()) <= times.total


def test_networks_are_timed_in_turns(small: tuple[nn.Module, Runnable]) -> None:
    timings = compared({"one": small[1], "same": small[1]}, 3)
    assert [timing.name for timing in timings] == ["one", "same"]
    assert all(timing.p50_ms > 0 for timing in timings)


@pytest.fixture(scope="module")
def sparse(folder: Path) -> Path:
    """The pruned weights with 2:4 zeros."""
    model, origin = load_model(MODEL, folder / WEIGHTS)
    keep(model, masks_of(model))
    path = folder.parent / "sparse.safetensors"
    save_tensors(path, model.state_dict(), {"edgepose.widths": json.dumps(origin["widths"])})
    return path


def test_a_pruned_sparse_network_goes_through_the_whole_chain(sparse: Path, tmp_path: Path) -> None:
    """Exported (which compares with torch), quantized, bundled: the manifest says widths and pattern."""
    assert run(export, MODEL, "--weights", sparse, "--out", tmp_path / "fp32")[0] == 0
    fp32 = Bundle.open(tmp_path / "fp32")
    model, origin = load_model(MODEL, sparse)
    assert fp32.provenance["sparsity"] == "2:4"
    assert fp32.provenance["widths"] == {name: list(width) for name, width in origin["widths"].items()}
    graph = load_onnx(fp32.graph("pose", "fp32"))
    images = np.random.default_rng(0).standard_normal((1, 3, 256, 256)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images))
    (found,) = outputs_of(graph, [{"images": images}])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=2e-3)

    pictures, apart = open_dataset("synthetic:count=16,seed=5"), open_dataset("synthetic:count=2,seed=9")
    calibration = make_calibration_set(pictures, apart, 16, tmp_path / "calibration").folder
    words = ("--calibration", calibration, "--weights", sparse, "--out", tmp_path / "compressed")
    assert run(compress, fp32.path, *words)[0] == 0
    quantized = load_quantized_torch(tmp_path / "compressed" / "torch", model, torch.from_numpy(images))
    assert quantized(torch.from_numpy(images))["keypoints"].shape == (1, 20, 17, 2)
    compressed = ("--compressed", tmp_path / "compressed", "--out", tmp_path / "bundle")
    assert run(export, MODEL, *compressed)[0] == 0
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.provenance["sparsity"] == "2:4"
    assert bundle.provenance["widths"] == fp32.provenance["widths"]
    layers = sparse_layers(model).keys() - {"heatmap"}
    for view in ("fp32", "fp16", "int8.trt", "int8.trt-typed", "int8.ort"):
        follows = sparse_nodes(load_onnx(bundle.graph("pose", view)))
        assert {name for name in layers if follows[name]} == layers, view
    code, printed = run(export, "--lint", bundle.graph("pose", "int8.trt"), "--json")
    assert code == 0
    assert layers <= set(json.loads(printed)["sparse_2_4"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("qrpose_tinny",), "did you mean 'qrpose_tiny'?"),
        (("qrpose_edge",), "no weights are shipped for it"),
        ((MODEL, "--weights", "none.safetensors"), "no such file of weights"),
        ((MODEL, "--weights", "none.safetensors", "--out", "."), ".: exists already"),
    ],
)
def test_errors_are_one_sentence(
    words: tuple[object, ...], sentence: str, steady: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ("--data", DATA, "--importance", "magnitude", "--out", tmp_path / "out")
    assert run(prune, *usual, *words)[0] == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_speed_that_no_channel_brings_fails_the_gate(
    steady: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (MODEL, "--data", DATA, "--importance", "magnitude", "--speed", 50, "--out", tmp_path / "out")
    assert run(prune, *words)[0] == 1
    assert "channels, of which a share of 0.25 stays in each group; ask for less" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_speed_that_is_predicted_but_not_measured_fails_the_gate(
    steady: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pruning, "compared", lambda *_: [Timing("", 1, 1, 0.99, 1, 1)] * 2)
    words = (MODEL, "--data", DATA, "--importance", "magnitude", "--speed", 1.05, "--out", tmp_path / "out")
    assert run(prune, *words)[0] == 1
    assert "1.01 times as fast, not 1.05, in 6 tries" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
