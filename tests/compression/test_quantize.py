"""NNCF told about TensorRT: legal, accurate, silent, and without traces in the process or the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

from edgepose.compression.execution import Feeds
from edgepose.compression.graph import copy
from edgepose.compression.plan import quantized_despite_plan
from edgepose.compression.quantize import Quantized, quantize
from edgepose.compression.trt_target import trt_target
from edgepose.runtime.backend_onnxruntime import session_options
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32


def test_everything_written_is_legal_for_tensorrt(quantized: Quantized) -> None:
    graph = quantized.model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 20
    for node in pairs:
        scale, zero = values[node.input[1]], values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
        assert scale.size == 1 or node.input[0] in values  # per channel for weights alone
    biases = {node.input[2] for node in graph.node if node.op_type == "Conv" and len(node.input) > 2}
    assert all(values[name].dtype == np.float32 for name in biases)


def test_the_plan_is_kept_and_the_rest_is_quantized(quantized: Quantized) -> None:
    made_by = {output: node for node in quantized.model.graph.node for output in node.output}
    for node in quantized.model.graph.node:
        if node.op_type == "Conv":
            weight, wanted = made_by.get(node.input[1]), node.name not in quantized.plan
            assert (weight is not None and weight.op_type == "DequantizeLinear") == wanted, node.name
    assert quantized_despite_plan(quantized.model, {"stem.1.0": "seeded"}) == ["stem.1.0", "stem.1.0"]


def test_float_layers_read_int8_only_at_the_boundary(quantized: Quantized) -> None:
    """A pair whose integers reach a float layer stands behind a convolution, and behind nothing else."""
    made_by = {output: node for node in quantized.model.graph.node for output in node.output}
    readers: dict[str, list[str]] = {}
    for node in quantized.model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    ends = {node.name for node in quantized.model.graph.node if node.name in quantized.plan}
    sources = set()
    for node in quantized.model.graph.node:
        if node.op_type == "DequantizeLinear" and set(readers[node.output[0]]) & ends:
            relu = made_by[made_by[node.input[0]].input[0]]
            assert relu.op_type == "Relu"
            sources.add(made_by[relu.input[0]].name)
    assert sources == {"inst.0", "kpt.1.0"}


def test_int8_stays_close_to_float(traced: ModelProto, quantized: Quantized, images: list[F32]) -> None:
    """Signal to noise on the joint features, before top-k makes jumps of small differences."""
    maps = []
    for model in (traced, quantized.model):
        tapped = copy(model)
        name = next(node.input[0] for node in tapped.graph.node if node.name == "score0")
        del tapped.graph.output[:]
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        session = ort.InferenceSession(
            tapped.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
        )
        maps.append(np.concatenate([session.run(None, {"images": image})[0] for image in images]))
    noise = float(((maps[0] - maps[1]) ** 2).mean())
    signal = float((maps[0] ** 2).mean())
    assert 20 < 10 * np.log10(signal / noise) < 60  # 60 dB would mean that nothing was quantized


def test_same_input_same_file(traced: ModelProto, feeds: list[Feeds], quantized: Quantized) -> None:
    again = quantize(traced, feeds, "qrpose")
    assert again.model.SerializeToString() == quantized.model.SerializeToString()
    assert again.plan == quantized.plan


def test_the_given_model_is_untouched(traced: ModelProto, feeds: list[Feeds]) -> None:
    before = traced.SerializeToString()
    quantize(traced, feeds[:2], "qrpose")
    assert traced.SerializeToString() == before


def test_without_the_table_nncf_writes_uint8(traced: ModelProto, images: list[F32]) -> None:
    """The fault that the table is there for; if NNCF stops making it, the table can go."""
    import nncf

    default = nncf.quantize(copy(traced), nncf.Dataset([{"images": image} for image in images[:2]]))
    types = {tensor.data_type for tensor in default.graph.initializer}
    assert onnx.TensorProto.UINT8 in types


def test_the_table_is_taken_back(traced: ModelProto) -> None:
    import nncf.common.hardware.config as hardware

    original = hardware.get_hw_setup
    with trt_target():
        assert hardware.get_hw_setup is not original
    assert hardware.get_hw_setup is original
    with pytest.raises(RuntimeError, match="inside"), trt_target():
        raise RuntimeError("inside")
    assert hardware.get_hw_setup is original


def test_stdout_stays_clean(
    traced: ModelProto, feeds: list[Feeds], capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(traced, feeds[:2], "qrpose")
    assert capfd.readouterr().out == ""


def test_bad_input_is_refused_in_one_sentence(
    traced: ModelProto, quantized: Quantized, feeds: list[Feeds]
) -> None:
    with pytest.raises(EdgeposeError, match="calibration set is empty"):
        quantize(traced, [], "qrpose")
    with pytest.raises(EdgeposeError, match="no float scopes"):
        quantize(traced, feeds, "unheard-of")
    with pytest.raises(EdgeposeError, match="quantized already"):
        quantize(quantized.model, feeds, "qrpose")
    nameless = copy(traced)
    nameless.graph.node[0].name = ""
    with pytest.raises(EdgeposeError, match="nameless"):
        quantize(nameless, feeds, "qrpose")


def test_layers_asked_for_stay_float_and_say_why(
    traced: ModelProto, quantized: Quantized, feeds: list[Feeds]
) -> None:
    kept = quantize(traced, feeds[:2], "qrpose", {"layer1": "asked for", "*ateral2": "too", "score0": "no"})
    asked = {"layer1.first.0", "layer1.second.0", "lateral2"}
    assert kept.plan.items() - quantized.plan.items() == {
        (name, "too" if name == "lateral2" else "asked for") for name in asked
    }  # score0 keeps the reason of its own
    float_now, float_before = (
        {node.name for node in model.graph.node if node.op_type == "Conv" and not is_int8(model, node)}
        for model in (kept.model, quantized.model)
    )
    assert float_now - float_before == asked


def is_int8(model: ModelProto, node: NodeProto) -> bool:
    makers = {output: maker for maker in model.graph.node for output in maker.output}
    return node.input[1] in makers and makers[node.input[1]].op_type == "DequantizeLinear"


def test_values_that_are_no_numbers_are_traced_to_their_layer(traced: ModelProto, feeds: list[Feeds]) -> None:
    broken = copy(traced)
    weights = next(node.input[1] for node in broken.graph.node if node.name == "layer1.first.0")
    tensor = next(tensor for tensor in broken.graph.initializer if tensor.name == weights)
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, weights))
    with pytest.raises(
        EdgeposeError, match=r"^Conv layer1\.first\.0 gives .* on calibration picture 0; look"
    ):
        quantize(broken, feeds[:2], "qrpose")
    picture = feeds[1]["images"].copy()
    picture[0, 0, 5, 5] = np.inf
    with pytest.raises(EdgeposeError, match=r"^calibration picture 1 is not finite"):
        quantize(traced, [feeds[0], {"images": picture}], "qrpose")


def test_a_model_without_an_int8_layer_or_with_foreign_operators_is_refused(
    traced: ModelProto, feeds: list[Feeds]
) -> None:
    with pytest.raises(EdgeposeError, match=r"no layer that can be INT8; stem\.0\.0 stays float: fewer than"):
        quantize(traced, feeds[:2], "qrpose", {"*": "all"})
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in "xy")
    for domain, why in (
        ("", "no layer that can be INT8$"),
        ("my.ops", "act: my.ops::Relu is none of ONNX's"),
    ):
        nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], "act", domain=domain)]
        graph = onnx.helper.make_graph(nodes, "g", [x], [y])
        with pytest.raises(EdgeposeError, match=why):
            quantize(onnx.helper.make_model(graph), [{"x": np.ones((1, 3), np.float32)}], "qrpose")


def test_nncf_reports_nothing_and_writes_nothing_at_home(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from edgepose.compression.trt_target import load_nncf\n"
        "load_nncf()\n"
        "from nncf.telemetry.wrapper import telemetry\n"
        "print(type(telemetry).__name__, 'openvino_telemetry' in sys.modules)\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["MagicMock", "False"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
