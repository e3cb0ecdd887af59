"""The machine-readable contract that travels with a graph: what goes in, and what comes out means."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import SKELETONS, Skeleton

SPEC_VERSION = 1
METADATA_KEY = "edgepose.spec"  # key of the spec in an ONNX file's metadata_props


@dataclass(frozen=True, slots=True)
class Spec:
    """How to feed a model and read its outputs. JSON round-trips exactly."""

    family: str  # querypose | qrpose | sharpose
    model: str  # named configuration, such as qrpose_tiny
    width: int  # pixels of the network input
    height: int
    skeleton: str = "coco17"
    graphs: tuple[str, ...] = ("pose",)
    colour: str = "RGB"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of values in 0..1, ImageNet
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: str = "letterbox"  # keep the aspect, pad right and bottom with the mean colour
    score_threshold: float = 0.25  # expected OKS below which a stream shows nobody
    version: int = SPEC_VERSION

    def joints(self) -> Skeleton:
        """The skeleton of the outputs."""
        return SKELETONS[self.skeleton]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> Spec:
        """Raises EdgeposeError naming `origin` when the values are not a spec of this version."""
        if values.get("version") != SPEC_VERSION:
            raise EdgeposeError(
                f"{origin}: spec version {values.get('version')!r}, this edgepose reads {SPEC_VERSION}; "
                "export the bundle again with this release, or install the release that wrote it"
            )
        try:
            lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
            spec = cls(**{**values, **lists})
        except TypeError as error:
            raise EdgeposeError(
                f"{origin}: not an edgepose spec ({error}); export the bundle again"
            ) from error
        if spec.skeleton not in SKELETONS or spec.colour not in ("RGB", "BGR") or spec.resize != "letterbox":
            raise EdgeposeError(
                f"{origin}: skeleton {spec.skeleton!r}, colour {spec.colour!r} or resize {spec.resize!r} "
                "is unknown to this release; export the bundle again"
            )
        return spec
