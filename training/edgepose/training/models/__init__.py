"""The models by name, and their published weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import qrpose, querypose, sharpose
from edgepose.training.models.backbones.body import Body
from edgepose.training.models.backbones.residual_pyramid import Residuals
from edgepose.training.models.weights import read_published, read_weights, require_fit
from edgepose.training.models.widths import Widths, require_whole, shape

# In one place (DESIGN.md: tables, not registries). Each builder checks its own options.
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "qrpose_tiny": partial(qrpose.build, "qrpose_tiny"),
    "qrpose_edge": qrpose.build_edge,
    "qrpose_hrnet32": partial(qrpose.build, "qrpose_hrnet32"),
    "qrpose_hrnet48": partial(qrpose.build, "qrpose_hrnet48"),
    "qrpose_dla34": partial(qrpose.build, "qrpose_dla34"),
    **{name: partial(querypose.build, name) for name in querypose.PROFILES},
    "sharpose_tiny_128x96": partial(sharpose.build, "sharpose_tiny_128x96"),
    "sharpose_small_256x192": partial(sharpose.build, "sharpose_small_256x192"),
    "sharpose_base_256x192": partial(sharpose.build, "sharpose_base_256x192"),
    "sharpose_base_384x288": partial(sharpose.build, "sharpose_base_384x288"),
}

COUNTER = "num_batches_tracked"
WEIGHTS = Path(__file__).parent.parent / "weights"


def check_name(name: str) -> None:
    """Raises EdgeposeError naming the nearest known model unless `name` is one."""
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(BUILDERS)}"
        raise EdgeposeError(f"unknown model {name!r}; {hint}")


def family_of(name: str) -> str:
    """`qrpose` for `qrpose_tiny`. Raises EdgeposeError naming the nearest known model for an unknown one."""
    check_name(name)
    return name.partition("_")[0]


def build(name: str, **options: Any) -> nn.Module:
    """The trainable network, randomly initialised; `eval()` gives the graph of DESIGN.md section 4."""
    check_name(name)
    return BUILDERS[name](**options)


def has_weights(name: str) -> bool:
    """Whether weights of this model come with edgepose."""
    return (WEIGHTS / f"{name}.safetensors").is_file()


def shipped_weights(name: str) -> Path:
    """The weights file that comes with edgepose. Raises EdgeposeError when this model has none."""
    if not has_weights(name):
        raise EdgeposeError(f"{name}: no weights are shipped for it; train it, or name a file of weights")
    return WEIGHTS / f"{name}.safetensors"


@runtime_checkable
class Fitting(Protocol):
    """A model whose authors' files use other names, or come in several versions."""

    def fit(self, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The weights of the file at `path` under the model's names; may take the version they are of."""


@runtime_checkable
class Adopting(Protocol):
    """A model that depends on more than weights: its authors' files tell the rest."""

    def adopt(self, meta: Mapping[str, Any], path: Path) -> None:
        """Take it from what the file at `path` says beside its weights."""


def load_published(model: nn.Module, checkpoint: str | Path) -> Widths:
    """Load weights into `model`, strictly. Raises EdgeposeError when the file does not fit or cannot be read.

    A file of pruned weights makes the model's layers as narrow as it says; these widths are returned.

    Reads safetensors, or a torch file with a plain state dict or one under `model` or `state_dict`.
    A SHaRPose file of its authors also sets `alpha` and the exit threshold, which are not in the weights. A
    QueryPose network becomes light or full, as the file is.
    """
    path = Path(checkpoint)
    loaded, meta, widths = read_published(path)
    shape(model, widths, path)
    if isinstance(model, Fitting):
        loaded = model.fit(loaded, path)
    require_fit(path, model.state_dict(), loaded, "model", "this model and these options")
    if meta is not None and isinstance(model, Adopting):
        model.adopt(meta, path)
    model.load_state_dict(loaded)
    if widths:
        require_whole(model, path)
    return widths


def load_backbone(model: nn.Module, checkpoint: str | Path) -> None:
    """Start the model's backbone from trained weights, strictly; its neck and heads stay random.

    Reads the files of torchvision's ResNet, of HRNet (classification or pose), of DLA and of Swin, but for
    their last layers. The small backbone starts from edgepose's own weights of a network that has it too, as
    wide or wider; `checkpoint` may then be the name of a model that ships with some.
    Raises EdgeposeError when the file does not fit or cannot be read, or when no weights fit the backbone.
    """
    path = shipped_weights(str(checkpoint)) if has_weights(str(checkpoint)) else Path(checkpoint)
    body = getattr(model.get_submodule("backbone"), "body", None)
    if isinstance(body, Body):
        loaded = _published(body, path)
    elif isinstance(body, Residuals):
        loaded = body.taken(read_weights(path))
    else:
        raise EdgeposeError(
            f"{path}: there are no published weights for this model's backbone; start without"
        )
    require_fit(path, body.state_dict(), loaded, "backbone", "this backbone")
    body.load_state_dict(loaded)


def _published(body: Body, path: Path) -> dict[str, Tensor]:
    """What a published file holds of the body, and the body's own of what such files lack."""
    own = body.state_dict()
    # Counters that a normalisation of fixed momentum never reads; files before PyTorch 0.4 have none, and a
    # frozen normalisation wants none.
    loaded = {
        key: value
        for key, value in read_weights(path).items()
        if not key.startswith(body.surplus) and (key in own or not key.endswith(COUNTER))
    }
    kept = {key: value for key, value in own.items() if key.endswith(COUNTER) or key.startswith(body.fresh)}
    return {**kept, **loaded}
