"""The folder that `edgepose compress` writes and `edgepose export` reads: graphs, decisions, hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from edgepose.calibration.evaluation import MANIFEST
from edgepose.compression.graph import load_onnx
from edgepose.compression.quantize import Quantized
from edgepose.runtime.drafts import read_json, sha256, write_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import Spec

FORMAT = "edgepose-compression"
VERSION = 2  # 1 had other names for what a ModuleList holds in the torch network
INDEX, FRAMES, TORCH = "compression.json", "frames.npz", "torch"
# What the record of a calibration on crops says beside: how many there were, and who found the people.
CROPS = ("crops", "boxes")


@dataclass(frozen=True, slots=True)
class Compressed:
    """An opened folder; every file was hashed and equals what the index says."""

    folder: Path
    spec: Spec
    provenance: dict[str, Any]  # of the FP32 bundle it was made from
    settings: dict[str, Any]
    plan: dict[str, dict[str, str]]  # graph -> node -> why it stayed float
    calibration: dict[str, Any]  # sha256 of the manifest, how many pictures, CROPS
    versions: dict[str, str]

    def fp32(self, graph: str) -> ModelProto:
        """The graph that was compressed."""
        return load_onnx(self.folder / f"{graph}.fp32.onnx")

    def quantized(self, graph: str) -> ModelProto:
        """The common origin of the graph's INT8 views."""
        return load_onnx(self.folder / f"{graph}.qdq.onnx")

    def manifest(self) -> Any:
        """The calibration set's manifest."""
        return read_json(self.folder / MANIFEST, "a calibration manifest")

    def sha256(self) -> str:
        """Of the index, which holds the hashes of all other files."""
        return sha256(self.folder / INDEX)

    def frames(self) -> U8:
        """A few calibration pictures as the network gets them: (F, height, width, 3) BGR."""
        with np.load(self.folder / FRAMES) as arrays:
            return np.asarray(arrays["frames"], np.uint8)

    def torch(self) -> Path:
        """Folder of the quantized PyTorch model. Raises EdgeposeError for a network that has none."""
        if not (self.folder / TORCH).is_dir():
            raise EdgeposeError(
                f"{self.folder}: a network of {len(self.spec.graphs)} graphs is quantized as ONNX alone; "
                "leave out --compressed"
            )
        return self.folder / TORCH


@dataclass(frozen=True, slots=True)
class Source:
    """What was compressed, with what."""

    spec: Spec
    provenance: Mapping[str, Any]
    graphs: Mapping[str, Path]  # FP32 files by graph
    manifest: Mapping[str, Any]
    manifest_sha256: str
    frames: Sequence[U8]  # (height, width, 3) BGR of the network's size: a few of those it was calibrated on
    crops: Mapping[str, Any] = field(
        default_factory=dict
    )  # CROPS, of a network that sees one person at a time


def write(
    draft: Path, source: Source, quantized: Mapping[str, Quantized], versions: Mapping[str, str]
) -> None:
    """Fill the folder `draft`, in which the quantized PyTorch model may lie already."""
    for name, result in quantized.items():
        (draft / f"{name}.fp32.onnx").write_bytes(source.graphs[name].read_bytes())
        onnx.save(result.model, draft / f"{name}.qdq.onnx")
    write_json(draft / MANIFEST, source.manifest)
    np.savez_compressed(draft / FRAMES, frames=np.stack(source.frames))
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    index = {
        "format": FORMAT,
        "version": VERSION,
        "spec": asdict(source.spec),
        "provenance": dict(source.provenance),
        "settings": next(iter(quantized.values())).settings,
        "plan": {name: result.plan for name, result in quantized.items()},
        "calibration": {
            "sha256": source.manifest_sha256,
            "images": len(source.manifest["images"]),
            **source.crops,
        },
        "versions": dict(versions),
        "files": {path.relative_to(draft).as_posix(): sha256(path) for path in files},
    }
    write_json(draft / INDEX, index)


def open_compressed(folder: Path) -> Compressed:
    """Open such a folder. Raises EdgeposeError when it is missing, damaged, foreign or newer."""
    index = read_json(folder / INDEX, "a folder made by `edgepose compress`")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise EdgeposeError(f"{folder}: not a folder made by `edgepose compress`")
    if index.get("version") != VERSION:
        raise EdgeposeError(
            f"{folder}: version {index.get('version')!r}, this edgepose reads version {VERSION}; "
            "run `edgepose compress` again"
        )
    try:
        names = ("provenance", "settings", "plan", "calibration", "versions")
        spec = Spec.from_dict(index["spec"], str(folder))
        found = Compressed(folder, spec, **{name: dict(index[name]) for name in names})
        files: dict[str, str] = dict(index["files"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EdgeposeError(f"{folder}: {INDEX} is damaged ({error!r}); compress again") from error
    for name, expected in files.items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise EdgeposeError(f"{folder}: {name} is missing or damaged; run `edgepose compress` again")
    return found
