"""The chain for a network of two graphs: export, compress on a detector's crops, export again, verify."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from packaging.version import Version
from safetensors.torch import save_file

from edgepose.calibration.boxes import open_detector, read_detections
from edgepose.calibration.calibration_set import load_calibration_set, make_calibration_set
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.ledger import Ledger
from edgepose.compression import verb_compress
from edgepose.compression.artefact import open_compressed
from edgepose.compression.execution import INPUT, Feeds, feeds_of, outputs_of
from edgepose.compression.graph import DEQUANTIZE, Array, Graph, count_ops, load_onnx
from edgepose.compression.groups import switches_of
from edgepose.compression.quantize import Quantized, quantize
from edgepose.compression.shown import MOST, people_shown
from edgepose.compression.verb_compress import compress
from edgepose.export import golden
from edgepose.export.cpu_kernels import as_calibrated
from edgepose.export.verb_export import export
from edgepose.export.verb_verify import verify
from edgepose.runtime.agreement import LookDifference
from edgepose.runtime.backend_onnxruntime import DISABLED, session_options
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.cli import guarded
from edgepose.runtime.golden import apart, limit, read
from edgepose.runtime.preprocess import normalise
from edgepose.runtime.spec import Spec
from edgepose.training.models import WEIGHTS, build

MODEL = "sharpose_tiny_128x96"
# Four in each of the blocks, the reuse block's two and the head's two: all of them INT8.
LINEAR = {"coarse": 21, "fine": 19}
FLOAT = {"coarse": 3, "fine": 0}  # the quality's


class Chain(NamedTuple):
    """Where the chain's results lie."""

    weights: Path
    calibration: Path
    detector: Path
    fp32: Path
    compressed: Path
    full: Path
    calibrated: list[list[Feeds]]  # what each graph was calibrated on


def run(command: Any, *arguments: object) -> int:
    """A verb's exit code, as the console script gives it."""
    torch.set_num_threads(1)
    return guarded(lambda: command.main([str(a) for a in arguments], standalone_mode=False))


def run_json(command: Any, *arguments: object) -> Any:
    """What a verb that must succeed prints with --json."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(command, *arguments, "--json") == 0
    return json.loads(printed.getvalue())


def weights_file(folder: Path) -> Path:
    """The shipped weights; random ones of the same spread until there are any."""
    shipped = WEIGHTS / f"{MODEL}.safetensors"
    if shipped.is_file():
        return shipped
    torch.manual_seed(2)
    state = build(MODEL).state_dict()
    for name, value in state.items():
        noise = torch.randn(value.shape)
        if name.endswith(".bias"):
            value.copy_(0.01 * noise)
        elif name.endswith(".weight"):
            value.copy_(1 + 0.1 * noise if value.ndim == 1 else noise / value[0].numel() ** 0.5)
        else:
            value.copy_(0.5 * noise)
    state["backbone.quality_predictor.mlp.6.bias"].fill_(1.0)  # qualities about the limit of 0.99
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "random.safetensors")
    return folder / "random.safetensors"


def detector_bundle(folder: Path) -> Path:
    """A single-stage network that finds the same two people in every picture, and doubts a third."""
    corners = np.array([[[40, 30], [120, 230]], [[150, 60], [230, 200]], [[0, 0], [99, 99]]], np.float32)
    answers = {
        "scores": np.array([[0.9, 0.6, 0.1]], np.float32),
        "keypoints": corners[None, :, [0, 1] * 8 + [0]],  # (1, 3, 17, 2)
        "keypoint_scores": np.ones((1, 3, 17), np.float32),
    }
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in answers.items()
    ]
    images = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["batch", 3, 256, 256])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in answers]
    graph = onnx.helper.make_graph(nodes, "pose", [images], ends)
    content = folder / "content"
    content.mkdir()
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, content / "pose.fp32.onnx")
    return publish(content, folder / "detector", Spec("qrpose", "qrpose_tiny", 256, 256), {}).path


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("sharpose")
    weights, calibrated = weights_file(folder), []
    data, apart = open_dataset("synthetic:count=16,seed=5"), open_dataset("synthetic:count=2,seed=9")
    calibration = make_calibration_set(data, apart, 16, folder / "set").folder
    paths = {name: folder / name for name in ("fp32", "compressed", "full")}
    detector = detector_bundle(folder)

    def spying(model: Any, feeds: Iterable[Feeds], family: str, keep: Mapping[str, str]) -> Quantized:
        calibrated.append([dict(feed) for feed in feeds])
        return quantize(model, calibrated[-1], family, keep)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(verb_compress, "quantize", spying)
        assert run(export, MODEL, "--weights", weights, "--out", paths["fp32"]) == 0
        arguments = ("--calibration", calibration, "--detector", detector)
        assert (
            run(compress, paths["fp32"], "--weights", weights, *arguments, "--out", paths["compressed"]) == 0
        )
        assert run(export, MODEL, "--compressed", paths["compressed"], "--out", paths["full"]) == 0
    return Chain(weights, calibration, detector, **paths, calibrated=calibrated)


def test_the_bundle_has_every_view_of_both_graphs_and_repeats_itself(chain: Chain) -> None:
    bundle = Bundle.open(chain.full)
    views = ("fp32", "fp16", "int8.ort", "int8.trt", "int8.trt-typed")
    graphs = {name for name in bundle.files if name.endswith(".onnx")}
    assert graphs == {f"{graph}.{view}.onnx" for graph in ("coarse", "fine") for view in views}
    recorded = read(bundle)
    for view in recorded.expected:
        model = load_onnx(bundle.folder / f"{view}.onnx")
        moved = golden.deviation(recorded, view, model, bundle.spec)
        assert moved.within(type(moved)(0, 0, 0, 0)), view
    near = LookDifference(heatmaps=0.05, quality=0.02, regions=0.2, context=0.05)
    same = LookDifference(heatmaps=1e-4, quality=1e-4, regions=0.0, context=1e-4)
    for graph in ("coarse", "fine"):
        fp32, fp16, int8, *rewritten = (recorded.expected[f"{graph}.{view}"] for view in views)
        assert apart(fp32, fp16, bundle.spec).within(limit("coarse.fp16", bundle.spec))
        assert apart(fp32, int8, bundle.spec).within(near)
        assert not apart(fp32, int8, bundle.spec).within(same)
        for other in rewritten:
            assert apart(int8, other, bundle.spec).within(near)
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in card for name in graphs)
    assert "sees the first 5 cells" in card
    assert "32 people whom `detector` finds in 16 pictures" in card


def test_golden_vectors_catch_other_weights(chain: Chain) -> None:
    bundle = Bundle.open(chain.full)
    recorded = read(bundle)
    for view, name in (("coarse.fp32", "quality_predictor.mlp.6.bias"), ("fine.fp32", "heatmap_mlp.4.bias")):
        model = load_onnx(bundle.folder / f"{view}.onnx")
        tensor = next(t for t in model.graph.initializer if t.name.endswith(name))
        shifted = onnx.numpy_helper.to_array(tensor) + np.float32(0.05)
        tensor.CopyFrom(onnx.numpy_helper.from_array(shifted, tensor.name))
        assert not golden.deviation(recorded, view, model, bundle.spec).within(limit(view, bundle.spec))


def test_spec_and_records(chain: Chain) -> None:
    fp32, full = Bundle.open(chain.fp32), Bundle.open(chain.full)
    config = build(MODEL).config
    assert isinstance(full.spec.refine_below_int8, float)
    for spec in (fp32.spec, full.spec):
        assert (spec.graphs, spec.resize) == (("coarse", "fine"), "crop")
        assert (spec.refine_below, spec.sharp_cells) == (config.threshold, config.selected)
    assert fp32.spec.refine_below_int8 is None
    crops = full.provenance["calibration_crops"]
    assert crops == len(chain.calibrated[0])
    assert full.provenance["calibration_boxes"] == chain.detector.name
    assert open_compressed(chain.compressed).frames().shape == (4, 128, 96, 3)


def test_linear_layers_are_int8_and_nothing_else(chain: Chain) -> None:
    found = open_compressed(chain.compressed)
    for graph in ("coarse", "fine"):
        index = Graph(found.quantized(graph))
        layers = [node for node in index.nodes if node.op_type in ("MatMul", "Gemm", "Conv")]
        int8 = {
            node.name
            for node in layers
            if {index.producers[name].op_type for name in node.input[:2] if name in index.producers}
            == {DEQUANTIZE}
        }
        assert len(int8) == LINEAR[graph]
        assert all(
            name.split(".")[1] in ("patch_embed", "blocks", "reuse_block", "heatmap_mlp") for name in int8
        )
        readers = {
            reader.name
            for node in index.nodes
            if node.op_type == DEQUANTIZE
            for reader in index.consumers[node.output[0]]
        }
        assert readers == int8
        weighted = [node for node in layers if node.input[1] in index.constants]
        assert len(weighted) == FLOAT[graph]


def test_the_layers_of_both_graphs_can_be_switched(chain: Chain) -> None:
    """SmoothQuant and corrected biases included: all off is FP32, none off the INT8 file."""
    bundle = Bundle.open(chain.full)
    fp32, int8 = (
        {graph: load_onnx(bundle.graph(graph, view)) for graph in bundle.spec.graphs}
        for view in ("fp32", "int8.ort")
    )
    int8 = {graph: as_calibrated(model) for graph, model in int8.items()}  # as `verify --blame` does
    switches = switches_of(fp32, int8, (bundle.spec.width, bundle.spec.height))
    known: dict[str, Array] = dict(chain.calibrated[0][0])
    for graph, each in switches.items():
        assert len([group for group in each.groups if group.macs]) == len(each.groups) == LINEAR[graph]
        assert all(group.name.startswith(f"{graph}/") for group in each.groups)
        names = [group.name for group in each.groups]
        assert each.model(()) == int8[graph]
        feeds = [feeds_of(fp32[graph], known)]
        found, wanted = (outputs_of(model, feeds)[0] for model in (each.model(names), fp32[graph]))
        for name, values in wanted.items():
            if values.dtype == np.float32:  # the order of cells turns where two are equal but for rounding
                np.testing.assert_allclose(found[name], values, atol=2e-5, err_msg=f"{graph} {name}")
        known |= wanted


@pytest.mark.parametrize("graph", ["coarse", "fine"])
def test_onnx_runtime_runs_the_linear_layers_in_int8(chain: Chain, graph: str, tmp_path: Path) -> None:
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    path = Bundle.open(chain.full).graph(graph, "int8.ort")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED)
    kernels = count_ops(onnx.load(tmp_path / "optimised.onnx"))
    assert kernels["MatMulIntegerToFloat"] == LINEAR[graph]
    assert kernels[DEQUANTIZE] == 0


def test_the_fine_graph_is_calibrated_on_what_the_quantized_coarse_one_gives(chain: Chain) -> None:
    coarse, fine = chain.calibrated
    model = open_compressed(chain.compressed).quantized("coarse")
    given = outputs_of(model, coarse)
    floats = outputs_of(load_onnx(chain.fp32 / "coarse.fp32.onnx"), coarse)
    for shown, mine, other, also in zip(fine, given, floats, coarse, strict=True):
        assert shown.keys() == {INPUT, "region_order", "reuse_features", "coarse_embedding"}
        np.testing.assert_array_equal(shown[INPUT], also[INPUT])
        np.testing.assert_array_equal(shown["reuse_features"], mine["reuse_features"])
        assert np.abs(shown["reuse_features"] - other["reuse_features"]).max() > 1e-3


def test_int8_looks_again_at_as_many_of_the_calibration_crops(chain: Chain) -> None:
    spec, coarse = Bundle.open(chain.full).spec, chain.calibrated[0]
    counts = []
    for precision, model in (
        ("fp32", load_onnx(chain.fp32 / "coarse.fp32.onnx")),
        ("int8", open_compressed(chain.compressed).quantized("coarse")),
    ):
        quality = np.concatenate([one["quality"] for one in outputs_of(model, coarse)])
        counts.append(int((quality < spec.limit(precision)).sum()))
    assert counts[0] == counts[1]
    assert counts[0] > 0


def test_crops_are_those_of_the_detectors_boxes(chain: Chain) -> None:
    pictures, spec = load_calibration_set(chain.calibration), Bundle.open(chain.fp32).spec
    with open_detector(chain.detector) as finder:
        found = finder.find(pictures.samples())
    assert len(chain.calibrated[0]) == sum(len(one.boxes) for one in found) == 2 * len(pictures) < MOST
    detections = [
        {"file_name": entry.file, "category_id": 1, "bbox": box.tolist(), "score": float(score)}
        for entry, one in zip(pictures.manifest.images, found, strict=True)
        for box, score in zip(*one, strict=True)
    ]
    path = chain.full.parent / "detections.json"
    path.write_text(json.dumps(detections))
    crops = people_shown(pictures, spec, read_detections(path))
    for crop, feed in zip(crops, chain.calibrated[0], strict=True):
        np.testing.assert_array_equal(normalise(crop, spec), feed[INPUT])


FEW = ("--data", "synthetic:count=6,seed=7")


def test_verify_fills_the_ledger(chain: Chain, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(chain.full, tmp_path / "bundle"))
    gates = ("--max-ap-loss", 100, "--max-drift", 1000, "--max-duplicates", 100)
    loose = ("--min-region-overlap", 50, "--max-refined-shift", 60)
    printed = run_json(verify, bundle, "--weights", chain.weights, *FEW, *gates, *loose)
    assert Bundle.open(bundle).read("ledger.json", "a ledger") == printed
    ledger = Ledger.from_dict(printed, "stdout")
    assert [row.stage for row in ledger.rows] == ["torch FP32", "ONNX FP32 (CPU)", "ONNX INT8 (CPU)"]
    first, onnx_fp32, int8 = (row.looks for row in ledger.rows)
    assert first is not None
    assert onnx_fp32 is not None
    assert int8 is not None
    assert first.people == sum(len(open_dataset(FEW[1]).people(i)) for i in range(6))
    assert (first.overlap, onnx_fp32.overlap, onnx_fp32.refined) == (None, 1, first.refined)
    assert 0.5 < int8.overlap <= 1
    assert ledger.rows[1].drift.p95_px < 0.01
    assert ledger.data == {"evaluation": open_dataset(FEW[1]).source, "boxes": "truth"}
    sizes = {path.name: path.stat().st_size for path in bundle.iterdir()}
    assert ledger.rows[2].size_bytes == sizes["coarse.int8.ort.onnx"] + sizes["fine.int8.ort.onnx"]


def test_verify_holds_one_bundle_against_another(chain: Chain) -> None:
    loose = ("--max-ap-loss", 100, "--max-drift", 1000, "--max-duplicates", 100, "--max-refined-shift", 60)
    before = {path.name: path.read_bytes() for path in chain.full.iterdir()}
    found = run_json(verify, chain.full, "--against", chain.fp32, *FEW, *loose, "--min-region-overlap", 50)
    assert {path.name: path.read_bytes() for path in chain.full.iterdir()} == before  # no ledger in it
    first, same, int8 = Ledger.from_dict(found, "stdout").rows
    names = [f"{chain.fp32.name}: ONNX FP32 (CPU)", "ONNX FP32 (CPU)", "ONNX INT8 (CPU)"]
    assert [row.stage for row in (first, same, int8)] == names
    assert (first.difference, same.difference, same.drift.p95_px) == (None, (0, 0), 0)
    assert 0.5 < int8.looks.overlap <= same.looks.overlap == 1


def test_verify_takes_boxes_from_a_network_and_fails_by_its_gates(chain: Chain, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(chain.full, tmp_path / "bundle"))
    command = (bundle, "--weights", chain.weights, *FEW, "--boxes", chain.detector, "--max-drift", 1000)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(verify, *command, "--min-region-overlap", 100.1) == 1
    assert "regions %" in printed.getvalue()
    ledger = Ledger.from_dict(Bundle.open(bundle).read("ledger.json", "a ledger"), "bundle")
    assert ledger.data["boxes"] == chain.detector.name
    assert any("of the regions seen sharp" in failure for failure in ledger.verdict())


def test_bad_input_is_one_sentence(chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('[{"image_id": 999, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]')
    unsure = tmp_path / "unsure.json"
    unsure.write_text('[{"image_id": 3, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.01}]')
    out = tmp_path / "out"
    base = (chain.fp32, "--weights", chain.weights, "--calibration", chain.calibration, "--out", out)
    seen = (chain.detector, "--calibration", chain.calibration, "--out", out)
    judged = (chain.full, "--weights", chain.weights, *FEW)
    cases: list[tuple[Any, tuple[object, ...], str]] = [
        (compress, base, "name who finds people, --detector BUNDLE or --boxes FILE"),
        (compress, (*base, "--detector", chain.detector, "--boxes", other), "not both"),
        (compress, (*base, "--detector", chain.fp32), "cannot find people"),
        (compress, (*base, "--detector", tmp_path / "none"), "no such bundle"),
        (compress, (*base, "--boxes", tmp_path / "none.json"), "no such file"),
        (compress, (*base, "--boxes", other), "about other pictures"),
        (compress, (*base, "--boxes", unsure), "finds nobody in any of the 16 pictures"),
        (compress, (*seen, "--boxes", other), "is shown whole pictures"),
        (verify, (*judged, "--boxes", other), "about other pictures"),
        (verify, (*judged, "--boxes", chain.fp32), "cannot find people"),
        (verify, (*judged, "--boxes", tmp_path / "none.json"), "no such file"),
        (verify, (*judged, "--compressed", chain.compressed), "leave out --compressed"),
        (verify, (chain.detector, *FEW, "--boxes", "truth"), "leave out --boxes"),
        (verify, (chain.fp32, *FEW, "--against", chain.detector), "their own kind and size only"),
        (verify, (chain.detector, *FEW, "--against", chain.fp32), "their own kind and size only"),
    ]
    for command, arguments, said in cases:
        capfd.readouterr()
        assert run(command, *arguments) == 2, arguments
        captured = capfd.readouterr()
        assert said in captured.err, (arguments, captured.err)
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert not out.exists()


@pytest.mark.skipif(
    Version(ort.__version__) < Version("1.31"),
    reason="TopK of nobody kills the process before ONNX Runtime 1.31 (the runtime never asks for it)",
)
@pytest.mark.parametrize("view", ["fp32", "int8.ort"])
def test_nobody_in_nobody_out(chain: Chain, view: str) -> None:
    known: dict[str, Array] = {INPUT: np.zeros((0, 3, 128, 96), np.float32)}
    for graph in ("coarse", "fine"):
        model = load_onnx(Bundle.open(chain.full).graph(graph, view))
        known |= outputs_of(model, [feeds_of(model, known)])[0]
    assert known["heatmaps"].shape == (0, 17, 32, 24)
    assert all(len(value) == 0 for value in known.values())
