"""Bundles: checked before they get their name, whole or not at all, and honest about one flipped byte."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import copy, load_onnx
from edgepose.compression.quantize import Quantized
from edgepose.export import golden
from edgepose.export.assemble import LINTED, Parts, assemble
from edgepose.export.card import VIEWS, card
from edgepose.export.metadata import read_spec
from edgepose.export.views import cpu_view
from edgepose.runtime.agreement import AGREEMENTS, largest, pose_difference
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.golden import limit, read
from edgepose.runtime.preprocess import normalise
from edgepose.runtime.spec import Spec

FULL = {f"pose.{view}.onnx" for view in ("fp32", "fp16", "int8.ort", "int8.trt", "int8.trt-typed")}
PROVENANCE = {
    "weights": "w.safetensors",
    "weights_sha256": "0" * 64,
    "versions": {"edgepose": "0"},
    "command": "edgepose export",
    "simplified": "kept",
    "calibration_sha256": "1" * 64,
    "calibration_images": 12,
    "settings": {},
}


@pytest.fixture(scope="module")
def parts(spec: Spec, traced: ModelProto, quantized: Quantized) -> Parts:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    return Parts(spec, {"pose": traced}, {"pose": quantized.model}, frames, PROVENANCE, {"images": []})


@pytest.fixture(scope="module")
def bundle(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return assemble(parts, tmp_path_factory.mktemp("bundle") / "b")


def test_the_scales_are_those_of_the_pairs_by_tensors_of_the_fp32_graph(bundle: Bundle) -> None:
    """Read again from the published file that TensorRT 8 gets: what its Q/DQ say is a part of them."""
    scales = bundle.read("pose.scales.json", "scales")
    fp32 = load_onnx(bundle.folder / "pose.fp32.onnx")
    known = {name for node in fp32.graph.node for name in node.output} | {v.name for v in fp32.graph.input}
    assert len(scales) > 3
    assert scales.keys() <= known
    model = load_onnx(bundle.folder / "pose.int8.trt.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    activations = [node for node in pairs if node.input[0] in known]
    assert len(activations) > 3
    for node in activations:
        assert scales[node.input[0]] == constants[node.input[1]].item()


def test_a_full_bundle_has_every_view_and_record(bundle: Bundle, spec: Spec) -> None:
    records = {"golden.npz", "calibration.json", "pose.scales.json", "README.md"}
    assert set(bundle.files) == FULL | records
    told = [line for line in (bundle.folder / "README.md").read_text().splitlines() if " MB): " in line]
    assert len(told) >= len(FULL)
    assert all(line.partition(" MB): ")[2] for line in told)  # each file says what it is for
    assert bundle.spec == spec
    for name in FULL:
        model = load_onnx(bundle.folder / name)
        assert read_spec(model, name) == spec
        onnx.checker.check_model(model, full_check=True)
    text = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in FULL)


def test_the_card_says_what_was_calibrated_and_what_was_learnt(spec: Spec) -> None:
    calibrated = card(spec, PROVENANCE, {})
    learnt = card(spec, {**PROVENANCE, "settings": {"qat_steps": 300}}, {})
    assert "- INT8 scales from 12 pictures, manifest" in calibrated
    assert "training" not in calibrated.partition("## Where it came from")[2]
    assert "- INT8 scales at first from 12 pictures, manifest" in learnt
    assert "- INT8 weights and scales from 300 steps of training" in learnt


def test_a_fp32_bundle_has_no_int8(parts: Parts, tmp_path: Path) -> None:
    made = assemble(replace(parts, quantized={}, manifest=None), tmp_path / "b.edgepose")
    assert set(made.files) == {"pose.fp32.onnx", "golden.npz", "README.md"}
    assert (tmp_path / "b.edgepose").is_file()


def test_tables_name_the_same_views(bundle: Bundle) -> None:
    views = {name.removeprefix("pose.").removesuffix(".onnx") for name in FULL}
    assert views == VIEWS.keys()
    assert all(agreement.views.keys() == views for agreement in AGREEMENTS.values())
    assert views - {"int8.ort"} == LINTED.keys()


def test_one_flipped_byte_in_any_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    for name in bundle.files:
        folder = tmp_path / name
        shutil.copytree(bundle.folder, folder)
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(EdgeposeError, match="damaged"):
            Bundle.open(folder)


def test_golden_vectors_repeat_here_and_catch_other_weights(bundle: Bundle) -> None:
    recorded = read(bundle)
    assert set(recorded.expected) == {name.removesuffix(".onnx") for name in FULL}
    for view in recorded.expected:
        model = load_onnx(bundle.folder / f"{view}.onnx")
        apart = golden.deviation(recorded, view, model, bundle.spec)
        assert (apart.score, apart.keypoint_px) == (0, 0)
        tensor = next(t for t in model.graph.initializer if "off2.bias" in t.name)
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values + np.asarray(1, values.dtype), tensor.name))
        apart = golden.deviation(recorded, view, model, bundle.spec)
        assert not apart.within(limit(view, bundle.spec))


def test_the_typed_views_answers_are_those_of_its_nodes(bundle: Bundle, parts: Parts) -> None:
    """Recorded without ONNX Runtime's optimiser, which spoils half-typed biases."""
    recorded = read(bundle).expected
    pairs = zip(recorded["pose.int8.trt"], recorded["pose.int8.trt-typed"], strict=True)
    assert largest([pose_difference(a, b, 0.1) for a, b in pairs]).score < 0.01
    view = load_onnx(bundle.folder / "pose.int8.trt-typed.onnx")
    images = [{"images": normalise(frame, parts.spec)} for frame in parts.frames]
    as_written = outputs_of(view, images, optimised=False)
    for mine, plain in zip(recorded["pose.int8.trt-typed"], as_written, strict=True):
        np.testing.assert_array_equal(mine["keypoints"], plain["keypoints"])


def test_no_golden_vectors_no_answer(parts: Parts, tmp_path: Path) -> None:
    from edgepose.runtime.bundle import publish

    (tmp_path / "c").mkdir()
    empty = publish(tmp_path / "c", tmp_path / "b", parts.spec, PROVENANCE)
    with pytest.raises(EdgeposeError, match=r"golden\.npz"):
        read(empty)


def asymmetric(model: ModelProto) -> ModelProto:
    model = copy(model)
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    zero = next(t for t in model.graph.initializer if t.name == node.input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(5, np.int8), zero.name))
    return model


@pytest.mark.parametrize(("fault", "rule"), [(cpu_view, "Q01"), (asymmetric, "Q03")])
def test_uint8_or_asymmetric_pairs_fail_the_export(
    parts: Parts, tmp_path: Path, fault: Any, rule: str
) -> None:
    broken = replace(parts, quantized={"pose": fault(parts.quantized["pose"])})
    with pytest.raises(GateFailed, match=rule):
        assemble(broken, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_answers_that_are_not_numbers_fail_the_export(parts: Parts, tmp_path: Path) -> None:
    sick = copy(parts.fp32["pose"])
    tensor = next(t for t in sick.graph.initializer if t.name == "off2.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name))
    with pytest.raises(EdgeposeError, match="not finite"):
        assemble(replace(parts, fp32={"pose": sick}, quantized={}), tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("where", ["edgepose.export.assemble.card", "edgepose.runtime.bundle.shutil.copy2"])
def test_interrupted_or_full_leaves_nothing_and_keeps_the_old(
    parts: Parts,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    where: str,
) -> None:
    small = replace(parts, quantized={}, manifest=None)
    old = tmp_path / "b"
    shutil.copytree(bundle.folder, old)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(type(error)):
        assemble(small, old)
    monkeypatch.undo()
    assert Bundle.open(old).files == bundle.files
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_is_no_bundle_is_not_overwritten(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(EdgeposeError, match="not a bundle"):
        assemble(replace(parts, quantized={}), tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_records_are_json(bundle: Bundle) -> None:
    index = json.loads((bundle.folder / "bundle.json").read_text())
    assert index["provenance"] == PROVENANCE
