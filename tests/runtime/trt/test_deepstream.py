"""What DeepStream gets: documented properties, a graph of pixels, tensors that are the same poses."""

from __future__ import annotations

import configparser
import ctypes
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.export import deepstream
from edgepose.export.deepstream import GRAPH, INFER, PIXELS, PREPROCESS, SPEC_FILE, pixels, write
from edgepose.export.verb_export import export
from edgepose.runtime.backend import open_backend
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.cli import guarded
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.deepstream import letterbox_of, poses_of, tensors
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.preprocess import Letterbox, normalise
from edgepose.runtime.spec import Spec

# By hand, from the pages Gst-nvinfer and Gst-nvdspreprocess of NVIDIA's DeepStream manual (6.0 to 9.2).
DOCUMENTED = {
    INFER: {
        "property": {
            *(
                "gpu-id",
                "net-scale-factor",
                "offsets",
                "model-color-format",
                "onnx-file",
                "model-engine-file",
            ),
            *("batch-size", "network-mode", "network-type", "process-mode", "gie-unique-id", "infer-dims"),
            *(
                "maintain-aspect-ratio",
                "symmetric-padding",
                "scaling-filter",
                "output-tensor-meta",
                "interval",
            ),
            *("int8-calib-file", "workspace-size", "output-blob-names", "input-tensor-from-meta"),
        }
    },
    PREPROCESS: {
        "property": {
            *(
                "enable",
                "unique-id",
                "gpu-id",
                "target-unique-ids",
                "process-on-frame",
                "network-input-order",
            ),
            *("network-input-shape", "processing-width", "processing-height", "network-color-format"),
            *(
                "tensor-data-type",
                "tensor-name",
                "maintain-aspect-ratio",
                "symmetric-padding",
                "scaling-filter",
            ),
            *("scaling-pool-memory-type", "scaling-pool-compute-hw", "scaling-buf-pool-size"),
            *("tensor-buf-pool-size", "custom-lib-path", "custom-tensor-preparation-function"),
        },
        "user-configs": {"pixel-normalization-factor", "offsets"},
        "group-0": {"src-ids", "process-on-roi", "custom-input-transformation-function", "roi-params-src-0"},
    },
}


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deepstream") / "out"
    write(bundle, out)
    return out


@pytest.mark.parametrize("name", [INFER, PREPROCESS])
def test_every_property_is_a_documented_one(name: str, folder: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string((folder / name).read_text())
    assert set(parser.sections()) == DOCUMENTED[name].keys()
    for section, known in DOCUMENTED[name].items():
        assert set(parser[section]) <= known
    assert " = " not in (folder / name).read_text()  # GLib would take it, DeepStream's own parsers not all


def test_the_properties_say_what_the_spec_says(folder: Path, bundle: Bundle) -> None:
    spec = bundle.spec
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string((folder / INFER).read_text())
    found = parser["property"]
    assert (folder / found["onnx-file"]).is_file()
    assert found["infer-dims"] == f"3;{spec.height};{spec.width}"
    assert found["model-color-format"] == {"RGB": "0", "BGR": "1"}[spec.colour]
    assert (found["network-type"], found["output-tensor-meta"]) == ("100", "1")
    assert (found["maintain-aspect-ratio"], found["symmetric-padding"]) == ("1", "0")
    parser.read_string((folder / PREPROCESS).read_text())
    assert parser["property"]["tensor-name"] == PIXELS
    assert parser["property"]["network-input-shape"] == f"1;3;{spec.height};{spec.width}"
    assert parser["property"]["target-unique-ids"] == found["gie-unique-id"]
    assert Spec.from_dict(json.loads((folder / SPEC_FILE).read_text()), "file") == spec


def as_nvinfer(folder: Path, frame: Any, spec: Spec) -> tuple[Any, Any]:
    """The configured graph on a frame as the manual describes it: letterboxed on black, y = 1 * (x - 0).

    A NvDsInferTensorMeta over the outputs' own memory, without the batch axis, and the bindings to read it.
    """
    box = letterbox_of((frame.shape[1], frame.shape[0]), spec)
    canvas = np.zeros((spec.height, spec.width, 3), np.uint8)
    canvas[: box.height, : box.width] = cv2.resize(frame, (box.width, box.height))
    session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {PIXELS: pixels(canvas, spec)})
    layers = []
    for output, values in zip(session.get_outputs(), outputs, strict=True):
        memory = ctypes.create_string_buffer(values[0].tobytes())
        dims = SimpleNamespace(numDims=values.ndim - 1, d=[*values.shape[1:], *[0] * (9 - values.ndim)])
        kind = {"float32": 0, "int32": 3}[values.dtype.name]
        layers.append(SimpleNamespace(layerName=output.name, dataType=kind, inferDims=dims, buffer=memory))
    meta = SimpleNamespace(num_output_layers=len(layers))
    pyds = SimpleNamespace(
        get_nvds_LayerInfo=lambda given, index: layers[index], get_ptr=lambda buffer: ctypes.addressof(buffer)
    )
    return meta, pyds


def picture(width: int, height: int) -> Any:
    small = np.random.default_rng(width).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_raw_tensors_of_a_frame_of_the_networks_aspect_are_the_streams_poses(
    folder: Path, bundle: Bundle
) -> None:
    spec = bundle.spec
    frame = picture(spec.width * 3 // 2, spec.height * 3 // 2)  # bilinear, as nvinfer is told
    found = poses_of(tensors(*as_nvinfer(folder, frame, spec)), spec, (frame.shape[1], frame.shape[0]))
    with open_backend(bundle, "fp32", threads=1) as backend:
        expected = Estimator(backend, spec)(frame)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=0.02)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.keypoint_scores, expected.keypoint_scores, atol=1e-4)


def test_the_readmes_probe_gives_these_poses(folder: Path, bundle: Bundle, monkeypatch) -> None:
    text = (Path(__file__).parents[3] / "export" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    frame = picture(96, 96)
    meta, pyds = as_nvinfer(folder, frame, bundle.spec)
    names = {"tensor_meta": meta, "pyds": pyds, "width": 96, "height": 96}
    monkeypatch.chdir(folder)
    exec(code, names)
    expected = poses_of(tensors(meta, pyds), bundle.spec, (96, 96))
    np.testing.assert_array_equal(names["poses"].keypoints, expected.keypoints)


def test_of_a_wider_frame_they_are_those_of_the_same_black_letterbox(folder: Path, bundle: Bundle) -> None:
    """nvinfer pads with black where edgepose pads with the mean: the network sees another border."""
    spec = bundle.spec
    frame = picture(320, 160)
    found = poses_of(tensors(*as_nvinfer(folder, frame, spec)), spec, (320, 160))
    box = Letterbox.fit((320, 160), (spec.width, spec.height))
    canvas = np.zeros((spec.height, spec.width, 3), np.uint8)
    canvas[: box.height, : box.width] = cv2.resize(frame, (box.width, box.height))
    with open_backend(bundle, "fp32", threads=1) as backend:
        outputs: Any = backend.run({"images": normalise(canvas, spec)})
    expected = DECODERS[spec.family](outputs, box, spec.joints())
    assert box == letterbox_of((320, 160), spec)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=0.02)


@pytest.mark.parametrize(
    ("frame", "seen"),
    [
        ((3280, 2464), (255, 192)),  # 255.58 wide
        ((1936, 1096), (256, 144)),  # 144.93 high
        ((321, 181), (256, 144)),  # as 320 x 180
        ((1920, 1080), (256, 144)),
        ((16, 4096), (1, 192)),
    ],
)
def test_nvinfers_letterbox_rounds_down(frame: tuple[int, int], seen: tuple[int, int]) -> None:
    found = letterbox_of(frame, Spec("qrpose", "x", 256, 192))
    assert (found.width, found.height) == seen
    even = [side - side % 2 for side in frame]
    assert (found.scale_x, found.scale_y) == (seen[0] / even[0], seen[1] / even[1])


@given(st.integers(8, 2048), st.integers(8, 2048))
def test_nvinfers_letterbox_of_even_sides_is_ours_but_for_rounding(width: int, height: int) -> None:
    size = (2 * width, 2 * height)
    found, ours = letterbox_of(size, Spec("qrpose", "x", 256, 192)), Letterbox.fit(size, (256, 192))
    assert 0 <= ours.width - found.width <= 1
    assert 0 <= ours.height - found.height <= 1
    assert found.width == 256 or found.height == 192


def test_tensors_that_do_not_fit_are_refused(bundle: Bundle) -> None:
    with pytest.raises(EdgeposeError, match="nvinfer gave output0, not scores, keypoints, keypoint_scores"):
        poses_of({"output0": np.zeros((300, 6), np.float32)}, bundle.spec, (64, 64))
    layer = SimpleNamespace(layerName="scores", dataType=1)  # HALF
    pyds = SimpleNamespace(get_nvds_LayerInfo=lambda meta, index: layer)
    with pytest.raises(EdgeposeError, match="scores: nvinfer hands on data type 1"):
        tensors(SimpleNamespace(num_output_layers=1), pyds)


def test_a_wrong_normalisation_is_noticed_before_anything_is_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = deepstream.with_normalisation
    other = Spec(**{**vars_of(bundle.spec), "std": (0.3, 0.3, 0.3)})
    monkeypatch.setattr(deepstream, "with_normalisation", lambda model, spec: original(model, other))
    with pytest.raises(GateFailed, match=r"does not answer as pose\.fp32"):
        write(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def vars_of(spec: Spec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in Spec.__dataclass_fields__}


def test_the_verb_writes_the_folder_once(bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--deepstream", str(bundle.path), "--out", str(tmp_path / "out")]
    run = lambda *words: guarded(lambda: export.main([*arguments, *words], standalone_mode=False))  # noqa: E731
    assert run("--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {GRAPH, INFER, PREPROCESS, SPEC_FILE}
    assert run() == 2
    assert "exists already; choose another --out" in capsys.readouterr().err
    assert guarded(lambda: export.main(["--deepstream", "x"], standalone_mode=False)) == 2
    assert "--deepstream BUNDLE needs --out FOLDER" in capsys.readouterr().err


def test_a_network_that_sees_crops_is_refused(tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    spec = Spec("sharpose", "sharpose_tiny_128x96", 96, 128, graphs=("coarse", "fine"), resize="crop")
    other = publish(tmp_path / "content", tmp_path / "b", spec, {})
    with pytest.raises(
        EdgeposeError, match="nvinfer runs one graph; give the bundle of a single-stage network"
    ):
        write(other, tmp_path / "out")
