"""ONNX Runtime as the backend: its INT8 arithmetic is that of ONNX's definition on every CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepose.runtime import backend_onnxruntime
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend, adds_in_32_bits, session_options
from edgepose.runtime.errors import EdgeposeError

CHANNELS = 64


def quantized_convolution(path: Path) -> Path:
    """A 1x1 convolution of uint8 activations and int8 weights of scale 1; its result has scale 2^15."""
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "signed_zero": np.int8(0),
        "weight": np.full((CHANNELS, CHANNELS, 1, 1), 127, np.int8),
        "coarse": np.float32(2**15),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "signed_zero"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "coarse", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "coarse", "zero"], ["y"]),
    ]
    shape = [1, CHANNELS, 8, 8]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_large_products_do_not_overflow(tmp_path: Path) -> None:
    """255 * 127 twice is more than 16 bits hold: kernels for CPUs without VNNI saturate by default."""
    with OnnxRuntimeBackend(quantized_convolution(tmp_path / "conv.onnx")) as backend:
        found = backend.run({"x": np.full((1, CHANNELS, 8, 8), 255, np.float32)})["y"]
    exact = CHANNELS * 255 * 127
    assert np.unique(found) == pytest.approx(round(exact / 2**15) * 2**15)


@pytest.mark.parametrize(
    ("said", "exact"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n", True),
        ("flags\t\t: fpu avx2 avx_vnni\n", True),
        ("model name\t: Some avx_vnni_less CPU\nflags\t\t: fpu avx2 avx512f\n", False),
        (None, False),
    ],
)
def test_slower_kernels_are_asked_for_only_where_the_others_may_overflow(
    said: str | None, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if said is not None:
        cpuinfo.write_text(said)
    assert adds_in_32_bits(cpuinfo) == exact
    monkeypatch.setattr(backend_onnxruntime, "adds_in_32_bits", lambda: exact)
    asked = session_options().get_session_config_entry
    if exact:
        with pytest.raises(RuntimeError):
            asked("session.x64quantprecision")
    else:
        assert asked("session.x64quantprecision") == "1"


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pose.onnx").write_bytes(b"not a graph")
    with pytest.raises(EdgeposeError, match=r"pose\.onnx: ONNX Runtime cannot load it"):
        OnnxRuntimeBackend(tmp_path / "pose.onnx")
