"""Training state in one safetensors file: weights, their average, optimiser moments, JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, contiguous_format

from edgepose.runtime.drafts import draft_file
from edgepose.runtime.errors import EdgeposeError

KEY = "edgepose.checkpoint"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int  # steps done
    seconds: float  # of training, over all resumes
    recipe: str  # resolved, YAML


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Complete or not at all; a tensor of several names is written under each.

    A full disk raises OSError and leaves the file of that name as it was.
    """
    own = {name: tensor.detach().clone(memory_format=contiguous_format) for name, tensor in tensors.items()}
    content = save(own, metadata)  # which takes no tensors that share memory
    with draft_file(path) as temporary:
        temporary.write_bytes(content)


def save_checkpoint(path: Path, groups: dict[str, dict[str, Tensor]], progress: Progress) -> None:
    """Groups of tensors (such as `model`, `ema`) under one name each."""
    tensors = {f"{group}/{name}": t for group, values in groups.items() for name, t in values.items()}
    save_tensors(path, tensors, {KEY: json.dumps(asdict(progress))})


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], Progress]:
    """Raises EdgeposeError when there is none, or it is damaged or of another kind."""
    if not path.is_file():
        raise EdgeposeError(f"{path}: no checkpoint to resume; leave out --resume to start anew")
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads((file.metadata() or {})[KEY]))
            for full in file.keys():  # noqa: SIM118  a safe_open handle is no mapping
                group, _, name = full.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(full)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EdgeposeError(
            f"{path}: damaged, or no edgepose checkpoint ({error}); remove it and start again, "
            "or choose another --out"
        ) from error
    return groups, progress
