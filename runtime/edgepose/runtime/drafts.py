"""Nothing half-written: files and folders appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepose.runtime.errors import DISK_FULL, EdgeposeError


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A path in a hidden folder on the same disk.

    Raises EdgeposeError naming `path` when it cannot be, of a full disk OSError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise EdgeposeError(f"{path}: {error.strerror}; give another path or the right to use it") from error
    with hidden as folder:
        yield Path(folder) / path.name


@contextlib.contextmanager
def draft_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well, removed when it does not.

    Raises EdgeposeError when nothing can be written there.
    """
    with _beside(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextlib.contextmanager
def draft_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside `path`, renamed to it when the block ends well, removed when it does not.

    Raises EdgeposeError when `path` exists and is not to be replaced, or nothing can be written there.
    """
    if not replace:
        require_new(path)
    with _beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rename(temporary.with_name(f"{path.name}.replaced"))
        temporary.rename(path)


def require_new(path: Path, option: str = "--out") -> None:
    """Raises EdgeposeError when there is something of that name: said before the work, not after it."""
    if path.exists():
        raise EdgeposeError(f"{path}: exists already; choose another {option} or remove it")


def write_json(path: Path, value: Any) -> None:
    """Indented UTF-8 JSON, complete or not at all. Not-a-number is refused (ValueError)."""
    with draft_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """The value in a JSON file; `what` names it in the sentence a user gets when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise EdgeposeError(f"{path}: no such file ({what} was expected)") from error
    except (ValueError, RecursionError) as error:  # of bytes, of JSON, and of numbers or nesting without end
        raise EdgeposeError(f"{path}: not {what}: it is no valid JSON ({error})") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written below `folder` (or its nearest existing parent)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.fspath(folder)).free
