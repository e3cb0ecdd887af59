"""GELU re-ordered: the same bits, one kernel; and whatever only looks like a GELU is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import copy, count_ops
from edgepose.export.gelu import order_gelu


def as_pytorch_writes_it(
    half: float = 0.5, outer: str = "x", outputs: tuple[str, ...] = ("y",), swapped: bool = False
) -> ModelProto:
    """x * (0.5 * (1 + erf(x / √2)))."""
    sides = ["half", "sum"][:: -1 if swapped else 1]
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"], "d"),
        helper.make_node("Erf", ["d"], ["e"], "e"),
        helper.make_node("Add", ["e", "one"], ["sum"], "sum"),
        helper.make_node("Mul", sides, ["halved"], "halved"),
        helper.make_node("Mul", [outer, "halved"], ["y"], "y"),
    ]
    values = {"root": 2**0.5, "one": 1.0, "half": half}
    constants = [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in values.items()]
    x, z, *ends = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "z", *outputs)
    )
    graph = helper.make_graph(nodes, "g", [x, z], ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("swapped", [False, True])
def test_same_bits_and_one_kernel(swapped: bool, tmp_path: Path) -> None:
    before = as_pytorch_writes_it(swapped=swapped)
    after = copy(before)
    order_gelu(after)
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(0).normal(0, 3, (400, 8)).astype(np.float32)
    feeds = [{"x": x, "z": x}]
    wanted, found = (outputs_of(model, feeds, optimised=False)[0]["y"] for model in (before, after))
    np.testing.assert_array_equal(found, wanted)
    kernels = []
    for model in (before, after):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kernels.append(count_ops(onnx.load(tmp_path / "optimised.onnx"))["Gelu"])
    assert kernels == [0, 1]


@pytest.mark.parametrize(
    "other",
    [
        as_pytorch_writes_it(half=0.25),
        as_pytorch_writes_it(outer="z"),
        as_pytorch_writes_it(outputs=("y", "halved")),
    ],
    ids=["another factor", "another x", "read elsewhere"],
)
def test_what_is_no_gelu_stays(other: ModelProto) -> None:
    before = copy(other)
    order_gelu(other)
    assert other == before
