"""INT8 the way of TensorRT 8.x, 10.x and the DLA: no Q/DQ in the file, but one scale for each tensor.

The scales are the bundle's own, written as an entropy-calibration cache, or what TensorRT's entropy
calibrator finds while it is shown pictures. TensorRT 11 has neither.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgepose.runtime.agreement import Array
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.drafts import sha256
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.golden import FILE, INPUT, REFERENCE, read
from edgepose.runtime.preprocess import U8, prepare
from edgepose.runtime.trt.cuda import Buffer, Cuda, open_cuda
from edgepose.runtime.trt.precision import Attempt

SCALES, GOLDEN = "scales", "golden"  # sources; anything else is a folder of pictures
ATTEMPT = Attempt("int8", "weak", REFERENCE, ("INT8", "FP16"))
_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the scales come from. `identity` is part of an engine's key."""

    kind: str  # SCALES, GOLDEN or "pictures"
    identity: str
    pictures: tuple[Path, ...] = ()


def has_calibrators() -> bool:
    """Whether this TensorRT has them: 8.x and 10.x do."""
    import tensorrt as trt

    return hasattr(trt, "IInt8EntropyCalibrator2")


def require_calibrators() -> None:
    """Raises EdgeposeError where there are none."""
    import tensorrt as trt

    if not has_calibrators():
        raise EdgeposeError(
            f"--implicit-int8: TensorRT {trt.__version__} has no calibrators (11.0 removed them); its INT8 "
            "is the Q/DQ in the bundle's own files: leave the option out"
        )


def source_of(bundle: Bundle, graph: str, wanted: str) -> Source:
    """What `--implicit-int8 WANTED` means for a graph. Raises EdgeposeError when it is not there."""
    if wanted == SCALES:
        scales_of(bundle, graph)
        return Source(SCALES, f"{SCALES}:{bundle.files[scales_file(graph)]}")
    if wanted == GOLDEN:
        read(bundle)
        return Source(GOLDEN, f"{GOLDEN}:{bundle.files[FILE]}")
    if bundle.spec.resize == "crop":
        raise EdgeposeError(
            f"--implicit-int8 {wanted}: {bundle.spec.model} sees people one by one, and nobody says where "
            f"they are in these pictures; choose {SCALES} or {GOLDEN}"
        )
    pictures = tuple(sorted(path for path in Path(wanted).rglob("*") if path.suffix.lower() in _PICTURES))
    if not pictures:
        raise EdgeposeError(
            f"--implicit-int8 {wanted}: no pictures in it ({', '.join(_PICTURES)}); name the folder of "
            f"`edgepose calibrate`, or choose {SCALES} or {GOLDEN}"
        )
    digest = hashlib.sha256("".join(map(sha256, pictures)).encode()).hexdigest()
    return Source("pictures", f"pictures:{digest}", pictures)


def scales_file(graph: str) -> str:
    """The bundle's file with the scales of a graph's tensors."""
    return f"{graph}.scales.json"


def scales_of(bundle: Bundle, graph: str) -> dict[str, float]:
    """The scale of each quantized tensor of the FP32 graph: one step of its INT8 values.

    Raises EdgeposeError when the bundle has none, or something else in their place.
    """
    if scales_file(graph) not in bundle.files:
        raise EdgeposeError(
            f"{bundle.path}: has no {scales_file(graph)}; export it again: edgepose export MODEL "
            "--compressed FOLDER --out BUNDLE"
        )
    scales = bundle.read(scales_file(graph), "the scales of tensors")
    good = isinstance(scales, dict) and all(
        isinstance(value, float) and 0 < value < math.inf for value in scales.values()
    )
    if not good or not scales:
        raise EdgeposeError(f"{bundle.path}: {scales_file(graph)} is damaged; export the bundle again")
    return dict(scales)


def release_number(version: str) -> int:
    """NV_TENSORRT_VERSION of NvInferVersion.h: 8.6.1 is 8601, 10.3.0 is 100300.

    Raises EdgeposeError for what is no version of three numbers, or one that reads no cache.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        raise EdgeposeError(f"TensorRT {version!r}: a calibration cache names three numbers, such as 10.3.0")
    major, minor, patch = (int(part) for part in found.groups())
    if major not in (8, 10):
        raise EdgeposeError(
            f"TensorRT {version} reads no calibration cache (8.x and 10.x do); 11's INT8 is the Q/DQ in the "
            "bundle's own files"
        )
    return (10_000 if major >= 10 else 1_000) * major + 100 * minor + patch


def cache_text(scales: Mapping[str, float], version: str) -> str:
    """An entropy-calibration cache: a line for each tensor, its scale as a big-endian float32 in hex."""
    lines = (f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items())
    return "\n".join([f"TRT-{release_number(version)}-EntropyCalibration2", *lines]) + "\n"


@contextmanager
def calibrator(bundle: Bundle, graph: str, source: Source, batch: int, library: str) -> Iterator[Any]:
    """A trt.IInt8EntropyCalibrator2 for one build of the graph's FP32 file.

    Its pictures are shown `batch` times each, as the profile has it. Raises EdgeposeError for a picture that
    cannot be read, and as `open_cuda` and `Cuda.allocate` do.
    """
    if source.kind == SCALES:
        import tensorrt as trt

        yield _calibrator(cache_text(scales_of(bundle, graph), trt.__version__).encode(), lambda: None, 1)
        return
    shown = _Shown(_feeds(bundle, graph, source), open_cuda(library), batch)
    try:
        yield _calibrator(b"", shown.following, batch)
    finally:
        shown.close()
        if shown.problem is not None:
            raise shown.problem


class _Shown:
    """Pictures on the device, one after the other."""

    def __init__(self, feeds: Iterator[dict[str, Array]], cuda: Cuda, batch: int) -> None:
        self._feeds, self._cuda, self._batch = feeds, cuda, batch
        self._buffers: dict[str, Buffer] = {}
        # An exception must not leave a call of TensorRT's: it is kept until the build is over.
        self.problem: Exception | None = None
        with cuda.current():
            self._stream = cuda.stream()

    def following(self) -> dict[str, int] | None:
        """Where on the device the next picture's inputs are, by name; None after the last, or a problem."""
        try:
            given = next(self._feeds, None)
            return None if given is None else self._show(given)
        except Exception as error:  # `problem` is raised when TensorRT's frames are behind us
            self.problem = error
            return None

    def _show(self, given: Mapping[str, Array]) -> dict[str, int]:
        with self._cuda.current():
            for name, array in given.items():
                repeated = np.repeat(array, self._batch, 0)
                if name not in self._buffers:
                    self._buffers[name] = self._cuda.allocate(repeated.nbytes, mapped=False)
                self._buffers[name].host[:] = np.ascontiguousarray(repeated).reshape(-1).view(np.uint8)
                self._cuda.upload(self._buffers[name], repeated.nbytes, self._stream)
            self._cuda.wait(self._stream)
        return {name: buffer.address for name, buffer in self._buffers.items()}

    def close(self) -> None:
        """Free everything."""
        with self._cuda.current():
            for buffer in self._buffers.values():
                self._cuda.free(buffer)
        self._cuda.close()


def _calibrator(cache: bytes, following: Callable[[], dict[str, int] | None], batch: int) -> Any:
    import tensorrt as trt

    base: Any = getattr(trt, "IInt8EntropyCalibrator2", None)
    assert base is not None, "require_calibrators was not asked"

    class Calibrator(base):
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 insists on the direct call

        def get_batch_size(self) -> int:
            return batch

        def get_batch(self, names: Sequence[str]) -> list[int]:
            places = following()
            return [] if places is None else [places[name] for name in names]

        def read_calibration_cache(self) -> bytes | None:
            return cache or None

        def write_calibration_cache(self, cache: bytes) -> None:
            """The engine itself is kept, so nobody reads it again."""

    return Calibrator()


def _feeds(bundle: Bundle, graph: str, source: Source) -> Iterator[dict[str, Array]]:
    """What the graph reads for each picture, batch 1; what earlier graphs give comes from ONNX Runtime."""
    with OnnxRuntimeBackend(bundle.graph(graph, REFERENCE), threads=1) as backend:
        names = tuple(backend.inputs)
    for known in _known(bundle, source):
        yield {name: known[name] for name in names}


def _known(bundle: Bundle, source: Source) -> Iterator[dict[str, Array]]:
    if source.kind == GOLDEN:
        yield from read(bundle).known(bundle.spec)
    for path in source.pictures:
        yield {INPUT: prepare(_picture(path), bundle.spec)[0]}


def _picture(path: Path) -> U8:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise EdgeposeError(f"{path}: not a picture that can be read; take it out of the folder")
    return np.asarray(image, np.uint8)
