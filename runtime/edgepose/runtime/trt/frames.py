"""An engine that is shown the camera's picture itself: the kernel prepares it, or its crops, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

import numpy as np

from edgepose.runtime.backend import Array
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.golden import INPUT
from edgepose.runtime.preprocess import U8, Letterbox
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import F64, Regions
from edgepose.runtime.trt.cuda import Buffer, DeviceLost
from edgepose.runtime.trt.kernel import PIXEL, Source, blocks, crop_task, letterbox_task
from edgepose.runtime.trt.runner import Place, TensorRtBackend

_ENTRIES = {"float32": "prepare_f32", "float16": "prepare_f16"}  # of prepare.cu, by the type of the input


class FrameEngine:
    """A Backend that is shown pictures of any size; one is copied once, into memory the GPU reads.

    It owns the engine: `close` ends both.
    """

    def __init__(self, engine: TensorRtBackend, cubin: bytes, spec: Spec) -> None:
        """`cubin`: prepare.cu for this GPU. Raises as `Cuda` does."""
        self._engine, self.spec = engine, spec
        self._held: dict[str, Buffer] = {}  # the picture, and where its crops are
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
        return self.see_planes(*_packed(frame))

    def see_planes(self, rows: U8, source: Source) -> tuple[dict[str, Array], Letterbox]:
        """The same for a picture as it lies in memory: (rows, pitch), of NV12 luma and then chroma.

        Raises EdgeposeError when the rows are not those of the source.
        """
        task, box = letterbox_task(source, self.spec)
        return self._seen((rows, source), task, None, {}), box

    def see_regions(self, frame: U8, regions: Regions, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The engine's outputs for crops of a (H, W, 3) BGR frame; `feeds` are its other inputs by name."""
        rows, source = _packed(frame)
        task, inverses = crop_task(source, regions, self.spec)
        return self._seen((rows, source), task, inverses, feeds)

    def _seen(
        self, picture: tuple[U8, Source], task: bytes, inverses: F64 | None, feeds: Mapping[str, Array]
    ) -> dict[str, Array]:
        """What the engine sees of a picture, or of its crops with these maps (B, 2, 3) to its pixels."""
        rows, source = picture
        _require_rows(rows, source)
        count = 1 if inverses is None else len(inverses)
        with self._engine.owned():
            uploads = [self._filled("picture", rows)]
            if inverses is not None:
                uploads.append(self._filled("crops", inverses))
            chroma = source.pitch * source.height  # where the second plane begins
            shape = (count, 3, self.spec.height, self.spec.width)
            work = (task, chroma, *(buffer.address for buffer, _ in uploads))
            write = self._writer(uploads, task, chroma, count)
            return self._engine.run_written(INPUT, shape, write, work, feeds)

    def _writer(
        self, uploads: Sequence[tuple[Buffer, int]], task: bytes, chroma: int, count: int
    ) -> Callable[[Place], None]:
        """What queues the uploads and the kernel."""
        picture, crops = uploads[0][0].address, uploads[1][0].address if len(uploads) > 1 else 0

        def write(place: Place) -> None:
            cuda = self._engine.cuda
            for buffer, size in uploads:
                cuda.upload(buffer, size, place.stream)
            arguments = (picture, picture + chroma, place.address, task, crops)
            cuda.launch(self._kernels[place.dtype.name], blocks(self.spec, count), arguments, place.stream)

        return write

    def _filled(self, name: str, values: U8 | F64) -> tuple[Buffer, int]:
        """The values in memory for a GPU, and their bytes; grown when larger ones come, and only then."""
        held = self._held.get(name)
        if held is None or len(held.host) < values.nbytes:
            if held is not None:
                self._engine.cuda.free(self._held.pop(name))
            held = self._held[name] = self._engine.cuda.allocate(values.nbytes, self._engine.mapped)
        held.host[: values.nbytes] = values.reshape(-1).view(np.uint8)
        return held, values.nbytes

    def _free(self) -> None:
        while self._held:
            self._engine.cuda.free(self._held.popitem()[1])

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


def _packed(frame: U8) -> tuple[U8, Source]:
    """A BGR frame as it lies in memory, its rows one after the other."""
    height, width = frame.shape[:2]
    return np.ascontiguousarray(frame).reshape(height, 3 * width), Source(width, height, 3 * width, "BGR")


def _require_rows(rows: U8, source: Source) -> None:
    expected = (source.rows, source.pitch)
    fits = source.pitch >= source.width * PIXEL[source.format]
    even = source.format != "NV12" or source.width % 2 == source.height % 2 == 0
    if rows.shape != expected or not fits or not even or not rows.flags.c_contiguous:
        raise EdgeposeError(
            f"a {source.format} picture of {source.width}x{source.height} with {source.pitch} bytes a row: "
            f"its rows are {rows.shape}, they should be {expected} in one piece (sides even for NV12)"
        )
