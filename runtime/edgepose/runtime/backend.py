"""Running a bundle's graph: one small protocol, one opener; the inference libraries stay behind it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError

Array = npt.NDArray[np.generic]

# The view that ONNX Runtime's CPU kernels fuse, for each precision (DESIGN.md section 4).
CPU_VIEWS = {"fp32": "fp32", "int8": "int8.ort"}


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


def open_backend(bundle: Bundle, precision: str, graph: str = "pose", threads: int = 0) -> Backend:
    """The bundle's graph on ONNX Runtime's CPU provider; `threads` 0 lets it choose.

    Raises EdgeposeError for a precision the bundle does not have, MissingLibrary without onnxruntime.
    """
    from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend

    if precision not in CPU_VIEWS:
        raise EdgeposeError(f"precision {precision!r}: choose one of {', '.join(CPU_VIEWS)}")
    return OnnxRuntimeBackend(bundle.graph(graph, CPU_VIEWS[precision]), threads)
