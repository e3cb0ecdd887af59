"""Reading a file of weights, whoever wrote it, without running any code in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgepose.runtime.errors import EdgeposeError

WRAPPERS = ("model", "state_dict")  # under which training code puts the weights beside other state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises EdgeposeError for a missing, empty, truncated or foreign file."""
    if not path.is_file():
        raise EdgeposeError(f"{path}: no such file of weights; train some with `edgepose train`")
    if path.stat().st_size == 0:
        raise EdgeposeError(f"{path}: the file of weights is empty; copy it again")
    values = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise EdgeposeError(f"{path}: holds no state dict; expected tensors by name, plain or under 'model'")
    return values


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise EdgeposeError(f"{path}: truncated, or no safetensors file ({error}); copy it again") from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles; what matters is whether they load
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever foreign bytes lead it to
        reason = str(error).partition("\n")[0]
        raise EdgeposeError(f"{path}: truncated, or no file of weights ({reason}); copy it again") from error
    for key in WRAPPERS:
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            return dict(values[key])
    return dict(values) if isinstance(values, dict) else {}
