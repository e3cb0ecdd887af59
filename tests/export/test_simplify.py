"""A simplifier is trusted as far as its outputs: seeded faults in it must not reach the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from edgepose.compression.execution import Feeds
from edgepose.compression.graph import copy
from edgepose.export.simplify import simplify


def broken_weight(model: ModelProto, **_: Any) -> tuple[ModelProto, bool]:
    model = copy(model)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("off1.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    return model, True


def unrunnable(model: ModelProto, **_: Any) -> tuple[ModelProto, bool]:
    model = copy(model)
    model.graph.node[0].op_type = "NoSuchOperator"
    return model, True


def unsure(model: ModelProto, **_: Any) -> tuple[ModelProto, bool]:
    return model, False


def crashing(model: ModelProto, **_: Any) -> tuple[ModelProto, bool]:
    raise RuntimeError("segment fault\nin a second line")


def wrong_output(model: ModelProto, **_: Any) -> tuple[ModelProto, bool]:
    model = copy(model)
    del model.graph.output[-1]
    return model, True


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (broken_weight, "gives other outputs"),
        (unrunnable, "failed"),
        (unsure, "could not check"),
        (crashing, "failed"),
        (wrong_output, "gives other outputs"),
    ],
)
def test_a_broken_simplifier_is_rejected(
    monkeypatch: pytest.MonkeyPatch, traced: ModelProto, feeds: list[Feeds], fault: Any, said: str
) -> None:
    monkeypatch.setattr("onnxsim.simplify", fault)
    result, what = simplify(traced, feeds[:2])
    assert result is traced
    assert what.startswith("kept as traced")
    assert said in what
    assert "\n" not in what


def test_a_good_one_is_kept_and_settles(traced: ModelProto, feeds: list[Feeds]) -> None:
    result, what = simplify(traced, feeds[:2])
    assert what.startswith("simplified from")
    again, _ = simplify(result, feeds[:2])
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in result.graph.node]
