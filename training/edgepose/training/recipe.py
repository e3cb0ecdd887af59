"""The recipe: one YAML file that fully describes a training run, and is checked whole before it starts."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.families import FAMILIES
from edgepose.training.models import BUILDERS, family_of
from edgepose.training.sections import Recipe, Section

Checked = TypeVar("Checked", bound=Section)

LONGEST = 100  # characters of a value that a message repeats
RECIPES = Path(__file__).parent / "recipes"


def shipped() -> dict[str, Path]:
    """The recipes that come with edgepose, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def open_recipe(name: str) -> Recipe:
    """A recipe file, or the name of a shipped one. Raises EdgeposeError for anything else."""
    path = shipped().get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped recipes: {', '.join(shipped())}"
        raise EdgeposeError(f"{name}: no such recipe file and no shipped recipe; {hint}") from error
    except UnicodeDecodeError as error:
        raise EdgeposeError(f"{name}: not a recipe: it is no text ({error})") from error
    return parse_recipe(text, str(name))


def parse_recipe(text: str, origin: str) -> Recipe:
    """A checked recipe from YAML text, of the record that its model's family has for recipes.

    Raises EdgeposeError naming `origin`, the key and the value.
    """
    values = keys_of(text, origin)
    record = FAMILIES[family_of(_model_of(values, origin))].record
    return checked(values, record, origin, f"`edgepose train` ships examples: {', '.join(shipped())}")


def keys_of(text: str, origin: str) -> dict[Any, Any]:
    """Keys and values of YAML text that JSON could say, too; else EdgeposeError naming `origin`."""
    try:
        values = yaml.safe_load(text)
        values = json.loads(json.dumps(values, default=str))  # dates are text
    # ValueError: a number of thousands of digits, or an anchor that holds itself. TypeError: a list as key.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise EdgeposeError(f"{origin}: not a recipe ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise EdgeposeError(f"{origin}: not a recipe: expected keys and values, such as `model: qrpose_tiny`")
    return values


def checked(values: dict[Any, Any], record: type[Checked], origin: str, examples: str) -> Checked:
    """The record of these keys and values.

    Raises EdgeposeError naming `origin`, the key and the value; for a missing key, where the `examples` are.
    """
    try:
        # JSON mode: a YAML list may fill a tuple, but a string is never taken for a number.
        return record.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise EdgeposeError(f"{origin}: {_sentence(error, record, examples)}") from error


def require_fits(recipe: Recipe, model: str, named: str) -> None:
    """Raises EdgeposeError unless the recipe, which the user called `named`, trains `model`."""
    if recipe.model != model:
        raise EdgeposeError(f"{named}: trains {recipe.model}; choose a recipe of {model}")


def _model_of(values: dict[Any, Any], origin: str) -> str:
    """What decides which other keys there are."""
    if isinstance(values.get("model"), str):
        return str(values["model"])
    if "model" in values:
        raise EdgeposeError(
            f"{origin}: key 'model' is {values['model']!r}; name one of {', '.join(BUILDERS)}"
        )
    near = difflib.get_close_matches("model", map(str, values), n=1)
    if near:
        raise EdgeposeError(f"{origin}: unknown key {near[0]!r}; did you mean 'model'?")
    raise EdgeposeError(f"{origin}: key 'model' is missing; add one of {', '.join(BUILDERS)}")


def _sentence(error: ValidationError, record: type[Section], examples: str) -> str:
    """What is wrong in a recipe of that record, by key and value, and what to do about it."""
    # A misspelt key is also a missing one; its spelling is what helps.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(first["loc"][:-1], record))
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"key {key!r} is missing; add it ({examples})"
    if not key:
        return f"not a recipe: {first['msg']}"
    value = repr(first["input"])
    shown = value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
    return f"key {key!r} is {shown}: {first['msg']}; mend it in the recipe"


def _fields_at(location: tuple[int | str, ...], record: type[Section]) -> dict[str, Any]:
    section: Any = record
    for part in location:
        kind = section.model_fields[str(part)].annotation
        section = next((one for one in get_args(kind) if one is not type(None)), kind)  # of `Teacher | None`
    return dict(section.model_fields)
