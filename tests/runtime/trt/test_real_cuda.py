"""The real pycuda and cuda-python on a driver of plain memory: the runner's tests once more, without a GPU.

`make test-cuda` installs both; where one is missing its test is skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import fakecuda
import pytest

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import HardwareError, MissingLibrary
from edgepose.runtime.trt import driver, nvrtc

ROOT = Path(__file__).resolve().parents[3]
MODULES = {"pycuda": "pycuda", "cuda-python": "cuda"}

# What of test_frames.py is about CUDA alone: the kernel, and graphs where the library has them.
WITH_PICTURES = (
    *(
        "reaches_the_engine",
        "in_one_piece",
        "lies_in_memory",
        "given_half",
        "exhausted_memory",
        "another_gpu",
    ),
    *("one_graph", "part_of_the_graph", "step_by_step"),
)

needs_compiler = pytest.mark.skipif(
    fakecuda.compiler() is None, reason="no C compiler (cc) to build the driver"
)


@needs_compiler
def test_the_driver_is_asked_through_its_real_interface(tmp_path: Path, monkeypatch) -> None:
    """By ctypes alone, so it needs neither library."""
    monkeypatch.setattr(driver, "LIBRARY", str(fakecuda.build(tmp_path, [])))
    gpu = fakecuda.FakeGpu(driver.load())
    gpu.sm = 72
    assert driver.require_gpu() == driver.Gpu("Orin", 72, True, "13.0")
    gpu.faults.no_driver = True
    with pytest.raises(HardwareError, match="cuInit says error 100"):
        driver.require_gpu()
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-not-here.so.1")
    with pytest.raises(HardwareError, match="no CUDA driver"):
        driver.require_gpu()


def installed(library: str) -> list[Path]:
    """The shared objects of the library that ask the driver for functions; skips without it."""
    found = importlib.util.find_spec(MODULES[library])
    if found is None:
        pytest.skip(f"{library} is not installed; `make test-cuda` installs it")
    places = [Path(place) for place in found.submodule_search_locations or []]
    return [path for place in places for path in place.parent.glob(f"{MODULES[library]}/**/*driver*.so")]


def passed(folder: Path, arguments: list[str], **more: str) -> str:
    """What pytest says in a process of its own, on the fake driver that lies in `folder`."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), **more}
    environment["LD_PRELOAD"] = str(folder / fakecuda.NAME)  # pycuda looks its functions up in the process
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    return done.stdout


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("library", MODULES)
def test_the_runner_works_on_the_real_library(library: str, tmp_path: Path) -> None:
    users = installed(library)
    fakecuda.build(tmp_path, users if library == "pycuda" else [])
    tests = ["tests/runtime/trt/test_runner.py", "tests/runtime/trt/test_frames.py"]
    selected = f"test_runner or {' or '.join(WITH_PICTURES)}"
    passed(tmp_path, [*tests, "-k", selected], EDGEPOSE_TEST_CUDA=library)


@needs_compiler
@pytest.mark.slow
def test_the_boards_tests_are_rehearsed(bundle: Bundle, tmp_path: Path) -> None:
    """`make test-board` as a board would run it, but for TensorRT: both libraries, and NVRTC's own code."""
    users, _ = (installed(library) for library in MODULES)
    try:
        nvrtc.load()
    except MissingLibrary as error:
        pytest.skip(str(error))
    fakecuda.build(tmp_path, users)
    paths = [str(ROOT / "tests/doubles/rehearsal"), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {"EDGEPOSE_BOARD_BUNDLE": str(bundle.path), "PYTHONPATH": os.pathsep.join(paths)}
    engines = {"EDGEPOSE_BOARD_ENGINES": str(tmp_path / "engines")}
    assert "skipped" not in passed(tmp_path, ["-m", "board", "tests/board"], **more, **engines)
