"""The PyTorch network that an artefact was made from: built by name, with weights from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.drafts import sha256
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import build, load_published, shipped_weights
from edgepose.training.models.sparsity import PATTERN, is_sparse


def load_model(
    name: str, weights: Path | None, options: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network in evaluation mode and its origin: `weights` (a file name), `weights_sha256`, `options`.

    Of pruned weights the origin has the `widths` too, of sparse ones the pattern.

    `weights` None takes those that come with edgepose, `options` are those of the model's builder. Raises
    EdgeposeError for an unknown name, option or file.
    """
    chosen = dict(options or {})
    model = build(name, **chosen)
    path = weights or shipped_weights(name)
    widths = load_published(model, path)
    origin = {"weights": path.name, "weights_sha256": sha256(path), "options": chosen}
    said = {"widths": widths} if widths else {}
    return model.eval(), origin | said | ({"sparsity": PATTERN} if is_sparse(model) else {})


def load_bundled_model(bundle: Bundle, weights: Path | None) -> nn.Module:
    """The network that `bundle` was exported from; refuses other weights than the bundle names."""
    expected = bundle.provenance.get("weights_sha256")
    if expected is None:
        raise EdgeposeError(f"{bundle.path}: does not say which weights it has; export it again")
    model, origin = load_model(bundle.spec.model, weights, bundle.provenance.get("options"))
    if origin["weights_sha256"] != expected:
        raise EdgeposeError(
            f"{origin['weights']}: not the weights of {bundle.path} (sha256 {origin['weights_sha256'][:9]}…, "
            f"wanted {expected[:9]}…); name the right file with --weights"
        )
    return model
