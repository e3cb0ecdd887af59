"""ONNX Runtime on the CPU: the backend that works everywhere and runs the same quantized file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgepose.runtime.backend import Array
from edgepose.runtime.errors import EdgeposeError, require

# It turns quantized Linear layers back into float Gemm: INT8 at 0.55 of FP32's speed.
DISABLED = ["MatMulAddFusion"]

CPUINFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni"}  # as Linux names them


def session_options(threads: int = 0) -> Any:
    """An onnxruntime SessionOptions for these graphs; `threads` 0 lets it choose.

    Raises MissingLibrary without onnxruntime.
    """
    options = require("onnxruntime").SessionOptions()
    options.intra_op_num_threads = threads
    if not adds_in_32_bits():
        # 18.7 dB of signal to noise instead of 27.6 on the compression tests' network. This takes the slower
        # kernels that are exact; with VNNI all are, and these took 1.7 times as long.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@cache
def adds_in_32_bits(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this processor is known to add 8-bit products without overflow.

    x86 without VNNI adds pairs of them in 16 bits.
    """
    try:
        flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return not VNNI.isdisjoint(flags)


class OnnxRuntimeBackend:
    """One InferenceSession with the settings measured for these graphs."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        ort = require("onnxruntime")
        options = session_options(threads)
        options.log_severity_level = 3
        # Spinning threads cost 107 % of a core instead of 23 % at the same frame rate.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=DISABLED,
            )
        except Exception as error:  # onnxruntime raises plain RuntimeError subclasses of its own
            raise EdgeposeError(f"{path.name}: ONNX Runtime cannot load it: {error}") from error
        self._names = [output.name for output in self._session.get_outputs()]

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | None, ...], type[np.generic]]]:
        """Shapes and types by name; None where the size is open, as the batch is."""
        return {
            entry.name: (
                tuple(size if isinstance(size, int) else None for size in entry.shape),
                np.int32 if entry.type == "tensor(int32)" else np.float32,
            )
            for entry in self._session.get_inputs()
        }

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        return dict(zip(self._names, self._session.run(None, dict(feeds)), strict=True))

    def close(self) -> None:
        """Free the session."""
        del self._session

    def __enter__(self) -> OnnxRuntimeBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
