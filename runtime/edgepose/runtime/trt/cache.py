"""Engines kept on the board they were built on: found by everything they depend on, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from edgepose.runtime.drafts import draft_file, draft_folder, read_json, sha256, write_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.trt.board import Board
from edgepose.runtime.trt.build import Settings
from edgepose.runtime.trt.precision import Attempt

log = logging.getLogger(__name__)

PLAN, RECORD = "engine.plan", "engine.json"


def default_root() -> Path:
    """Where engines lie: $EDGEPOSE_ENGINES, or below the user's cache folder."""
    if chosen := os.environ.get("EDGEPOSE_ENGINES"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgepose" / "engines"


@dataclass(frozen=True, slots=True)
class Key:
    """Everything an engine depends on; another value of any of it is another engine."""

    graph: str  # sha256 of the ONNX file
    board: Board
    attempt: Attempt
    settings: Settings

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back, with lists for tuples."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @property
    def digest(self) -> str:
        """The name of the engine's folder."""
        return _digest(self.to_dict())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What came of a key: an engine and its build report, or why there is none."""

    path: Path
    plan: bytes  # empty when no engine could be made
    report: dict[str, Any]
    refusal: str = ""  # why not


class EngineCache:
    """A folder with one folder per engine, shared by processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, key: Key) -> Kept | None:
        """What was kept for `key`; None when there is nothing, or nothing that can be trusted."""
        folder = self._root / key.digest
        if not folder.is_dir():
            return None
        try:
            record = read_json(folder / RECORD, "an engine's record")
            if record["key"] != key.to_dict():
                raise EdgeposeError(f"{folder}: holds an engine of another board or graph")
            plan = (folder / PLAN).read_bytes() if record["plan_sha256"] else b""
            if plan and hashlib.sha256(plan).hexdigest() != record["plan_sha256"]:
                raise EdgeposeError(f"{folder / PLAN}: is damaged (its sha256 differs)")
            return Kept(folder, plan, dict(record["report"]), str(record["refusal"]))
        except (EdgeposeError, OSError) as error:
            log.warning("%s; building it again", error)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s: is damaged (%r); building it again", folder / RECORD, error)
        return None

    def keep(self, key: Key, plan: bytes, report: dict[str, Any], refusal: str = "") -> Kept:
        """Publish an engine, or the reason why there is none, in one step."""
        folder = self._root / key.digest
        with draft_folder(folder, replace=True) as temporary:
            if plan:
                (temporary / PLAN).write_bytes(plan)
            digest = sha256(temporary / PLAN) if plan else ""
            record = {"key": key.to_dict(), "plan_sha256": digest, "refusal": refusal, "report": report}
            write_json(temporary / RECORD, record)
        return Kept(folder, plan, report, refusal)

    @contextlib.contextmanager
    def building(self, key: Key) -> Iterator[None]:
        """The one process that builds `key`; others wait here and then find it.

        The lock goes with its process, however that ends; what a killed build left is swept away.
        """
        with self._lock(key) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("another process is building this engine; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            for debris in self._root.glob(f".{key.digest}.*"):
                shutil.rmtree(debris, ignore_errors=True)
            yield

    def _lock(self, key: Key) -> IO[str]:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            return (self._root / f"{key.digest}.lock").open("w")
        except OSError as error:
            raise EdgeposeError(
                f"{self._root}: engines cannot be kept there ({error.strerror}); choose another folder with "
                "--engines or EDGEPOSE_ENGINES"
            ) from error

    def timings(self, board: Board) -> bytes:
        """The saved kernel timings of this release and GPU, which make a build fast; empty without any."""
        path = self._timings(board)
        return path.read_bytes() if path.is_file() else b""

    def keep_timings(self, board: Board, data: bytes) -> None:
        """Save them for the next build."""
        with draft_file(self._timings(board)) as temporary:
            temporary.write_bytes(data)

    def _timings(self, board: Board) -> Path:
        return self._root / f"timings-{board.tensorrt}-sm{board.sm}.cache"

    def default(self, graph: str, board: Board) -> dict[str, Any] | None:
        """What `keep_default` was given for the graph of this identity; None before that."""
        path = self._default(graph, board)
        return dict(read_json(path, "a choice of precision")) if path.is_file() else None

    def keep_default(self, graph: str, board: Board, precision: str, report: dict[str, Any]) -> None:
        """Remember the best precision, with the report that says why."""
        choice = {"graph": graph, "board": asdict(board), "precision": precision, "report": report}
        write_json(self._default(graph, board), choice)

    def _default(self, graph: str, board: Board) -> Path:
        return self._root / f"default-{_digest([graph, asdict(board)])}.json"
