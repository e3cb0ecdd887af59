"""The spec inside an ONNX file: there and back, through bytes, and one sentence when it is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from edgepose.compression.graph import copy
from edgepose.export.metadata import read_spec, write_spec
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import METADATA_KEY, Spec

unit = st.floats(0.01, 1, allow_nan=False)
specs = st.builds(
    Spec,
    family=st.just("qrpose"),
    model=st.text(max_size=12),
    width=st.integers(32, 4096),
    height=st.integers(32, 4096),
    colour=st.sampled_from(["RGB", "BGR"]),
    mean=st.tuples(unit, unit, unit),
    std=st.tuples(unit, unit, unit),
    score_threshold=unit,
)


@given(specs)
def test_round_trip_through_bytes(spec: Spec) -> None:
    model = ModelProto()
    model.metadata_props.add(key="other", value="kept")
    write_spec(model, Spec("qrpose", "older", 64, 64))
    write_spec(model, spec)  # replaces, does not pile up
    again = ModelProto.FromString(model.SerializeToString())
    assert read_spec(again, "m.onnx") == spec
    assert [entry.key for entry in again.metadata_props] == ["other", METADATA_KEY]


def test_files_without_a_readable_spec_are_refused(traced: ModelProto) -> None:
    with pytest.raises(EdgeposeError, match=r"m\.onnx: has no edgepose\.spec"):
        read_spec(traced, "m.onnx")
    for value in ("{", "[]", '{"version": 99}', '{"version": 1}'):
        model = copy(traced)
        model.metadata_props.add(key=METADATA_KEY, value=value)
        with pytest.raises(EdgeposeError, match=r"m\.onnx"):
            read_spec(model, "m.onnx")
