"""The inspector's text, as NVIDIA's documentation shows it, counted; other texts do no harm."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.runtime.trt.inspector import count_layers

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
OLD = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to stem",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "images", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "x", "Format/Datatype": "Channel major FP16 format where C % 8 == 0"}],
        },
        {"Name": "stem", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": INT8}]},
        {"Name": "_gemm_mha_v2_0", "LayerType": "kgen", "Outputs": [{"Format/Datatype": "Row major FP16"}]},
        {"Name": "topk", "LayerType": "TopK", "Outputs": [{"Format/Datatype": "Int32"}]},
        {"Name": "head", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
    ],
    "Bindings": ["images", "scores"],
}
NEW = {
    "Layers": [
        {"Name": "a", "LayerType": "conv", "Outputs": [{"Format": "Row major", "DataType": "Int8"}]},
        {"Name": "b", "LayerType": "conv", "Outputs": [{"Format": "Row major", "DataType": "BFloat16"}]},
        {"Name": "c", "LayerType": "conv", "Outputs": [{"Format": "Row major", "DataType": "Half"}]},
    ],
    "I/O Tensors": [],
}


def test_layers_are_counted_by_the_precision_of_their_outputs() -> None:
    found = count_layers(json.dumps(OLD))
    assert found.total == 5
    assert found.by_precision == {"fp16": 2, "fp32": 1, "int8": 1, "other": 1}
    assert found.reformats == 1
    assert found.attention == ("_gemm_mha_v2_0",)


@pytest.mark.parametrize(
    ("name", "kind", "is_fused"),
    [
        ("stages.0.attention.qkv", "gemm", False),
        ("/blocks.3/attention/MatMul", "MatrixMultiply", False),
        ("_gemm_mha_v2_myl0_5", "kgen", True),
        ("__mye_fmha", "Myelin", True),
        ("blocks.0", "fmha_v2", True),
        ("blocks.0", "Attention", True),
    ],
)
def test_attention_is_fused_by_its_kernel_not_by_its_modules_name(name, kind, is_fused: bool) -> None:
    text = json.dumps({"Layers": [{"Name": name, "LayerType": kind, "Outputs": []}]})
    assert count_layers(text).attention == ((name,) if is_fused else ())


def test_the_newer_form_is_read_too() -> None:
    assert count_layers(json.dumps(NEW)).by_precision == {"bf16": 1, "fp16": 1, "int8": 1}


def test_names_alone_are_counted_as_not_told() -> None:
    assert count_layers('{"Layers": ["a", "b"], "Bindings": []}').by_precision == {"other": 2}


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"Layers": null}', "{}"])
def test_another_text_counts_as_no_layers(text: str) -> None:
    assert count_layers(text).total == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["Name", "Outputs"]), inner),
    max_leaves=8,
)


@given(layers=st.lists(JSON, max_size=4))
def test_no_text_makes_it_fail(layers) -> None:
    found = count_layers(json.dumps({"Layers": layers}))
    assert found.total == sum(found.by_precision.values()) == len(layers)
