"""The portable unit that goes to a board: graphs, spec, golden vectors, records; every byte accounted for."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
import weakref
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgepose.runtime.drafts import draft_file, draft_folder, read_json, sha256
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec

FORMAT = "edgepose-bundle"
VERSION = 2  # 1 had no seal: a changed byte of its spec went unseen
INDEX = "bundle.json"
SEAL = "sha256"  # key in INDEX of the hash of all the rest of it
LEDGER = "ledger.json"  # what was measured of a bundle; boards add to it
ZIP_SUFFIX = ".edgepose"
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises over damaged bytes, by where they lie: it has no error of its own for all of them. Of
# OSError only EINVAL, a seek before the file's start, is the archive's fault and not the disk's.
_NO_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, IndexError, RuntimeError, ValueError, OSError)


class _Unpacked:
    """A temporary folder that goes when nobody holds it any more."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="edgepose-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: `bundle.json` bears its own hash, and every file the hash that stands there.

    `path` is what the user named (a folder or one `.edgepose` zip), `folder` where the files can be read.
    """

    path: Path
    folder: Path
    spec: Spec
    provenance: dict[str, Any]
    files: dict[str, str]  # name -> sha256
    _unpacked: _Unpacked | None = field(default=None, repr=False)  # lives as long as the bundle

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle folder or `.edgepose` file.

        Raises EdgeposeError when it is missing, damaged, foreign or newer.
        """
        path = Path(path)
        if not path.exists():
            raise EdgeposeError(f"{path}: no such bundle; make one with `edgepose export`")
        if path.is_dir():
            return cls._read(path, path, None)
        unpacked = _Unpacked()
        _unzip(path, unpacked.folder)
        return cls._read(path, unpacked.folder, unpacked)

    @classmethod
    def _read(cls, path: Path, folder: Path, unpacked: _Unpacked | None) -> Bundle:
        if not (folder / INDEX).is_file():
            raise EdgeposeError(
                f"{path}: not an edgepose bundle (no {INDEX}); make one with `edgepose export`"
            )
        index = read_json(folder / INDEX, "a bundle index")
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise EdgeposeError(f"{path}: not an edgepose bundle ({INDEX} is of another kind)")
        if index.get("version") != VERSION:
            raise EdgeposeError(
                f"{path}: bundle version {index.get('version')!r}, this edgepose reads version {VERSION}; "
                "update edgepose here, or export the bundle again"
            )
        if index.get(SEAL) != seal(index):
            raise EdgeposeError(f"{path}: {INDEX} is damaged (its sha256 differs); copy the bundle again")
        try:
            spec = Spec.from_dict(index["spec"], str(path))
            bundle = cls(path, folder, spec, dict(index["provenance"]), dict(index["files"]), unpacked)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EdgeposeError(f"{path}: {INDEX} is damaged ({error!r}); export the bundle again") from error
        bundle._check_hashes()
        return bundle

    def _check_hashes(self) -> None:
        for name, expected in self.files.items():
            file = self.folder / name
            if not file.is_file():
                raise EdgeposeError(f"{self.path}: {name} is missing; copy the bundle again")
            if sha256(file) != expected:
                raise EdgeposeError(
                    f"{self.path}: {name} is damaged (its sha256 differs); copy the bundle again"
                )

    def graph(self, graph: str, view: str) -> Path:
        """The file of one view, such as `graph("pose", "int8.ort")`.

        Raises EdgeposeError naming the views there are.
        """
        name = f"{graph}.{view}.onnx"
        if name not in self.files:
            views = ", ".join(n for n in sorted(self.files) if n.endswith(".onnx"))
            raise EdgeposeError(f"{self.path}: has no {name}; it has {views or 'no graphs'}")
        return self.folder / name

    def read(self, name: str, what: str) -> Any:
        """The value of one of the bundle's JSON files; raises EdgeposeError when the bundle has none."""
        if name not in self.files:
            raise EdgeposeError(f"{self.path}: has no {name} ({what})")
        return read_json(self.folder / name, what)

    def with_files(self, files: dict[str, bytes]) -> Bundle:
        """Publish the same bundle with these files added or replaced, all at once; opened again."""
        with tempfile.TemporaryDirectory(prefix="edgepose-") as temporary:
            folder = Path(temporary) / "bundle"
            folder.mkdir()
            for name in self.files:
                shutil.copy2(self.folder / name, folder / name)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            return publish(folder, self.path, self.spec, self.provenance)


def seal(index: dict[str, Any]) -> str:
    """Hex digest of what an index says: of its JSON without white space and without its own seal."""
    rest = {key: value for key, value in index.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()


def require_replaceable(path: Path) -> None:
    """Raises EdgeposeError when `publish` would not write there: it replaces no folder but a bundle's."""
    if path.suffix == ZIP_SUFFIX or not path.exists() or (path / INDEX).is_file():
        return
    if path.is_file() or any(path.iterdir()):
        raise EdgeposeError(f"{path}: exists and is not a bundle; choose another --out")


def publish(content: Path, path: Path, spec: Spec, provenance: dict[str, Any]) -> Bundle:
    """Write the files of folder `content` as the bundle `path` (a folder, or a zip by its .edgepose).

    An older bundle of that name is replaced whole. Returns the bundle, opened and so verified.
    """
    names = sorted(p.name for p in content.iterdir() if p.name != INDEX)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "spec": asdict(spec),
        "provenance": provenance,
        "files": {name: sha256(content / name) for name in names},
    }
    text = json.dumps({**index, SEAL: seal(index)}, indent=1, allow_nan=False) + "\n"
    if path.suffix == ZIP_SUFFIX:
        with draft_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(INDEX, text)
            for name in names:
                archive.write(content / name, name)
    else:
        require_replaceable(path)
        with draft_folder(path, replace=True) as temporary:
            (temporary / INDEX).write_text(text, encoding="utf-8")
            for name in names:
                shutil.copy2(content / name, temporary / name)
    return Bundle.open(path)


def _require_flat(path: Path, names: list[str]) -> None:
    """Raises EdgeposeError unless the files of an archive lie side by side, as a bundle's do."""
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise EdgeposeError(f"{path}: not an edgepose bundle (its file names leave the archive)")
    if any("/" in name for name in names):
        raise EdgeposeError(
            f"{path}: not an edgepose bundle (its files lie in a folder); zip the files, not their folder"
        )


def _unzip(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _require_flat(path, archive.namelist())
            if any(entry.compress_type not in _PACKINGS for entry in archive.infolist()):
                raise zipfile.BadZipFile("packed by another method")
            archive.extractall(folder)
    except _NO_ZIP as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise EdgeposeError(f"{path}: not an edgepose bundle, or damaged ({error}); copy it again") from error
