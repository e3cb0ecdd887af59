"""Reading a file of weights, whoever wrote it, without running any code in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.widths import Widths, from_metadata

WRAPPERS = ("model", "state_dict")  # under which training code puts the weights beside other state
PARALLEL = "module."  # before every name, in files that data-parallel training wrote
# Figures such as the best AP lie beside the weights as numpy's numbers, by its names of 1.x and of 2.x.
_SCALAR: Any = np.float64(0).__reduce__()[0]
NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]


class Published(NamedTuple):
    """A file's weights, and what its writer tells about them, if anything."""

    weights: dict[str, Tensor]
    meta: Mapping[str, Any] | None
    widths: Widths  # of pruned layers


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises EdgeposeError for a missing, empty, truncated or foreign file."""
    return read_published(path).weights


def read_published(path: Path) -> Published:
    """The weights and the dict `meta` beside them. Raises EdgeposeError as `read_weights` does.

    `meta` is empty for a torch file without, and None for safetensors, which edgepose itself writes.
    """
    if not path.is_file():
        raise EdgeposeError(f"{path}: no such file of weights; train some with `edgepose train`")
    if path.stat().st_size == 0:
        raise EdgeposeError(f"{path}: the file of weights is empty; copy it again")
    meta: Mapping[str, Any] | None = None
    widths: Widths = {}
    if path.suffix == ".safetensors":
        values: dict[str, Any] = _read_safetensors(path)
        widths = from_metadata(read_metadata(path), path)
    else:
        values, meta = _read_torch(path)
    if not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise EdgeposeError(f"{path}: holds no state dict; expected tensors by name, plain or under 'model'")
    return Published(values, meta, widths)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise EdgeposeError(f"{path}: truncated, or no safetensors file ({error}); copy it again") from error


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise EdgeposeError(f"{path}: truncated, or no safetensors file ({error}); copy it again") from error


def _read_torch(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMBERS):
            warnings.simplefilter("ignore")  # about old pickles; what matters is whether they load
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever foreign bytes lead it to
        reason = str(error).partition("\n")[0]
        raise EdgeposeError(f"{path}: truncated, or no file of weights ({reason}); copy it again") from error
    if not isinstance(values, dict):
        return {}, {}
    meta = values.get("meta")
    wrapped = next((values[key] for key in WRAPPERS if isinstance(values.get(key), dict)), values)
    if all(isinstance(key, str) and key.startswith(PARALLEL) for key in wrapped):
        wrapped = {key.removeprefix(PARALLEL): value for key, value in wrapped.items()}
    return dict(wrapped), meta if isinstance(meta, dict) else {}


def require_fit(
    path: Path, expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor], part: str, right: str
) -> None:
    """Raises EdgeposeError with the first differences unless names and shapes are those expected."""
    problems = _differences(expected, loaded)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise EdgeposeError(
            f"{path}: these weights are of another {part}: {'; '.join(problems[:3])}{more}; "
            f"name the file that was trained with {right}"
        )


def _differences(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    missing = [f"{key} is missing" for key in expected if key not in loaded]
    unexpected = [f"{key} is unexpected" for key in loaded if key not in expected]
    shapes = [
        f"{key} is {tuple(loaded[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in loaded and loaded[key].shape != value.shape
    ]
    return missing[:2] + unexpected[:1] + missing[2:] + unexpected[1:] + shapes
