"""The real pycuda and cuda-python on a driver of plain memory: the runner's tests once more, without a GPU.

`make test-cuda` installs both; where one is missing its test is skipped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import fakecuda
import pytest

from edgepose.runtime.errors import HardwareError, MissingLibrary
from edgepose.runtime.trt import driver, nvrtc
from edgepose.runtime.trt.kernel import SOURCE

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


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("library", MODULES)
def test_the_runner_works_on_the_real_library(library: str, tmp_path: Path) -> None:
    found = importlib.util.find_spec(MODULES[library])
    if found is None:
        pytest.skip(f"{library} is not installed; `make test-cuda` installs it")
    places = [Path(place) for place in found.submodule_search_locations or []]
    users = [path for place in places for path in place.parent.glob(f"{MODULES[library]}/**/*driver*.so")]
    fakecuda.build(tmp_path, users if library == "pycuda" else [])
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "LD_PRELOAD": str(
            tmp_path / fakecuda.NAME
        ),  # pycuda's tables of functions are looked up in the process
        "EDGEPOSE_TEST_CUDA": library,
        "EDGEPOSE_TEST_CUBINS": str(tmp_path),
    }
    with contextlib.suppress(MissingLibrary):  # without NVRTC the fake driver takes a note for code
        for sm in (75, 87):
            (tmp_path / f"{sm}.cubin").write_bytes(nvrtc.compiled(SOURCE.read_bytes(), sm))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/runtime/trt/test_runner.py",
        "tests/runtime/trt/test_frames.py",
        "-k",
        f"test_runner or {' or '.join(WITH_PICTURES)}",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
