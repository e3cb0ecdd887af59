"""The 2:4 pattern in ONNX files: floats and integers, convolutions and products, as TensorRT reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepose.compression.graph import Array
from edgepose.compression.sparse import keeps_pattern, sparse_nodes
from edgepose.training.models.sparsity import mask_2_4

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((8, 8)).astype(np.float32)  # outputs, inputs
SPARSE = WEIGHT * mask_2_4(torch.from_numpy(WEIGHT)).numpy()


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray[Any, Any]], dims: list[int]
) -> ModelProto:
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(dims))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], values), opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.checker.check_model(model)
    return model


def conv(weight: Array) -> ModelProto:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer")
    return model_of([node], {"w": weight[:, :, None, None]}, [1, 8, 2, 2])


def matmul(weight: Array) -> ModelProto:
    return model_of([helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], {"w": weight.T.copy()}, [1, 8])


def gemm(weight: Array) -> ModelProto:
    return model_of([helper.make_node("Gemm", ["x", "w"], ["y"], "layer")], {"w": weight.T.copy()}, [1, 8])


def gemm_turned(weight: Array) -> ModelProto:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "layer", transB=1)
    return model_of([node], {"w": weight}, [1, 8])


def transposed(weight: Array) -> ModelProto:
    turn = helper.make_node("Transpose", ["w"], ["t"], "turn", perm=[1, 0])
    return model_of([turn, helper.make_node("MatMul", ["x", "t"], ["y"], "layer")], {"w": weight}, [1, 8])


def quantized(weight: Array) -> ModelProto:
    """int8 behind a scale for each output, as in our INT8 views."""
    scale = np.abs(weight).max(1) / 127
    integers = np.rint(weight / scale[:, None]).astype(np.int8)[:, :, None, None]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "dq", axis=0),
        helper.make_node("Conv", ["x", "d"], ["y"], "layer"),
    ]
    return model_of(nodes, {"w": integers, "s": scale, "z": np.zeros(8, np.int8)}, [1, 8, 2, 2])


@pytest.mark.parametrize("make", [conv, matmul, gemm, gemm_turned, transposed, quantized])
def test_the_pattern_is_seen_along_inputs(make: Any) -> None:
    assert sparse_nodes(make(SPARSE)) == {"layer": True}
    assert sparse_nodes(make(WEIGHT)) == {"layer": False}
    assert sparse_nodes(make(SPARSE.T.copy())) == {"layer": False}


def test_products_of_two_activations_have_no_weight() -> None:
    assert sparse_nodes(model_of([helper.make_node("MatMul", ["x", "x"], ["y"], "layer")], {}, [8, 8])) == {}


def test_a_quantized_form_keeps_the_pattern_or_does_not() -> None:
    assert keeps_pattern(conv(SPARSE), quantized(SPARSE))
    assert not keeps_pattern(conv(SPARSE), quantized(WEIGHT))
    assert keeps_pattern(conv(WEIGHT), quantized(WEIGHT))  # there was none to keep
