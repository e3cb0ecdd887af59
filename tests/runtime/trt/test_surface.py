"""edgepose's TensorRT modules against the real surface of every release, by mypy; needs no TensorRT."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trt_surface import RELEASES, surface
from trt_surface.stubs import write_stub

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted((ROOT / "runtime/edgepose/runtime/trt").glob("*.py"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy learns about numpy serves the next release too."""
    return tmp_path_factory.mktemp("mypy")


def findings(files: list[Path], release: str, folder: Path, cache: Path) -> list[str]:
    """mypy's errors in `files` when `tensorrt` is that release."""
    write_stub(release, folder)
    config = folder / "mypy.ini"
    config.write_text(
        "[mypy]\nstrict = True\nnamespace_packages = True\nexplicit_package_bases = True\n"
        "follow_imports = silent\nwarn_unused_ignores = False\ndisallow_subclassing_any = False\n"
        f"mypy_path = {ROOT / 'runtime'}:{folder}\ncache_dir = {cache}\n"
        "[mypy-pycuda.*,cuda.*,cv2.*,onnxruntime.*]\nignore_missing_imports = True\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), *map(str, files)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "MYPYPATH": ""}
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


@pytest.mark.parametrize("release", RELEASES)
def test_the_modules_fit_the_release(release: str, tmp_path: Path, cache: Path) -> None:
    assert len(MODULES) > 8
    assert findings(MODULES, release, tmp_path, cache) == []


OLD_HABITS = """
import tensorrt as trt
def old(config: trt.IBuilderConfig, context: trt.IExecutionContext, builder: trt.Builder) -> None:
    config.set_flag(trt.BuilderFlag.INT8)
    config.max_workspace_size = 1 << 20
    context.execute_async_v2([0], 0)
    config.set_flag(1)
    trt.IInt8EntropyCalibrator2
    builder.create_network(0).num_layers
"""


@pytest.mark.parametrize(
    ("release", "wrong"), [("8.6", {7, 9}), ("11.4", {4, 5, 6, 7, 8, 9})], ids=["8.6", "11.4"]
)
def test_a_release_refuses_what_it_lacks(release: str, wrong: set[int], tmp_path: Path, cache: Path) -> None:
    """The same lines are right or wrong by the release; flags by number always wrong."""
    (tmp_path / "old.py").write_text(OLD_HABITS)
    lines = findings([tmp_path / "old.py"], release, tmp_path, cache)
    assert {int(line.split(":")[1]) for line in lines} == wrong, lines


def test_the_surfaces_say_what_the_releases_are_known_for() -> None:
    """NVIDIA's migration notes, written down by hand."""
    flags = {release: surface(release)["names"]["BuilderFlag"]["values"] for release in RELEASES}
    assert {release for release, values in flags.items() if "INT8" not in values} == {"11.0", "11.4"}
    assert (flags["8.6"]["REFIT"], flags["10.3"]["REFIT"]) == (5, 4)
    strong = {
        release: surface(release)["names"]["NetworkDefinitionCreationFlag"]["values"].get("STRONGLY_TYPED")
        for release in RELEASES
    }
    assert strong == {"8.5": None, "8.6": None} | dict.fromkeys(("10.3", "10.7", "10.13", "10.16"), 1) | {
        "11.0": 0,
        "11.4": 0,
    }
    assert "builder_optimization_level" not in surface("8.5")["names"]["IBuilderConfig"]["writable"]
