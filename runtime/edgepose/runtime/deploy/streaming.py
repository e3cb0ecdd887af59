"""How a release is streamed: the options of `edgepose stream`, checked before any board is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.core import ParameterSource

from edgepose.runtime.drafts import read_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.stream.grammar import Endpoint, File, parse_endpoint, parse_login, parse_source
from edgepose.runtime.stream.outlet import STDOUT
from edgepose.runtime.verb_stream import require_refiner, stream

LOGIN = "EDGEPOSE_STREAM_USER"
_FILE = "stream.json"
_OWN = "<deployed>"  # stands for the bundle while options are looked at
# Options of `edgepose stream` that a service has no use for, and what to do instead.
_REFUSED = {
    "user_text": f"others could read a password there; set {LOGIN}=NAME:PASSWORD instead",
    "once": "a service has no end",
    "duration": "a service has no end",
}


@dataclass(frozen=True, slots=True)
class Streaming:
    """What a service gives to `edgepose stream` beside the bundle."""

    options: tuple[str, ...]
    login: str | None = None  # NAME:PASSWORD for viewers

    @classmethod
    def of(cls, options: Sequence[str], login: str | None, refines: bool = False) -> Streaming:
        """`refines`: a second bundle is deployed with the first.

        Raises EdgeposeError, or click's UsageError, for what `edgepose stream` would not take.
        """
        streaming = cls(tuple(options), login)
        parameters = streaming._parameters()
        if parameters["refine_path"] is not None:
            raise EdgeposeError(
                f"--refine {parameters['refine_path']} after --: give it before, and it is brought, kept and "
                "proven with the other: edgepose deploy BUNDLE --refine SECOND"
            )
        require_refiner(_OWN if refines else None, parameters["refine_policy"], parameters["budget_ms"])
        source = parse_source(parameters["source_text"])
        paths = {
            "--source": source.path if isinstance(source, File) else None,
            "--poses": parameters["poses_target"],
        }
        for option, path in paths.items():
            if path not in (None, STDOUT) and not Path(path).is_absolute():
                raise EdgeposeError(f"{option} {path}: a service works in no folder; give a path from / on")
        if streaming.endpoint.port == 0:
            raise EdgeposeError("--rtsp: nobody would find port 0, which is another at each start; name one")
        return streaming

    @classmethod
    def read(cls, folder: Path) -> Streaming:
        """What `write` wrote. Raises EdgeposeError when it is missing or damaged."""
        found = read_json(folder / _FILE, "how a release is streamed")
        try:
            return cls(tuple(map(str, found["options"])), found["login"])
        except (KeyError, TypeError) as error:
            raise EdgeposeError(f"{folder / _FILE}: damaged ({error!r}); deploy the bundle again") from error

    def write(self, folder: Path) -> None:
        """Into a draft; nobody else may read it, for the password."""
        path = folder / _FILE
        path.touch(mode=0o600)
        path.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        return {"options": list(self.options), "login": self.login}

    @property
    def endpoint(self) -> Endpoint:
        """Where it is served."""
        text = self._parameters()["rtsp_text"]
        return parse_endpoint(text, parse_login(self.login) if self.login else None)

    @property
    def device(self) -> str:
        """What it is to run on: one of `backend.DEVICES`."""
        return str(self._parameters()["device"])

    @property
    def precision(self) -> str:
        """What ONNX Runtime is to compute in."""
        return self._parameters()["precision"] or "int8"

    def _parameters(self) -> Mapping[str, Any]:
        """What `edgepose stream` makes of the options."""
        context = stream.make_context("edgepose stream", ["--bundle", _OWN, *self.options])
        if context.params["bundle_path"] != _OWN:
            raise EdgeposeError("--bundle after --: the bundle is the one that is deployed")
        for name, why in _REFUSED.items():
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise EdgeposeError(f"--{name.partition('_')[0]} after --: {why}")
        return context.params
