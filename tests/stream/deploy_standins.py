"""What the tests of deployments share: bundles that differ, a port for each stream, a board of one's own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgepose.runtime.bundle import Bundle

SYSTEMD = Path(__file__).resolve().parents[1] / "doubles" / "systemd"
UNIT = "edgepose-pose.service"


def golden(still: Path, path: Path, note: str = "", moved_px: int = 0) -> Bundle:
    """A copy of a still bundle with golden vectors; `note` makes it another one, `moved_px` wrong ones."""
    shutil.copy2(still, path)
    bundle, packed = Bundle.open(path), io.BytesIO()
    arrays = {
        f"{graph}.{view}/{name}": moved(name, array, moved_px)
        for graph in bundle.spec.graphs
        for name, array in constants(bundle, graph).items()
        for view in ("fp32", "int8.ort")
    }
    np.savez(packed, frames=np.zeros((1, bundle.spec.height, bundle.spec.width, 3), np.uint8), **arrays)
    return bundle.with_files({"golden.npz": packed.getvalue(), "README.md": note.encode()})


def moved(name: str, array: np.ndarray, pixels: int) -> np.ndarray:
    """The joints of an output, elsewhere."""
    if name == "keypoints":
        return array + np.float32(pixels)
    return np.roll(array, pixels, -1) if name.endswith("heatmaps") else array


def constants(bundle: Bundle, graph: str) -> dict[str, np.ndarray]:
    """What a graph of `conftest.constant` always answers."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle.graph(graph, "fp32"))
    held = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    return {one.name: held[f"{one.name}_value"] for one in model.graph.output}


def options(port: int, *more: str) -> list[str]:
    """How a release of the tests is streamed."""
    return ["--source", "synthetic:seed=1,size=160x128,fps=25", "--rtsp", f":{port}/pose", *more]


@dataclass(frozen=True)
class Board:
    """Folders of a user on a board whose systemd is the stand-in."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STANDIN_SYSTEMD": str(self.folder / "systemd"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "PATH": f"{SYSTEMD}:{os.environ['PATH']}",
        }

    @property
    def shelf(self) -> Path:
        return self.folder / "data" / "edgepose" / "deployed" / "pose"

    def releases(self) -> set[str]:
        """On its disk."""
        return {path.name for path in (self.shelf / "releases").iterdir()}

    def linked(self, name: str) -> str | None:
        """The release that a link of the shelf leads to."""
        link = self.shelf / name
        return link.readlink().name if link.is_symlink() else None

    def state(self) -> str:
        """Of the service, as the manager sees it."""
        return (self.folder / "systemd" / f"{UNIT}.state").read_text()

    def process(self) -> str:
        """The number of the process that runs the service's processes; another one after every start."""
        return (self.folder / "systemd" / f"{UNIT}.pid").read_text()

    def starts(self) -> int:
        """How often a process was started."""
        lines = (self.folder / "systemd" / f"{UNIT}.log").read_text().splitlines()
        return sum(line.startswith("@") for line in lines)

    def systemctl(self, *words: str) -> None:
        command = [str(SYSTEMD / "systemctl"), "--user", "--no-ask-password", *words]
        subprocess.run(command, check=True, env=os.environ | self.environment)

    def command(self) -> Path:
        """`edgepose` of this board, for who comes from outside."""
        path = self.folder / "edgepose"
        told = "".join(f"export {name}='{value}'\n" for name, value in self.environment.items())
        path.write_text(f'#!/bin/sh\n{told}exec {sys.executable} -m edgepose.runtime.cli "$@"\n')
        path.chmod(0o755)
        return path

    def end(self) -> None:
        """Whatever runs there; nothing may be left."""
        for pid in (self.folder / "systemd").glob("*.pid"):
            self.systemctl("disable", "--now", "--quiet", pid.stem)
        end_s = time.monotonic() + 10
        while left := running(str(self.folder)):
            assert time.monotonic() < end_s, left
            time.sleep(0.05)


def running(word: str) -> list[str]:
    """The command lines of all processes that name it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(file.read_text(errors="replace").replace("\0", " "))
    return [line for line in found if word in line]
