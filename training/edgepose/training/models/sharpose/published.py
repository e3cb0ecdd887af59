"""What the authors' files say beside their weights: the text of the configuration they were trained with."""

from __future__ import annotations

import ast
from collections.abc import Iterator

NAMES = ("alpha", "qp_threshold")


def settings(config: str) -> dict[str, float]:
    """The numbers called `NAMES` in the configuration's `model`, but for those it does not settle.

    `config` is Python text, as mmcv 1.x writes it. It is parsed, never run; other text gives nothing.
    """
    found: dict[str, set[float]] = {}
    try:
        for statement in ast.parse(config).body:
            match statement:
                case ast.Assign([ast.Name("model")], model):
                    for name, value in _numbers(model):
                        found.setdefault(name, set()).add(value)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return {}  # text that is no configuration
    return {name: values.pop() for name, values in found.items() if name in NAMES and len(values) == 1}


def _numbers(model: ast.expr) -> Iterator[tuple[str, float]]:
    """Every `name=number` of a call and `'name': number` of a dict, however deep."""
    for node in ast.walk(model):
        match node:
            case ast.keyword(str(name), ast.Constant(int() | float() as number)):
                yield name, float(number)
            case ast.Dict(keys, values):
                for pair in zip(keys, values, strict=True):
                    match pair:
                        case ast.Constant(str(name)), ast.Constant(int() | float() as number):
                            yield name, float(number)
