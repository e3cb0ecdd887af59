"""The poses that a network of switches gives of every picture, kept so that a killed run can go on."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from edgepose.calibration.evaluation import Shown
from edgepose.compression.groups import Switches
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.drafts import draft_file, read_json, write_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.poses import Poses
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import TwoStage

ASKED = "asked.json"


@contextmanager
def estimator(
    models: Mapping[str, ModelProto], spec: Spec, precision: str, threads: int
) -> Iterator[Callable[..., Poses]]:
    """What gives the poses of a picture (and of its people's boxes and scores where those are needed)."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="edgepose-")))
        backends = []
        for name in spec.graphs:
            onnx.save(models[name], folder / f"{name}.onnx")
            backends.append(stack.enter_context(OnnxRuntimeBackend(folder / f"{name}.onnx", threads)))
        if spec.resize == "crop":
            coarse, fine = backends
            yield TwoStage(coarse, fine, spec, spec.limit(precision))
        else:
            yield Estimator(backends[0], spec)


class Answers:
    """The poses of all pictures for any choice of float groups; each choice is asked once for each folder."""

    def __init__(
        self,
        folder: Path,
        switches: Mapping[str, Switches],
        shown: Shown,
        spec: Spec,
        threads: int = 1,
    ) -> None:
        """Raises EdgeposeError when the folder holds answers to another question."""
        self.switches, self.shown, self.spec = switches, shown, spec
        self.groups = [group for each in switches.values() for group in each.groups]
        self._folder, self._threads = folder, threads
        self._pictures = [shown[index] for index in range(len(shown))]  # they are shown again and again
        _require_same_question(folder, self._question())

    def _question(self) -> dict[str, Any]:
        """What the answers depend on; JSON-able."""
        graphs = {name: each.sha256() for name, each in self.switches.items()}
        pictures = hashlib.sha256()
        for image, *people in self._pictures:
            for part in (image, *people):
                pictures.update(np.ascontiguousarray(part).data)
        spec = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.spec).items()}
        return {"graphs": graphs, "pictures": pictures.hexdigest(), "spec": spec}

    def of(self, floats: Collection[str]) -> list[Poses]:
        """With the groups of these names float and all others INT8."""
        key = hashlib.sha256("\n".join(sorted(floats)).encode()).hexdigest()[:16]
        path = self._folder / f"{key}.npz"
        kept = _kept(path, len(self._pictures))
        if kept is not None:
            return kept
        models = {name: each.model(floats) for name, each in self.switches.items()}
        precision = "fp32" if all(group.name in floats for group in self.groups) else "int8"
        found = self.ask(models, self.spec, precision)
        _keep(path, found)
        return found

    def ask(self, models: Mapping[str, ModelProto], spec: Spec, precision: str) -> list[Poses]:
        """The poses that other graphs of the same network give; nothing is kept."""
        with estimator(models, spec, precision, self._threads) as estimate:
            return [estimate(*picture) for picture in self._pictures]


def _require_same_question(folder: Path, question: Mapping[str, Any]) -> None:
    path = folder / ASKED
    if path.is_file():
        if read_json(path, "what answers are kept for") != question:
            raise EdgeposeError(
                f"{folder}: holds the answers of other graphs or to other pictures; name another folder, or "
                "remove it"
            )
    elif folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise EdgeposeError(f"{folder}: holds other things than answers; name another folder")
    else:
        write_json(path, question)


def _keep(path: Path, found: Sequence[Poses]) -> None:
    """Arrays of all pictures behind one another, and how many people each has."""
    fields = zip(*(poses.arrays() for poses in found), strict=True)
    with draft_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, [len(poses) for poses in found], *(np.concatenate(each) for each in fields))


def _kept(path: Path, pictures: int) -> list[Poses] | None:
    """What is kept there; None if nothing or nothing whole is."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            counts, *fields = (arrays[name] for name in arrays.files)
            ends = np.cumsum(counts)[:-1]
            found = [Poses(*parts) for parts in zip(*(np.split(each, ends) for each in fields), strict=True)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return found if len(found) == pictures else None
