"""A stream as a systemd service of the user who deploys: started with the machine, again when it fails.

systemd.service(5), systemd.unit(5). A user's services need no session where that user lingers, loginctl(1).
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgepose.runtime.deploy.shelf import Shelf
from edgepose.runtime.drafts import draft_file
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary

log = logging.getLogger(__name__)

_UNIT = """\
[Unit]
Description=edgepose stream {name}
StartLimitIntervalSec=0

[Service]
ExecStart={program} {words}
{environment}Restart=on-failure
RestartSec=3
RestartPreventExitStatus=2 3
TimeoutStopSec=10

[Install]
WantedBy=default.target
"""
_UNSAFE = re.compile(r"""["'\\\x00-\x1f]""")  # what systemd wants in no program's path, however quoted
_PATIENCE_S = 60  # for systemctl: a stop takes 10 s at most
_KEPT = ("EDGEPOSE_ENGINES", "XDG_CACHE_HOME")  # of the environment: where its engines lie


@dataclass(frozen=True, slots=True)
class Service:
    """The service of one shelf."""

    shelf: Shelf

    @property
    def unit(self) -> str:
        return f"edgepose-{self.shelf.name}.service"

    def text(self) -> str:
        """The unit file. It names no release: `start` looks which one is live.

        Raises EdgeposeError for paths that a unit file cannot hold.
        """
        if _UNSAFE.search(sys.executable):
            raise EdgeposeError(
                f"{sys.executable}: systemd starts no program of such a path; install edgepose elsewhere"
            )
        words = ("-m", "edgepose.runtime.deploy.start", str(self.shelf.folder))
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return _UNIT.format(
            name=self.shelf.name,
            program=_quoted(sys.executable),
            words=" ".join(map(_quoted, words)).replace("$", "$$"),
            environment="".join(
                f"Environment={_quoted(f'{name}={value}')}\n" for name, value in kept.items()
            ),
        )

    def install(self) -> None:
        """Have systemd know it, and start it with the machine. Raises as `_systemctl` does."""
        path = _folder() / self.unit
        if not path.is_file() or path.read_text(encoding="utf-8") != self.text():
            with draft_file(path) as draft:
                draft.write_text(self.text(), encoding="utf-8")
            self._systemctl("daemon-reload")
        self._systemctl("enable", "--quiet", self.unit)
        _linger()

    def restart(self) -> None:
        """Stop it, and start what is live now."""
        self._systemctl("reset-failed", self.unit, may_fail=True)
        self._systemctl("restart", self.unit)

    def stop(self) -> None:
        """Stop it, and do not start it with the machine."""
        self._systemctl("disable", "--now", "--quiet", self.unit)

    @property
    def has_failed(self) -> bool:
        """Whether systemd will not start it again by itself."""
        return self._systemctl("is-active", self.unit, may_fail=True).strip() in ("failed", "inactive")

    def last_words(self, since_s: float) -> str:
        """The last sentence of ours that it wrote since then (UTC), else its last line; or nothing."""
        if shutil.which("journalctl") is None:
            return ""
        which = ("--user", f"--user-unit={self.unit}", f"--since=@{since_s:.6f}")
        words = ("journalctl", *which, "--output=cat", "--no-pager", "--quiet")
        lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
        ours = [line for line in lines if line.startswith("edgepose: ")]
        return next(iter([*ours[-1:], *lines[-1:]]), "").strip().removeprefix("edgepose: ")

    def _systemctl(self, *words: str, may_fail: bool = False) -> str:
        """What systemctl says. Raises HardwareError when it refuses."""
        command = ("systemctl", "--user", "--no-ask-password", *words)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S, env=_with_bus()
            )
        except subprocess.TimeoutExpired as error:
            raise HardwareError(f"`{' '.join(command)}` has not ended after {_PATIENCE_S} s") from error
        if done.returncode and not may_fail:
            told = done.stderr.strip() or f"exit code {done.returncode}"
            raise HardwareError(f"`{' '.join(command)}` failed: {told}")
        return done.stdout


def require_systemd() -> None:
    """Raises MissingLibrary where no service can be started."""
    if shutil.which("systemctl") is None:
        raise MissingLibrary(
            "systemctl is not here: deploying needs systemd, which starts the stream after a power cut; in a "
            "container run `edgepose stream` itself"
        )


def _folder() -> Path:
    """Where a user's own unit files lie."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _with_bus() -> dict[str, str]:
    """The environment, with the place of the user's manager, which a session without login does not name."""
    runtime = f"/run/user/{os.geteuid()}"
    known = {"XDG_RUNTIME_DIR": runtime} if Path(runtime).is_dir() else {}
    return known | dict(os.environ)


def _linger() -> None:
    """Start with the machine, not with the first login, and outlive the last."""
    user = getpass.getuser()
    if shutil.which("loginctl") is None:
        return
    known = ("loginctl", "show-user", user, "--property=Linger", "--value")
    if subprocess.run(known, capture_output=True, text=True, check=False).stdout.strip() == "yes":
        return
    words = ("loginctl", "--no-ask-password", "enable-linger")
    if subprocess.run(words, capture_output=True, check=False).returncode:
        log.warning("the stream may end when you log out: sudo loginctl enable-linger %s", user)


def _quoted(word: str) -> str:
    """As systemd reads a word (systemd.syntax(7)), but for dollars, which it expands in arguments."""
    if "\n" in word:
        raise EdgeposeError(f"{word!r}: a path with a line break cannot stand in a unit file; move it")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
