"""What `edgepose doctor` finds: ok is what was tried, and what is missing has its remedy."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgepose.runtime import examination
from edgepose.runtime.errors import SOURCE, HardwareError
from edgepose.runtime.examination import Finding, examine
from edgepose.runtime.stream.encoder import CODECS, Codec
from edgepose.runtime.trt.driver import Gpu

# Installed, and fails at work, as nvv4l2h264enc does on a board without the chip.
PRETENDER = Codec("identity", False, "identity error-after=2")
GPU = Gpu("Orin", 87, True, "12.6")


def found(what: str) -> Finding | None:
    return next((finding for finding in examine() if finding.what == what), None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose GPU answers and has no library to reach it through."""
    monkeypatch.setattr(examination, "require_gpu", lambda: GPU)
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    return monkeypatch


def test_an_encoder_that_does_not_work_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")
    monkeypatch.setattr(examination, "CODECS", (PRETENDER,))
    assert found("H.264 encoder") == Finding(
        "stream", "H.264 encoder", "missing", "no H.264 encoder works here (tried identity)", SOURCE["gi"]
    )


def test_the_encoder_is_the_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")
    x264 = next(codec for codec in CODECS if codec.element == "x264enc")
    monkeypatch.setattr(examination, "CODECS", (PRETENDER, x264))
    assert found("H.264 encoder") == Finding("stream", "H.264 encoder", "ok", "x264enc")


@pytest.mark.parametrize(
    ("machine", "exact", "status", "told"),
    [
        ("x86_64", True, "ok", "VNNI: faster than FP32"),
        ("AMD64", False, "absent", "no VNNI: INT8 is about as fast as FP32"),
        ("aarch64", False, "ok", "not been measured"),
    ],
)
def test_what_int8_brings_on_this_processor(
    machine: str, exact: bool, status: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(examination, "adds_in_32_bits", lambda: exact)
    line = found("INT8 on the CPU")
    assert line is not None
    assert (line.purpose, line.status) == ("stream", status)
    assert told in line.detail


def test_a_gpu_without_a_cuda_library_is_told_how_to_get_one(gpu: pytest.MonkeyPatch) -> None:
    lacking = found("pycuda")
    assert lacking is not None
    assert (lacking.purpose, lacking.status, lacking.remedy) == ("build", "missing", SOURCE["pycuda"])
    assert "pycuda.driver cannot be imported" in lacking.detail


def test_either_cuda_library_is_enough(gpu: pytest.MonkeyPatch) -> None:
    gpu.setitem(sys.modules, "cuda.bindings.driver", ModuleType("driver"))
    library = found("cuda-python")
    assert library is not None
    assert library.status == "ok"
    assert found("pycuda") is None


def test_a_machine_without_a_gpu_is_asked_for_no_cuda_library(gpu: pytest.MonkeyPatch) -> None:
    def no_gpu() -> Gpu:
        raise HardwareError("no CUDA driver on this machine")

    gpu.setattr(examination, "require_gpu", no_gpu)
    assert found("CUDA driver") == Finding("build", "CUDA driver", "absent", "no CUDA driver on this machine")
    assert found("pycuda") is None
    assert found("cuda-python") is None


@pytest.mark.parametrize(("path", "status"), [("", "absent"), ("{}", "ok")])
def test_a_machine_without_systemd_is_none_to_deploy_to(
    path: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systemctl").touch(mode=0o755)
    monkeypatch.setenv("PATH", path.format(tmp_path))
    assert ("deploy", "systemd", status) in [(each.purpose, each.what, each.status) for each in examine()]
