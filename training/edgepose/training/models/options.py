"""From a profile and a caller's options to a checked configuration."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from edgepose.runtime.errors import EdgeposeError

Settings = TypeVar("Settings")


def fields_but(kind: type, settled: Collection[str]) -> list[str]:
    """The fields of a dataclass that a caller may choose: all but the `settled`."""
    return [field.name for field in fields(kind) if field.name not in settled]


def configure(
    kind: type[Settings],
    name: str,
    profile: Mapping[str, Any],
    options: Mapping[str, Any],
    known: Collection[str],
) -> Settings:
    """The dataclass `kind` from the profile `name`, changed by `options`, which are among the `known`.

    Raises EdgeposeError naming the option that is unknown, or has a value it cannot have.
    """
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise EdgeposeError(f"unknown option {key!r} of {name}; {hint}")
    try:
        return TypeAdapter(kind).validate_python({**profile, **options})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EdgeposeError(f"{name}: option {where!r} is {first['input']!r}: {first['msg']}") from error
