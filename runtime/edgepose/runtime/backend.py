"""Running a bundle's graph: one small protocol, one opener; the inference libraries stay behind it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError

log = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]

# The view that ONNX Runtime's CPU kernels fuse, for each precision (DESIGN.md section 4).
CPU_VIEWS = {"fp32": "fp32", "int8": "int8.ort"}
DEVICES = ("cpu", "tensorrt")


class Backend(Protocol):
    """One loaded graph. Owned by one thread; `close` (or the `with` block) frees it."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_backend(
    bundle: Bundle, precision: str, graph: str = "pose", threads: int = 0, device: str = "cpu"
) -> Backend:
    """The bundle's graph on ONNX Runtime's CPU provider (`threads` 0 lets it choose) or on TensorRT.

    On TensorRT an engine is built when there is none yet, which takes minutes, and must reproduce the golden
    vectors; else it gives way, loudly, down to ONNX Runtime. The settings `edgepose build` had hold, and
    `precision` "default" is what it found best. Raises EdgeposeError for a precision the bundle does not
    have, MissingLibrary or HardwareError for what this machine lacks.
    """
    if device not in DEVICES:
        raise EdgeposeError(f"device {device!r}: choose one of {', '.join(DEVICES)}")
    if device == "tensorrt":
        return _open_engine(bundle, precision, graph, threads)
    from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend

    if precision not in CPU_VIEWS:
        raise EdgeposeError(f"precision {precision!r}: choose one of {', '.join(CPU_VIEWS)}")
    return OnnxRuntimeBackend(bundle.graph(graph, CPU_VIEWS[precision]), threads)


def _open_engine(bundle: Bundle, precision: str, graph: str, threads: int) -> Backend:
    from edgepose.runtime.trt.engines import Engines, Options

    best, engines = Engines(bundle, graph, Options()).remembered()
    backend, _ = engines.live(best if precision == "default" else precision)
    if backend is not None:
        return backend
    has_int8 = f"{graph}.{CPU_VIEWS['int8']}.onnx" in bundle.files
    safest = "int8" if has_int8 and precision in ("int8", "default") else "fp32"
    log.warning("no engine can be used here; ONNX Runtime runs the %s model on the CPU", safest)
    return open_backend(bundle, safest, graph, threads)
