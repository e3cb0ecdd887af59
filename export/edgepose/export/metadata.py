"""The spec inside an ONNX file's metadata, so that a file that lost its bundle still says how to feed it."""

from __future__ import annotations

import json

from onnx import ModelProto

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import METADATA_KEY, Spec


def write_spec(model: ModelProto, spec: Spec) -> None:
    """Put the spec into the model, in place of one that may be there."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = spec.to_json()
            return
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())


def read_spec(model: ModelProto, origin: str) -> Spec:
    """The spec in a model's metadata. Raises EdgeposeError naming `origin` when none can be read."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                values = json.loads(entry.value)
            except json.JSONDecodeError as error:
                raise EdgeposeError(f"{origin}: its spec is damaged ({error}); export it again") from error
            if not isinstance(values, dict):
                raise EdgeposeError(f"{origin}: its spec is damaged (no object); export it again")
            return Spec.from_dict(values, origin)
    raise EdgeposeError(f"{origin}: has no {METADATA_KEY} in its metadata; export it with `edgepose export`")
