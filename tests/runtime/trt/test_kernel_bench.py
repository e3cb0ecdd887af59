"""The kernel's bench: as many bytes as the copy moves, in turns, and a gate on the share."""

from __future__ import annotations

import ctypes
from typing import Any

import host_kernel
import numpy as np
import pytest

from edgepose.runtime.bench import Timing
from edgepose.runtime.cli import guarded
from edgepose.runtime.preprocess import prepare
from edgepose.runtime.spec import Spec
from edgepose.runtime.trt import kernel_bench
from edgepose.runtime.trt.cuda import LIBRARIES, open_cuda
from edgepose.runtime.trt.kernel import SOURCE

pytestmark = pytest.mark.skipif(
    host_kernel.compiler() is None, reason="no C++ compiler (c++) to build the kernel for the host"
)
SPEC = Spec("qrpose", "qrpose_tiny", 32, 32)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_copy_moves_the_bytes_that_the_kernel_reads_and_writes(
    library: str, install, monkeypatch
) -> None:
    gpu = install("10.3")
    cuda, copied, written, seen = open_cuda(library), [], [], []
    original_copy, original_launch, original_wait = type(cuda).copy, type(cuda).launch, type(cuda).wait

    def copy(self: Any, target: int, origin: int, size: int, stream: int) -> None:
        original_copy(self, target, origin, size, stream)
        copied.append(size)

    def launch(self: Any, kernel: Any, blocks: Any, arguments: Any, stream: int) -> None:
        original_launch(self, kernel, blocks, arguments, stream)
        written.append(arguments[2])

    def wait(self: Any, stream: int) -> None:
        original_wait(self, stream)
        if written:
            seen.append(np.frombuffer(ctypes.string_at(written[-1], 4 * 3 * 32 * 32), np.float32))

    monkeypatch.setattr(type(cuda), "copy", copy)
    monkeypatch.setattr(type(cuda), "launch", launch)
    monkeypatch.setattr(type(cuda), "wait", wait)
    found = kernel_bench.shares(cuda, host_kernel.cubin(SOURCE.read_bytes(), gpu.sm), SPEC, (96, 64), 3)
    cuda.close()
    assert [share.format for share in found] == ["NV12", "RGBA", "BGR"]
    assert all(0 < share.low <= share.of_copy <= share.high for share in found)
    moved = [2 * size - 4 * 3 * 32 * 32 for size in dict.fromkeys(copied)]
    assert moved == [96 * 64 * 3 // 2, 96 * 64 * 4, 96 * 64 * 3]
    assert len(copied) == len(written)
    fresh = np.full((64, 96, 3), 0xCB, np.uint8)  # what memory is full of
    np.testing.assert_allclose(seen[-1].reshape(1, 3, 32, 32), prepare(fresh, SPEC)[0], atol=1e-6)
    assert (gpu.blocks, gpu.pinned, gpu.has_context()) == ({}, {}, False)


@pytest.mark.parametrize(("ratio", "code"), [(1.40, 0), (1.45, 1)])
def test_less_than_is_asked_fails(ratio: float, code: int, bundle, install, monkeypatch, capsys) -> None:
    install("10.3")
    timings = [Timing("copy", 2, 2, 1, 1, 1), Timing("kernel", 2 * ratio, 3, ratio, 0.9 * ratio, 1.1 * ratio)]
    monkeypatch.setattr(kernel_bench, "alternate", lambda work, rounds: timings)
    monkeypatch.setattr(kernel_bench, "compiled", host_kernel.cubin)
    arguments = [str(bundle.path)]
    assert guarded(lambda: kernel_bench.main(arguments, standalone_mode=False)) == code
    told = capsys.readouterr()
    assert "Orin sm_87: 3840x2160 to 32x32" in told.out
    assert f"NV12: {1 / ratio:.2f} of the copy's bandwidth" in told.out
    assert ("NV12, RGBA, BGR at less than 0.7 of the copy's bandwidth" in told.err) == bool(code)
