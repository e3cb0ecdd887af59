"""Running a bundle's graph: one small protocol, one opener; the inference libraries stay behind it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary
from edgepose.runtime.preprocess import U8, Letterbox
from edgepose.runtime.topdown.crop import Regions

log = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]

# The view that ONNX Runtime's CPU kernels fuse, for each precision (DESIGN.md section 4).
CPU_VIEWS = {"fp32": "fp32", "int8": "int8.ort"}
# gpu: an engine, built if need be. auto: an engine if one was built here (`edgepose build`), else the CPU.
DEVICES = ("auto", "cpu", "gpu")
BEST = "default"  # the precision that `edgepose build` found best here; INT8 where it was not asked


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


@runtime_checkable
class FrameBackend(Backend, Protocol):
    """A backend that prepares the camera's picture itself."""

    def see(self, frame: U8) -> tuple[dict[str, Array], Letterbox]:
        """Outputs by name for a (H, W, 3) BGR frame of any size, and the way back from the input's pixels."""
        ...


@runtime_checkable
class CropBackend(Backend, Protocol):
    """A backend that cuts the people out of the camera's picture itself."""

    def see_regions(self, frame: U8, regions: Regions, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for crops of a (H, W, 3) BGR frame; `feeds` are the other inputs by name."""
        ...


class Chosen(NamedTuple):
    """A backend, and the precision it computes in: a safer one than was asked for when that gave way."""

    backend: Backend
    precision: str


def open_backend(
    bundle: Bundle, precision: str, graph: str = "pose", threads: int = 0, device: str = "cpu"
) -> Backend:
    """`choose`, when the precision does not matter to the caller."""
    return choose(bundle, precision, graph, threads, device).backend


def choose(bundle: Bundle, precision: str, graph: str, threads: int, device: str) -> Chosen:
    """The bundle's graph on ONNX Runtime's CPU provider (`threads` 0 lets it choose) or on TensorRT.

    On a GPU an engine is built when there is none yet, which takes minutes, unless the device is `auto`; it
    must reproduce the golden vectors, else it gives way, loudly, down to ONNX Runtime. The settings `edgepose
    build` had hold. Raises EdgeposeError for a precision the bundle does not have, MissingLibrary or
    HardwareError for what this machine lacks; with `auto` the CPU takes over then.
    """
    if device not in DEVICES:
        raise EdgeposeError(f"device {device!r}: choose one of {', '.join(DEVICES)}")
    if device == "cpu":
        return Chosen(_on_cpu(bundle, precision, graph, threads), _of_cpu(precision))
    found = _built(bundle, precision, graph) if device == "auto" else _engine(bundle, precision, graph)
    if found is not None:
        return found
    wanted = _of_cpu(precision)
    safest = wanted if wanted in CPU_VIEWS else "fp32"
    if device == "gpu":
        has_it = f"{graph}.{CPU_VIEWS[safest]}.onnx" in bundle.files
        safest = safest if has_it else "fp32"
    if device == "gpu" or safest != wanted:
        log.warning("no engine can be used here; ONNX Runtime runs the %s model on the CPU", safest)
    return Chosen(_on_cpu(bundle, safest, graph, threads), safest)


def _of_cpu(precision: str) -> str:
    return "int8" if precision == BEST else precision


def _on_cpu(bundle: Bundle, precision: str, graph: str, threads: int) -> Backend:
    from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend

    wanted = _of_cpu(precision)
    if wanted not in CPU_VIEWS:
        raise EdgeposeError(f"precision {wanted!r}: choose one of {', '.join(CPU_VIEWS)}")
    return OnnxRuntimeBackend(bundle.graph(graph, CPU_VIEWS[wanted]), threads)


def _engine(bundle: Bundle, precision: str, graph: str, *, build: bool = True) -> Chosen | None:
    from edgepose.runtime.trt.build import Settings
    from edgepose.runtime.trt.cuda import any_library
    from edgepose.runtime.trt.engines import Engines, Options, batches_for
    from edgepose.runtime.trt.precision import NO_ENGINE

    needed = batches_for(bundle.spec)
    options = Options(Settings(needed), any_library(), build=build)
    best, engines = Engines(bundle, graph, options).remembered()
    if engines.settings.batches[2] < needed[2]:
        raise EdgeposeError(
            f"{bundle.path}: its engines here take {engines.settings.batches[2]} people at once, needed are "
            f"{needed[2]}: edgepose build {bundle.path} --batch {','.join(map(str, needed))}"
        )
    if precision == BEST and best == NO_ENGINE:
        log.warning("no engine of %s was accurate enough here (edgepose build, verify --on-board)", graph)
        return None
    backend, steps = engines.live(best if precision == BEST else precision)
    return None if backend is None else Chosen(backend, steps[-1].precision)


def _built(bundle: Bundle, precision: str, graph: str) -> Chosen | None:
    """An engine that was built here before. Without one, where there is a GPU, it is said why."""
    from edgepose.runtime.trt.board import require_board
    from edgepose.runtime.trt.driver import require_gpu

    try:
        require_gpu()
    except HardwareError as error:
        log.info("%s", error)  # most machines have no GPU: nothing to be loud about
        return None
    found, why = None, f"no engine of {graph} that can be used: edgepose build {bundle.path}"
    try:
        require_board()
    except EdgeposeError as error:  # of a release that is not known, too
        why = str(error)
    else:
        try:
            found = _engine(bundle, precision, graph, build=False)
        except (HardwareError, MissingLibrary) as error:
            why = str(error)
    if found is None:
        log.warning("there is a GPU, but %s; ONNX Runtime runs the model on the CPU", why)
    return found
