"""What a board keeps of one stream: the release that is live, the one before it, and one on trial.

NAME/releases/ID has `bundle`, `refine` where a second network refines, and stream.json. Three links lead to
releases: `live` is what the service starts, `before` what one can go back to, `trial` stands while nobody
knows whether `live` streams. Every step is one rename, so that a power cut leaves either what was or what is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepose.runtime.bundle import INDEX, LEDGER, SEAL, Bundle
from edgepose.runtime.deploy.streaming import Streaming
from edgepose.runtime.drafts import draft_folder, read_json
from edgepose.runtime.errors import EdgeposeError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")  # also a part of a unit's name
_ID = 12  # hex digits of a release's name
_FIRST, _SECOND = "bundle", "refine"  # folders of a release


def default_root() -> Path:
    """Where streams are kept: below the user's data folder."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "edgepose" / "deployed"


@dataclass(frozen=True, slots=True)
class Release:
    """A bundle, or a pair of them, and how it is streamed."""

    folder: Path

    @property
    def id(self) -> str:
        """Of the bundles' bytes and of how they are streamed."""
        return self.folder.name

    @property
    def bundle(self) -> Path:
        return self.folder / _FIRST

    @property
    def second(self) -> Path | None:
        """The bundle that refines what the other one finds."""
        path = self.folder / _SECOND
        return path if path.is_dir() else None

    def streaming(self) -> Streaming:
        """Raises EdgeposeError when its file is damaged."""
        return Streaming.read(self.folder)


class Shelf:
    """The folder of one stream. Whoever changes it holds `locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, name: str) -> Shelf:
        """Raises EdgeposeError when `name` is none for a service."""
        if not NAME.fullmatch(name):
            raise EdgeposeError(f"--name {name!r}: give small letters, digits and dashes, such as door-2")
        return cls(default_root() / name)

    @property
    def name(self) -> str:
        return self.folder.name

    def live(self) -> Release | None:
        """What the service starts."""
        return self._linked("live")

    def before(self) -> Release | None:
        """What was live before it, and streamed."""
        before = self._linked("before")
        return before if before != self.live() else None

    @property
    def on_trial(self) -> bool:
        """Whether nobody has seen yet that `live` streams."""
        return (self.folder / "trial").is_symlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone on this shelf. Raises EdgeposeError when somebody else is deploying."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise EdgeposeError(
                    f"{self.name}: another deployment is at work here; wait for its end"
                ) from error
            yield

    def stage(self, bundle: Bundle, streaming: Streaming, second: Bundle | None = None) -> Release:
        """Keep a release, all of it or nothing; nothing that runs notices.

        `second` is the bundle that refines what the first one finds.
        """
        release = Release(self.folder / "releases" / identity(bundle, streaming, second))
        if release.folder.exists():
            return release
        with draft_folder(release.folder) as draft:
            _keep(bundle, draft / _FIRST)
            if second is not None:
                _keep(second, draft / _SECOND)
            streaming.write(draft)
            os.sync()  # the links may reach the disk before what they link to
        return release

    def try_out(self, release: Release) -> None:
        """Make it what the service starts next, on trial."""
        live = self.live()
        self._link("trial", live or Release(self.folder))
        self._link("live", release)

    def settle(self) -> None:
        """The trial went well: remember what was live before, and forget older releases."""
        was = self._linked("trial")
        live = self.live()
        if was is not None and was != live:
            self._link("before", was)
        (self.folder / "trial").unlink()
        kept = {release.id for release in (live, self.before()) if release}
        for folder in (self.folder / "releases").iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder)

    def go_back(self) -> Release | None:
        """The trial failed, or nobody knows: what was live is live again. None: there was nothing."""
        was = self._linked("trial")
        if was is None:
            (self.folder / "live").unlink(missing_ok=True)
        else:
            self._link("live", was)
        (self.folder / "trial").unlink()
        return was

    def discard(self, release: Release) -> None:
        """Forget a release that is neither live nor to be gone back to."""
        if release not in (self.live(), self.before()):
            shutil.rmtree(release.folder)

    def _linked(self, name: str) -> Release | None:
        link = self.folder / name
        if not link.is_symlink():
            return None
        target = self.folder / link.readlink()
        return Release(target) if target != self.folder else None

    def _link(self, name: str, release: Release) -> None:
        """A link from `name`; to the shelf's own folder means: to none."""
        draft = self.folder / f".{name}"
        draft.unlink(missing_ok=True)  # of a kill
        draft.symlink_to(os.path.relpath(release.folder, self.folder))
        draft.replace(self.folder / name)


def _keep(bundle: Bundle, folder: Path) -> None:
    folder.mkdir()
    for name in (INDEX, *bundle.files):
        shutil.copy2(bundle.folder / name, folder / name)
    Bundle.open(folder)  # a disk may lose what it was given


def _content(bundle: Bundle) -> dict[str, Any]:
    """Of a bundle's index what makes it this one: its rows in a ledger, of here or elsewhere, do not."""
    index: dict[str, Any] = read_json(bundle.folder / INDEX, "a bundle index")
    files = {name: digest for name, digest in bundle.files.items() if name != LEDGER}
    return {key: value for key, value in index.items() if key != SEAL} | {"files": files}


def identity(bundle: Bundle, streaming: Streaming, second: Bundle | None = None) -> str:
    """The name of the release that these make."""
    first, *more = (_content(one) for one in (bundle, second) if one)
    text = json.dumps([first, streaming.to_dict(), *more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_ID]
