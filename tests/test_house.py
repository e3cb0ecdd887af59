"""The architecture as tests: where files may lie, which verbs exist, what a bare board can import."""

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import click
import pytest

from edgepose.runtime.cli import VERBS
from edgepose.runtime.errors import SOURCE

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("training", "compression", "export", "calibration", "runtime")


@pytest.mark.parametrize("stage", STAGES)
def test_no_module_lies_where_it_would_break_the_namespace(stage: str) -> None:
    strays = [*(ROOT / stage).glob("*.py"), *(ROOT / stage / "edgepose").glob("*.py")]
    assert strays == []
    assert (ROOT / stage / "edgepose" / stage / "py.typed").is_file()
    assert (ROOT / stage / "README.md").is_file()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_of_the_table_is_a_command_of_that_name(verb: str) -> None:
    module, _, name = VERBS[verb].target.partition(":")
    command = getattr(importlib.import_module(module), name)
    assert isinstance(command, click.Command)
    assert command.name == verb


def test_every_optional_library_has_a_source() -> None:
    """A library that pyproject.toml lists for an extra can be named in a MissingLibrary sentence."""
    modules = {"opencv-python-headless": "cv2", "pyyaml": "yaml", "ansible-core": "ansible"}
    for line in requires("edgepose") or []:
        name, extra = re.match(r"[\w.-]+", line), "extra ==" in line
        if extra and name and name[0] != "edgepose":
            assert modules.get(name[0].lower(), name[0].replace("-", "_")) in SOURCE, line


BARE = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name + " is not on this board", name=name)
sys.meta_path.insert(0, Absent())
import edgepose.runtime.cli
"""
IMPORTS = """
names = [m.name for m in pkgutil.walk_packages(edgepose.runtime.__path__, "edgepose.runtime.")]
for name in (*names, *(edgepose.runtime.cli.VERBS[verb].target.partition(":")[0] for verb in {verbs!r})):
    importlib.import_module(name)
print(len(names))
"""
HELPS = """
from edgepose.runtime.cli import VERBS, edgepose, guarded
for verb in VERBS:
    print(verb, guarded(lambda: edgepose.main([verb, "--help"], standalone_mode=False)), file=sys.stderr)
"""
BOARD_VERBS = ("doctor", "verify", "build", "bench", "stream")
WORKSTATION = {module for module, source in SOURCE.items() if "workstation" in source}


def _on_a_bare_board(script: str) -> subprocess.CompletedProcess[str]:
    """The board of `pip install edgepose[stream]`: what is forbidden here cannot be imported at all."""
    bare = BARE.format(absent={*WORKSTATION, "gi", "tensorrt", "pycuda", "cuda"})
    done = subprocess.run([sys.executable, "-c", bare + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_what_a_board_runs_imports_without_the_workstation_or_gstreamer() -> None:
    assert int(_on_a_bare_board(IMPORTS.format(verbs=BOARD_VERBS)).stdout) >= 15


def test_every_verb_tells_a_bare_board_of_itself_or_of_the_library_it_lacks() -> None:
    told = _on_a_bare_board(HELPS).stderr
    codes = dict(re.findall(rf"^({'|'.join(VERBS)}) (\d+)$", told, re.MULTILINE))
    assert codes.keys() == VERBS.keys()
    assert {codes[verb] for verb in BOARD_VERBS} == {"0"}
    assert set(codes.values()) == {"0", "3"}
    sentences = re.findall(r"^edgepose: \w+ cannot be imported \(.*\); install it: pip ", told, re.MULTILINE)
    assert len(sentences) == list(codes.values()).count("3")
    assert "Traceback" not in told


def test_help_lists_every_verb_within_a_third_of_a_second_of_cpu() -> None:
    """DESIGN.md section 3: help answers with no heavy import. CPU time of the child, not the wall clock."""
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "edgepose.runtime.cli"], capture_output=True, text=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode in (0, 2)
    assert all(re.search(rf"^  {verb} ", done.stdout + done.stderr, re.MULTILINE) for verb in VERBS)
    assert spent < 0.3
