"""INT8 by one scale for each tensor: caches, calibrators, the DLA, and where none of it is possible."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import helper, numpy_helper
from standin_tensorrt.behaviour import unpack
from standin_tensorrt.calibration import NUMBERS
from standin_tensorrt.onnx_rules import Graph

from edgepose.compression.graph import copy
from edgepose.export.scales import activation_scales
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.golden import read
from edgepose.runtime.trt.build import Settings
from edgepose.runtime.trt.cache import PLAN
from edgepose.runtime.trt.engines import Engines, Options
from edgepose.runtime.trt.implicit import cache_text, release_number, scales_of, source_of

OLD = tuple(NUMBERS)


def made(bundle: Bundle, root: Path, wanted: str = "scales", **choices: Any) -> Engines:
    graph = bundle.spec.graphs[0]
    return Engines(bundle, graph, Options(root=root, implicit=source_of(bundle, graph, wanted), **choices))


def plan_of(root: Path) -> tuple[dict[str, Any], Graph]:
    (plan,) = root.rglob(PLAN)
    head, data = unpack(plan.read_bytes())  # type: ignore[misc]
    return head, Graph(data)


def test_a_cache_has_the_documented_lines() -> None:
    """By hand: float32 1.0 is 3f800000, 0.0078125 (2^-7) is 3c000000, most significant byte first."""
    assert cache_text({"images": 0.0078125, "a: b": 1.0}, "8.6.1") == (
        "TRT-8601-EntropyCalibration2\nimages: 3c000000\na: b: 3f800000\n"
    )
    assert cache_text({}, "10.3.0.26").startswith("TRT-100300-EntropyCalibration2\n")


def test_scales_are_of_known_tensors_and_the_widest_counts(graphs) -> None:
    """A tensor quantized twice has one scale; one that only the quantized graph has, none."""
    fp32, quantized = (copy(model) for model in graphs)
    assert activation_scales(quantized, fp32) == pytest.approx({"images": 0.03, "flat": 0.1})
    wider = numpy_helper.from_array(np.array(0.5, np.float32), "wider")
    quantized.graph.initializer.append(wider)
    for tensor in ("flat", "images", "stranger"):
        name = f"{tensor}_again"
        quantized.graph.node.append(helper.make_node("QuantizeLinear", [tensor, "wider", "zero"], [name]))
    assert activation_scales(quantized, fp32) == pytest.approx({"images": 0.5, "flat": 0.5})


@pytest.mark.parametrize("release", OLD)
def test_the_release_is_written_as_its_header_counts(release: str, install) -> None:
    install(release)
    assert release_number(sys.modules["tensorrt"].__version__) == NUMBERS[release]


@pytest.mark.parametrize("version", ["11.0.0", "11.4.0.106", "9.0.1", "10.3", "new"])
def test_other_releases_read_no_cache(version: str) -> None:
    with pytest.raises(EdgeposeError, match=r"reads no calibration cache|names three numbers"):
        release_number(version)


@pytest.mark.parametrize("release", OLD)
def test_the_bundles_scales_make_an_int8_engine_without_pairs_in_the_file(
    release: str, bundle, install, tmp_path
) -> None:
    install(release)
    backend, steps = made(bundle, tmp_path).exactly("int8")
    assert backend is not None
    backend.close()
    assert [(step.view, step.typing, step.problem) for step in steps] == [("fp32", "weak", "")]
    head, graph = plan_of(tmp_path)
    assert head["precision"] == "int8"
    steps_found = {
        node.input[0]: graph.constant(node.input[1]).item()
        for node in graph.nodes
        if node.op_type == "QuantizeLinear"
    }
    expected = {name: float(np.float32(scale)) for name, scale in scales_of(bundle, "pose").items()}
    assert steps_found == expected  # the stand-in read them out of the hex digits


@pytest.mark.parametrize("batches", [(1, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("library", ["pycuda", "cuda-python"])
def test_the_calibrator_is_shown_the_golden_pictures(
    library: str, batches, bundle, install, tmp_path
) -> None:
    gpu = install("10.3")
    gpu.integrated = False
    backend, steps = made(bundle, tmp_path, "golden", cuda=library, settings=Settings(batches)).exactly(
        "int8"
    )
    assert backend is not None, steps
    backend.close()
    assert (gpu.blocks, gpu.pinned, gpu.has_context()) == ({}, {}, False)
    _, graph = plan_of(tmp_path)
    found = {
        n.input[0]: graph.constant(n.input[1]).item() for n in graph.nodes if n.op_type == "QuantizeLinear"
    }
    # The Conv's output over the golden pictures, by ONNX Runtime on its own.
    assert found["relu"] == pytest.approx(largest(bundle, "relu") / 127, rel=1e-5)


def largest(bundle: Bundle, tensor: str) -> float:
    import onnx
    import onnxruntime

    model = onnx.load(bundle.graph("pose", "fp32"))
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    known = read(bundle).known(bundle.spec)
    return max(float(np.abs(session.run([tensor], {"images": one["images"]})[0]).max()) for one in known)


def test_pictures_of_a_folder_calibrate_and_are_part_of_the_key(bundle, install, tmp_path) -> None:
    install("8.6")
    folder = tmp_path / "set" / "images"
    folder.mkdir(parents=True)
    for index, frame in enumerate(read(bundle).frames):
        cv2.imwrite(str(folder / f"{index}.png"), frame)
    first = made(bundle, tmp_path / "engines", str(tmp_path / "set"))
    backend, steps = first.exactly("int8")
    assert backend is not None, steps
    backend.close()
    first.keep_default("int8", {})
    best, again = Engines(bundle, "pose", Options(root=tmp_path / "engines", build=False)).remembered()
    backend, _ = again.exactly(best)  # found without the pictures
    assert backend is not None
    backend.close()
    _, again = Engines(bundle, "pose", Options(root=tmp_path / "engines", rebuild=True)).remembered()
    assert "calibrated on pictures; build it again" in again.exactly("int8")[1][0].problem
    cv2.imwrite(str(folder / "more.png"), np.zeros((48, 64, 3), np.uint8))
    assert made(bundle, tmp_path, str(tmp_path / "set")).settings != first.settings
    (folder / "new.jpg").write_bytes(b"no picture")
    with pytest.raises(EdgeposeError, match=r"new\.jpg: not a picture that can be read"):
        made(bundle, tmp_path / "engines", str(tmp_path / "set")).exactly("int8")


def test_scales_are_found_again_without_being_asked_for(bundle, install, tmp_path) -> None:
    install("10.3")
    made(bundle, tmp_path).keep_default("int8", {})
    best, again = Engines(bundle, "pose", Options(root=tmp_path)).remembered()
    backend, steps = again.exactly(best)
    assert backend is not None
    backend.close()
    assert steps[0].view == "fp32"


def without_scales(bundle: Bundle, folder: Path, content: str | None = None) -> Bundle:
    (folder / "content").mkdir()
    for name in bundle.files:
        (folder / "content" / name).write_bytes((bundle.folder / name).read_bytes())
    (folder / "content" / "pose.scales.json").unlink()
    if content is not None:
        (folder / "content" / "pose.scales.json").write_text(content)
    return publish(folder / "content", folder / "other", bundle.spec, {})


@pytest.mark.parametrize(
    "content", [None, "{}", "[1]", '{"images": 0.0}', '{"images": "x"}', '{"images": 1e999}']
)
def test_a_bundle_without_good_scales_says_so(content: str | None, bundle, tmp_path) -> None:
    other = without_scales(bundle, tmp_path, content)
    sentence = r"has no pose\.scales\.json; export it again" if content is None else "is damaged"
    with pytest.raises(EdgeposeError, match=sentence):
        source_of(other, "pose", "scales")


def test_a_folder_without_pictures_and_crops_without_people_are_refused(bundle, two_graphs, tmp_path) -> None:
    with pytest.raises(EdgeposeError, match="no pictures in it"):
        source_of(bundle, "pose", str(tmp_path))
    with pytest.raises(EdgeposeError, match="choose scales or golden"):
        source_of(two_graphs, "coarse", str(tmp_path))


def test_scales_far_off_do_not_go_live(bundle, install, tmp_path) -> None:
    """The golden vectors are asked as of any engine: steps a thousand times too coarse say nothing."""
    install("10.3")
    scales = {name: 1000 * scale for name, scale in scales_of(bundle, "pose").items()}
    other = without_scales(bundle, tmp_path, json.dumps(scales))
    _, steps = made(other, tmp_path / "engines").exactly("int8")
    assert "does not reproduce the golden vectors of pose.int8.trt" in steps[0].problem


@pytest.mark.parametrize("damage", ["digits", "name"])
def test_the_stand_in_reads_a_cache_strictly(damage: str, bundle, install, tmp_path, monkeypatch) -> None:
    install("8.6")
    import edgepose.runtime.trt.implicit as module

    original = module.cache_text
    change = {"digits": (": ", ": 0"), "name": ("images", "pictures")}[damage]
    monkeypatch.setattr(
        module, "cache_text", lambda scales, version: original(scales, version).replace(*change)
    )
    _, steps = made(bundle, tmp_path).exactly("int8")
    assert "calibration cache" in steps[0].problem


def test_little_endian_digits_are_caught_by_the_golden_vectors(
    bundle, install, tmp_path, monkeypatch
) -> None:
    install("10.3")
    import edgepose.runtime.trt.implicit as module

    turned = type("Turned", (), {"pack": staticmethod(lambda _, v: struct.pack("<f", v))})
    monkeypatch.setattr(module, "struct", turned)
    _, steps = made(bundle, tmp_path).exactly("int8")
    assert "does not reproduce the golden vectors" in steps[0].problem


# The verb.


def test_the_cache_is_printed_for_trtexec_without_a_board(bundle, run) -> None:
    code, out, _ = run(bundle.path, "--print-calibration-cache", "8.6.1")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "TRT-8601-EntropyCalibration2"
    found = {
        name: struct.unpack(">f", bytes.fromhex(digits))[0]
        for name, digits in (line.rsplit(": ", 1) for line in lines[1:])
    }
    assert found == pytest.approx(scales_of(bundle, "pose"))
    code, _, err = run(bundle.path, "--print-calibration-cache", "11.0.0")
    assert code == 2
    assert "TensorRT 11.0.0 reads no calibration cache" in err


def test_trtexec_lines_and_scales_are_asked_for_one_by_one(bundle, run) -> None:
    code, _, err = run(bundle.path, "--print-trtexec", "8.6", "--implicit-int8", "scales")
    assert code == 2
    assert "leave out --implicit-int8" in err


@pytest.mark.parametrize("release", ["11.0", "11.4"])
def test_eleven_refuses_with_the_reason(release: str, bundle, install, run) -> None:
    install(release)
    code, _, err = run(bundle.path, "--implicit-int8", "scales")
    assert code == 2
    assert "has no calibrators (11.0 removed them)" in err


def test_the_report_names_the_way(bundle, install, run) -> None:
    install("8.6")
    code, out, err = run(bundle.path, "--implicit-int8", "golden", "--json")
    assert code == 0, err
    report = json.loads(out)["graphs"]["pose"]
    assert [(row["precision"], row["view"], row["problem"]) for row in report["engines"]] == [
        ("int8", "fp32", ""),
        ("fp16", "fp32", ""),
    ]


def test_int8_on_a_dla_goes_by_the_scales(bundle, install, run, tmp_path) -> None:
    gpu = install("10.3")
    gpu.dla_cores = 2
    code, out, err = run(bundle.path, "--dla-core", "1", "--json")
    assert code == 0, err
    assert gpu.dla_used == {1}
    rows = json.loads(out)["graphs"]["pose"]["engines"]
    assert [(row["precision"], row["view"], row["problem"]) for row in rows] == [
        ("int8", "fp32", ""),
        ("fp16", "fp16", ""),
    ]
    other = without_scales(bundle, tmp_path)
    code, out, _ = run(other.path, "--dla-core", "1", "--json")
    rows = json.loads(out)["graphs"]["pose"]["engines"]
    assert "the DLA takes no INT8 written as Q/DQ" in rows[0]["problem"]
