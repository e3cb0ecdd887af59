"""What the service runs: `python -m edgepose.runtime.deploy.start FOLDER` becomes `edgepose stream`.

A release that was on trial when its deployment was killed, or the power went, is not started: nobody has seen
it stream. What was live before it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

from edgepose.runtime.child import command_of
from edgepose.runtime.cli import guarded
from edgepose.runtime.deploy.shelf import Release, Shelf
from edgepose.runtime.deploy.streaming import LOGIN
from edgepose.runtime.errors import EdgeposeError

log = logging.getLogger(__name__)


def trusted(shelf: Shelf) -> Release:
    """What to start. Raises EdgeposeError when nothing is live."""
    if shelf.on_trial:
        with contextlib.suppress(EdgeposeError), shelf.locked():  # somebody holds it: watching this trial
            shelf.go_back()
            log.warning("the last deployment did not come to its end; what was live before it is started")
    live = shelf.live()
    if live is None:
        raise EdgeposeError(f"{shelf.folder}: nothing is deployed here; edgepose deploy BUNDLE --here")
    return live


def main() -> None:
    """Never returns when a stream was started."""
    release = trusted(Shelf(Path(sys.argv[1])))
    streaming = release.streaming()
    refine = () if release.second is None else ("--refine", release.second)
    words = command_of("stream", "--bundle", release.bundle, *refine, *streaming.options)
    environment = os.environ | ({LOGIN: streaming.login} if streaming.login else {})
    os.execve(words[0], words, environment)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    sys.exit(guarded(main))
