"""The models by name, and their published weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import qrpose
from edgepose.training.models.backbones.body import Body
from edgepose.training.models.weights import read_weights

# In one place (DESIGN.md: tables, not registries). Each builder checks its own options.
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "qrpose_tiny": partial(qrpose.build, "qrpose_tiny"),
    "qrpose_edge": qrpose.build_edge,
    "qrpose_hrnet32": partial(qrpose.build, "qrpose_hrnet32"),
    "qrpose_hrnet48": partial(qrpose.build, "qrpose_hrnet48"),
    "qrpose_dla34": partial(qrpose.build, "qrpose_dla34"),
}

WEIGHTS = Path(__file__).parent.parent / "weights"


def check_name(name: str) -> None:
    """Raises EdgeposeError naming the nearest known model unless `name` is one."""
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(BUILDERS)}"
        raise EdgeposeError(f"unknown model {name!r}; {hint}")


def build(name: str, **options: Any) -> nn.Module:
    """The trainable network, randomly initialised; `eval()` gives the graph of DESIGN.md section 4."""
    check_name(name)
    return BUILDERS[name](**options)


def shipped_weights(name: str) -> Path:
    """The weights file that comes with edgepose. Raises EdgeposeError when this model has none."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise EdgeposeError(f"{name}: no weights are shipped for it; train it, or name a file of weights")
    return path


def load_published(model: nn.Module, checkpoint: str | Path) -> None:
    """Load weights into `model`, strictly. Raises EdgeposeError when the file does not fit or cannot be read.

    Reads safetensors, or a torch file with a plain state dict or one under `model` or `state_dict`.
    """
    path = Path(checkpoint)
    loaded = read_weights(path)
    _require_fit(path, model.state_dict(), loaded, "model", "this model and these options")
    model.load_state_dict(loaded)


def load_backbone(model: nn.Module, checkpoint: str | Path) -> None:
    """Start the model's backbone from published ImageNet weights, strictly; its neck and heads stay random.

    Reads the files of torchvision's ResNet, of HRNet (classification) and of DLA, but for their classifier.
    Raises EdgeposeError when the file does not fit or cannot be read, or when no weights fit the backbone.
    """
    path = Path(checkpoint)
    body = getattr(model.get_submodule("backbone"), "body", None)
    if not isinstance(body, Body):
        raise EdgeposeError(
            f"{path}: there are no published weights for this model's backbone; start without"
        )
    loaded = {key: value for key, value in read_weights(path).items() if not key.startswith(body.surplus)}
    # Counters that a normalisation of fixed momentum never reads; files before PyTorch 0.4 have none.
    counters = {key: value for key, value in body.state_dict().items() if key.endswith("num_batches_tracked")}
    loaded = {**counters, **loaded}
    _require_fit(path, body.state_dict(), loaded, "backbone", "this backbone")
    body.load_state_dict(loaded)


def _require_fit(
    path: Path, expected: dict[str, Tensor], loaded: dict[str, Tensor], part: str, right: str
) -> None:
    problems = _differences(expected, loaded)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise EdgeposeError(
            f"{path}: these weights are of another {part}: {'; '.join(problems[:3])}{more}; "
            f"name the file that was trained with {right}"
        )


def _differences(expected: dict[str, Tensor], loaded: dict[str, Tensor]) -> list[str]:
    missing = [f"{key} is missing" for key in expected if key not in loaded]
    unexpected = [f"{key} is unexpected" for key in loaded if key not in expected]
    shapes = [
        f"{key} is {tuple(loaded[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in loaded and loaded[key].shape != value.shape
    ]
    return missing[:2] + unexpected[:1] + missing[2:] + unexpected[1:] + shapes
