"""An engine that is shown the camera's picture itself: the kernel prepares it where the engine reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType

import numpy as np

from edgepose.runtime.backend import Array
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.golden import INPUT
from edgepose.runtime.preprocess import U8, Letterbox
from edgepose.runtime.spec import Spec
from edgepose.runtime.trt.cuda import THREADS, Buffer, DeviceLost
from edgepose.runtime.trt.kernel import Source, letterbox_task
from edgepose.runtime.trt.runner import Place, TensorRtBackend

_ENTRIES = {"float32": "prepare_f32", "float16": "prepare_f16"}  # of prepare.cu, by the type of the input
_ROWS = {"NV12": (3, 2), "RGBA": (1, 1), "BGR": (1, 1)}  # rows in memory for one of the picture: NV12 has 3/2
_PIXEL = {"NV12": 1, "RGBA": 4, "BGR": 3}  # bytes a pixel in a row


class FrameEngine:
    """A Backend whose `see` takes pictures of any size; a picture is copied once, into memory the GPU reads.

    It owns the engine: `close` ends both.
    """

    def __init__(self, engine: TensorRtBackend, cubin: bytes, spec: Spec) -> None:
        """`cubin`: prepare.cu for this GPU. Raises as `Cuda` does."""
        self._engine, self._spec = engine, spec
        self._frame: Buffer | None = None
        with engine.owned():
            self._kernels = {kind: engine.cuda.kernel(cubin, name) for kind, name in _ENTRIES.items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what `run` takes."""
        return self._engine.inputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As the engine's own: what is fed was prepared already."""
        return self._engine.run(feeds)

    def see(self, frame: U8) -> tuple[dict[str, Array], Letterbox]:
        """The engine's outputs for a (H, W, 3) BGR frame, and the way back from its pixels."""
        height, width = frame.shape[:2]
        rows = np.ascontiguousarray(frame).reshape(height, 3 * width)
        return self.see_planes(rows, Source(width, height, 3 * width, "BGR"))

    def see_planes(self, rows: U8, source: Source) -> tuple[dict[str, Array], Letterbox]:
        """The same for a picture as it lies in memory: (rows, pitch), of NV12 luma and then chroma.

        Raises EdgeposeError when the rows are not those of the source.
        """
        _require_rows(rows, source)
        task, box = letterbox_task(source, self._spec)
        shape = (1, 3, self._spec.height, self._spec.width)
        with self._engine.owned():
            buffer = self._buffer(rows.nbytes)
            buffer.host[: rows.nbytes] = rows.reshape(-1)
            write = self._writer(buffer, rows.nbytes, (task, source.pitch * source.height))
            answers = self._engine.run_written(INPUT, shape, write, (task, buffer.address))
        return answers, box

    def _writer(self, buffer: Buffer, size: int, task: tuple[bytes, int]) -> Callable[[Place], None]:
        """What queues the upload and the kernel; `task` also tells where the second plane begins."""
        packed, chroma = task
        blocks = (-(-self._spec.width // THREADS[0]), -(-self._spec.height // THREADS[1]), 1)

        def write(place: Place) -> None:
            cuda = self._engine.cuda
            cuda.upload(buffer, size, place.stream)
            arguments = (buffer.address, buffer.address + chroma, place.address, packed, 0)
            cuda.launch(self._kernels[place.dtype.name], blocks, arguments, place.stream)

        return write

    def _buffer(self, size: int) -> Buffer:
        """Memory for a picture; grown when a larger one comes, and only then."""
        if self._frame is None or len(self._frame.host) < size:
            self._free()
            self._frame = self._engine.cuda.allocate(size, self._engine.mapped)
        return self._frame

    def _free(self) -> None:
        if self._frame is not None:
            self._engine.cuda.free(self._frame)
            self._frame = None

    def release(self) -> None:
        """Free the picture's memory, and leave the engine as it is. A lost GPU is not asked."""
        with suppress(DeviceLost), self._engine.owned():
            self._free()
        self._kernels.clear()

    def close(self) -> None:
        """Free the picture's memory and the engine."""
        self.release()
        self._engine.close()

    def __enter__(self) -> FrameEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_rows(rows: U8, source: Source) -> None:
    times, of = _ROWS[source.format]
    expected = (source.height * times // of, source.pitch)
    fits = source.pitch >= source.width * _PIXEL[source.format]
    even = source.format != "NV12" or source.width % 2 == source.height % 2 == 0
    if rows.shape != expected or not fits or not even or not rows.flags.c_contiguous:
        raise EdgeposeError(
            f"a {source.format} picture of {source.width}x{source.height} with {source.pitch} bytes a row: "
            f"its rows are {rows.shape}, they should be {expected} in one piece (sides even for NV12)"
        )
