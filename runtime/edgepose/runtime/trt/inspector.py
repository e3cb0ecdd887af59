"""Which layers of an engine run in which precision, from what TensorRT's engine inspector tells.

Its JSON is read as NVIDIA's documentation shows it (8.x and 10.x: `Format/Datatype`; 11.x: `DataType`); no
real engine's text has been seen yet.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

_PRECISIONS = (
    ("int8", r"int8"),
    ("fp16", r"fp16|half"),
    ("bf16", r"bf16|bfloat16"),
    ("fp32", r"fp32|float"),
)
_FUSED = re.compile(r"(^|_)f?mha(_|$)", re.IGNORECASE)  # such as _gemm_mha_v2_0


@dataclass(frozen=True, slots=True)
class Layers:
    """An engine's layers, counted."""

    total: int
    by_precision: dict[str, int]  # of their outputs; "other" for what is no number or not told
    reformats: int  # layers that only convert: many of them eat what INT8 gains
    attention: tuple[str, ...]  # layers that are fused attention

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def count_layers(text: str) -> Layers:
    """From the inspector's JSON. A text of another form counts as no layers."""
    try:
        layers = _list(json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError):
        layers = []
    described = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]
    kinds = Counter(_precision(layer) for layer in described)
    return Layers(
        total=len(described),
        by_precision=dict(sorted(kinds.items())),
        reformats=sum("reformat" in _text(layer, "LayerType").lower() for layer in described),
        attention=tuple(_text(layer, "Name") for layer in described if _is_fused_attention(layer)),
    )


def _is_fused_attention(layer: dict[str, Any]) -> bool:
    """By the kernel or the kind of layer: a plain projection may be called `….attention.qkv`."""
    kind = _text(layer, "LayerType")
    return bool(_FUSED.search(_text(layer, "Name")) or _FUSED.search(kind)) or "attention" in kind.lower()


def _text(layer: dict[str, Any], key: str) -> str:
    return str(layer.get(key, ""))


def _precision(layer: dict[str, Any]) -> str:
    outputs = [output for output in _list(layer.get("Outputs")) if isinstance(output, dict)]
    words = " ".join(str(o.get("DataType") or o.get("Format/Datatype") or "") for o in outputs).lower()
    return next((name for name, pattern in _PRECISIONS if re.search(pattern, words)), "other")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
