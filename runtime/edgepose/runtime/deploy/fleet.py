"""A deployment on many boards, by Ansible: it brings the bundles, and has each board do `deploy --here`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgepose.runtime.bundle import INDEX, Bundle
from edgepose.runtime.child import ERRORS, left_to
from edgepose.runtime.deploy.streaming import LOGIN
from edgepose.runtime.drafts import write_json
from edgepose.runtime.errors import EdgeposeError, HardwareError, require
from edgepose.runtime.progress import progress_bar

_PLAYS = Path(__file__).parent / "ansible"
_BOARD = re.compile(r"(?:([^-@\s][^@\s]*)@)?(\[[:.%\w]+\]|[^-\[\]:@\s][^\[\]:@\s]*)(?::(\d{1,5}))?")
_SSH = "-o BatchMode=yes -o ServerAliveInterval=30"  # asks nobody; minutes without a word are no fault
# One line for each event; the Python that GStreamer's bindings are for; UTF-8, which Ansible insists on.
_SETTINGS = {
    "ANSIBLE_CALLBACK_PLUGINS": str(_PLAYS),
    "ANSIBLE_STDOUT_CALLBACK": "edgepose_events",
    "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
    "ANSIBLE_PIPELINING": "1",  # one connection for a task instead of five
    "LC_ALL": "C.UTF-8",
}
# Tasks of the playbook: the first one, and the one that decides.
_ASKED, _LIVE = "asked for edgepose", "proves it and takes it live"
UNREACHABLE, NOT_TRIED = "unreachable", "not tried"


@dataclass(frozen=True, slots=True)
class Order:
    """What every board is to do."""

    bundle: Bundle | None  # None: to go back
    second: Bundle | None  # that refines what the other one finds, as `here.Wish` has it
    # What is not said here is as the inventory says.
    options: tuple[str, ...] | None  # of `edgepose stream`; by default those of the live release
    name: str | None  # by default pose
    command: str | None  # edgepose there; by default edgepose
    login: str | None  # as `here.Wish` has it
    patience_s: float

    def variables(self, folder: Path, wave: int) -> dict[str, Any]:
        """Of the playbook. Bundles that are no files are packed into `folder`."""
        said = {
            "edgepose_options": self.options,
            "edgepose_name": self.name,
            "edgepose_command": self.command,
        }
        return {name: value for name, value in said.items() if value is not None} | {
            "edgepose_bundle": _packed(self.bundle, folder / "bundle.edgepose"),
            "edgepose_second": _packed(self.second, folder / "second.edgepose"),
            "edgepose_environment": {} if self.login is None else {LOGIN: self.login},
            "edgepose_patience": f"{self.patience_s:g}",
            "edgepose_wave": wave,
        }


@dataclass(frozen=True, slots=True)
class Boards:
    """Which ones."""

    named: tuple[str, ...]  # [USER@]HOST[:PORT]; of an inventory its hosts and groups
    inventory: Path | None
    wave: int

    def arguments(self, folder: Path) -> list[str]:
        """For Ansible. Raises EdgeposeError for what names no board."""
        if self.inventory is not None:
            if not self.inventory.exists():
                raise EdgeposeError(f"--inventory {self.inventory}: no such file")
            return ["-i", str(self.inventory), *(["--limit", ",".join(self.named)] if self.named else [])]
        hosts = {name: _address(text) for name, text in self.aliases().items()}
        write_json(folder / "boards.json", {"all": {"hosts": hosts}})
        return ["-i", str(folder / "boards.json")]

    def aliases(self) -> dict[str, str]:
        """Names that Ansible does not read as addresses -> what the user calls the boards."""
        if self.inventory is not None:
            return {}
        return {f"board{number}": text for number, text in enumerate(dict.fromkeys(self.named), 1)}


@dataclass(slots=True)
class Result:
    """What came of one board."""

    board: str
    state: str = NOT_TRIED  # streams, kept (what it had), unreachable, not tried
    exit_code: int = 0
    problem: str = ""
    told: dict[str, Any] = field(default_factory=dict)  # `here.Deployed` as JSON

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def deployed(order: Order, boards: Boards) -> list[Result]:
    """What came of every board, in their order.

    Raises MissingLibrary without Ansible, EdgeposeError for boards that it does not find.
    """
    require("ansible")
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="edgepose-") as temporary, progress_bar() as bar:
        folder = Path(temporary)  # nobody else may read it: the variables hold the login
        write_json(folder / "order.json", order.variables(folder, boards.wave))
        aliases, task = boards.aliases(), bar.add_task("boards", total=None)
        for event in _played([*boards.arguments(folder), "-e", f"@{folder / 'order.json'}"]):
            if event["event"] == "boards":
                results = {name: Result(aliases.get(name, name)) for name in event["boards"]} | results
                bar.update(task, total=len(results))
                continue
            result = results[event["board"]]
            bar.update(task, description=f"{result.board} {event['task']}", advance=_noted(result, event))
    return list(results.values())


def _played(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """What happens while Ansible runs the playbook, as ansible/edgepose_events.py tells it.

    Raises EdgeposeError, with Ansible's words, when it came to no board. Boards at work go on by themselves
    after Ctrl-C.
    """
    command = [sys.executable, "-m", "ansible", "playbook", str(_PLAYS / "playbook.yaml"), *arguments]
    came_to_any = False
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=words, text=True, env=os.environ | _SETTINGS
        )
        with process, left_to(process) as came:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):  # a few words of Ansible's own come past the plugin
                    event = json.loads(line)
                    came_to_any = came_to_any or bool(event.get("boards"))
                    yield event
        if came:
            raise KeyboardInterrupt
        if not came_to_any:
            words.seek(0)
            told = " ".join(words.read().split()) or f"exit code {process.returncode}"
            raise EdgeposeError(f"Ansible finds no boards there: {told}")


def _noted(result: Result, event: dict[str, Any]) -> int:
    """Keep what the event says of its board; 1 when the board is done with."""
    match event["event"]:
        case "unreachable":
            result.state, result.exit_code = UNREACHABLE, HardwareError.exit_code
            result.problem = event.get("msg", "").strip()
        case "failed":
            result.state, result.exit_code = "kept", event.get("rc") or EdgeposeError.exit_code
            result.problem = _words(event)
            if event["task"] == _ASKED:
                result.problem = (
                    f"edgepose does not run there ({event.get('cmd')}: {result.problem}); install it on the "
                    "board (pip install 'edgepose[stream]'), or say by --command where it is"
                )
        case "done" if event["task"] == _LIVE:
            result.state, result.told = "streams", json.loads(event["stdout"])
        case _:
            return 0
    return 1


def _words(event: dict[str, Any]) -> str:
    """What a command, or Ansible, said last of its failure."""
    said = (event.get(key, "") for key in ("stderr", "module_stderr", "msg"))
    lines = next(filter(None, said), "").strip().splitlines()
    return lines[-1].removeprefix("edgepose: ") if lines else "it did not say why"


def _address(text: str) -> dict[str, Any]:
    found = _BOARD.fullmatch(text)
    if found is None or not 0 < int(found[3] or 22) < 65536:
        raise EdgeposeError(f"--board {text!r}: give [USER@]HOST[:PORT], such as jetson@10.0.0.7")
    known = {
        "ansible_host": found[2].strip("[]"),
        "ansible_user": found[1],
        "ansible_port": int(found[3]) if found[3] else None,
        "ansible_ssh_extra_args": _SSH,
    }
    return {name: value for name, value in known.items() if value is not None}


def _packed(bundle: Bundle | None, path: Path) -> str | None:
    """Where the bundle is one file: itself, or made at `path`."""
    if bundle is None:
        return None
    if bundle.path.is_file():
        return str(bundle.path.absolute())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (INDEX, *bundle.files):
            archive.write(bundle.folder / name, name)
    return str(path)


def require_streaming(results: Sequence[Result]) -> None:
    """Raises the error of the first board that was not reached, or kept what it had; its words are told."""
    problems = [result for result in results if result.problem]
    if not problems:
        return
    told = "; ".join(f"{result.board}: {result.problem}" for result in problems)
    untried = ", ".join(result.board for result in results if result.state == NOT_TRIED)
    rest = f"; not tried after that: {untried}" if untried else ""
    raise ERRORS.get(problems[0].exit_code, EdgeposeError)(f"{told}{rest}")
