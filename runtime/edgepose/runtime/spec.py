"""The machine-readable contract that travels with a graph: what goes in, and what comes out means."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, get_args, get_origin, get_type_hints

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import SKELETONS, Skeleton

SPEC_VERSION = 1
METADATA_KEY = "edgepose.spec"  # key of the spec in an ONNX file's metadata_props
# How a picture becomes an input: the whole frame, aspect kept, padded right and below with the mean colour;
# or one crop per person (`runtime.topdown`).
RESIZES = ("letterbox", "crop")


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
    resize: str = "letterbox"  # one of RESIZES
    score_threshold: float = 0.25  # expected OKS below which a stream shows nobody
    # Two-stage networks: people whose predicted quality is lower are looked at again. INT8 has a limit of its
    # own, because quantization shifts the quality.
    refine_below: float | None = None
    refine_below_int8: float | None = None
    sharp_cells: int | None = None  # how many cells of `region_order` the second look sees sharp
    version: int = SPEC_VERSION

    def limit(self, precision: str) -> float:
        """The quality below which the graphs of `precision` look again; infinite where the spec has none."""
        own = self.refine_below_int8 if precision == "int8" else None
        found = self.refine_below if own is None else own
        return float("inf") if found is None else found

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
        wrong = misfits(spec)
        if wrong:
            said = ", ".join(f"{name} is {values[name]!r}" for name in wrong)
            raise EdgeposeError(f"{origin}: not an edgepose spec ({said}); export the bundle again")
        known = spec.skeleton in SKELETONS and spec.colour in ("RGB", "BGR") and spec.resize in RESIZES
        if not known:
            raise EdgeposeError(
                f"{origin}: skeleton {spec.skeleton!r}, colour {spec.colour!r} or resize {spec.resize!r} "
                "is unknown to this release; export the bundle again"
            )
        return spec


def misfits(record: Any) -> list[str]:
    """The fields of a dataclass out of JSON that hold something of another type."""
    hints = get_type_hints(type(record))
    return [name for name, kind in hints.items() if not _fits(getattr(record, name), kind)]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is of a field's type: an int is a float too, a bool is no number."""
    if get_origin(kind) is not tuple:
        kinds = get_args(kind) or (kind,)  # of `float | None`, or a plain type
        return type(value) in kinds or (type(value) is int and float in kinds)
    if type(value) is not tuple:
        return False
    first, *rest = get_args(kind)
    kinds = (first,) * len(value) if rest == [...] else (first, *rest)
    return len(value) == len(kinds) and all(map(_fits, value, kinds))
