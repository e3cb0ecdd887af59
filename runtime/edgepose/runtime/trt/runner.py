"""One engine behind the Backend protocol: buffers allocated once, its own stream, one thread at a time."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepose.runtime.backend import Array
from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.trt.cuda import Buffer, Cuda, DeviceLost, NotRecorded, OutOfMemory
from edgepose.runtime.trt.listener import Said, heard
from edgepose.runtime.trt.precision import numpy_type

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

Shape = tuple[int, ...]


class EngineRefused(EdgeposeError):
    """TensorRT does not load this plan here."""


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """An input or output and the memory for the largest it can be."""

    dtype: np.dtype[np.generic]
    buffer: Buffer

    def host(self, shape: Shape) -> Array:
        """The host's side as an array of this shape; a view, overwritten by the next run."""
        size = math.prod(shape) * self.dtype.itemsize
        view: Array = self.buffer.host[:size].view(self.dtype).reshape(shape)
        return view


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the device an input is written, and with what."""

    address: int
    dtype: np.dtype[np.generic]
    stream: int


Write = Callable[[Place], None]


class TensorRtBackend:
    """A loaded engine. The primary context is pushed and popped about every call, so it may move between
    threads; two at once are a mistake. Where CPU and GPU share one memory, outputs are mapped, which are
    written once; inputs are copied, for a Jetson's GPU caches no mapped memory and a layer reads its input
    many times (NVIDIA's "CUDA for Tegra"; not measured).
    """

    def __init__(self, plan: bytes, cuda: Cuda, *, mapped: bool, dla_core: int | None = None) -> None:
        """Raises EngineRefused for a plan of another board or release, OutOfMemory when memory runs out."""
        self.cuda, self.mapped = cuda, mapped
        self._busy = threading.Lock()
        self._lost: str | None = None
        self._closed = False
        self._inputs: dict[str, _Tensor] = {}
        self._outputs: dict[str, _Tensor] = {}
        self._buffers: list[Buffer] = []
        self._said, self._hears = Said(), ExitStack()
        # Only attributes hold these: a local variable would live on in an error's traceback, beyond `close`.
        self._runtime: trt.Runtime | None = None
        self._engine: trt.ICudaEngine | None = None
        self._context: trt.IExecutionContext | None = None
        # The work of the last run, and its graph once it was done twice: TensorRT's first run after a change
        # of shapes sets things up, and must not be recorded.
        self._work: Hashable = None
        self._graph: Any = None
        self._records = True
        try:
            with cuda.current():
                self._load(plan, dla_core)
                self._allocate()
                self._stream = cuda.stream()
        except BaseException:
            self.close()
            raise

    def _load(self, plan: bytes, dla_core: int | None) -> None:
        import tensorrt as trt

        logger = self._hears.enter_context(heard(self._said))
        trt.init_libnvinfer_plugins(logger, "")
        self._runtime = trt.Runtime(logger)
        if dla_core is not None:  # a plan does not say which core it was built for, and would run on core 0
            self._runtime.DLA_core = dla_core
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None and self._said.out_of_memory():  # a good plan: its weights find no room
            raise self._no_memory(f"it cannot be loaded ({self._said.why()})")
        if self._engine is None:
            raise EngineRefused(
                f"this engine cannot be loaded here ({self._said.why()}): engines are tied to the board and "
                f"the TensorRT release, here {trt.__version__}; build it again: edgepose build BUNDLE"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._no_memory(f"no execution context ({self._said.why()})")

    def _allocate(self) -> None:
        """Buffers for the largest shapes of the profile, and their addresses, which never change."""
        names = [self._model.get_tensor_name(index) for index in range(self._model.num_io_tensors)]
        inputs = [name for name in names if self._model.get_tensor_mode(name).name == "INPUT"]
        for name in inputs:
            largest = tuple(self._model.get_tensor_profile_shape(name, 0)[2])
            self._set_shape(name, largest)
        for name in names:
            shape = tuple(self._execution.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise EngineRefused(f"{name}: its shape {shape} depends on the data; export the bundle again")
            mapped = self.mapped and name not in inputs
            tensor = self._tensor(self._model.get_tensor_dtype(name).name, shape, mapped)
            (self._inputs if name in inputs else self._outputs)[name] = tensor
            self._execution.set_tensor_address(name, tensor.buffer.address)

    def _tensor(self, type_name: str, shape: Shape, mapped: bool) -> _Tensor:
        dtype = np.dtype(numpy_type(type_name))
        try:
            buffer = self.cuda.allocate(math.prod(shape) * dtype.itemsize, mapped)
        except OutOfMemory as error:
            raise self._no_memory(str(error)) from error
        self._buffers.append(buffer)
        return _Tensor(dtype, buffer)

    def _no_memory(self, reason: str) -> HardwareError:
        free, total = (size >> 20 for size in self.cuda.memory())
        return OutOfMemory(
            f"the GPU has no memory left for this engine: {reason}; {free} of {total} MiB are free: stop "
            "what else uses it, or build with a smaller --batch"
        )

    @property
    def _model(self) -> trt.ICudaEngine:
        assert self._engine is not None, "the engine is closed"
        return self._engine

    @property
    def _execution(self) -> trt.IExecutionContext:
        assert self._context is not None, "the engine is closed"
        return self._context

    def _set_shape(self, name: str, shape: Shape) -> None:
        if not self._execution.set_input_shape(name, shape):
            low, _, high = (tuple(size) for size in self._model.get_tensor_profile_shape(name, 0))
            raise EdgeposeError(
                f"{name}: shape {shape}, the engine takes {low} to {high}; build it for that --batch"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what `run` takes."""
        return tuple(self._inputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, in arrays of their own.

        Raises EdgeposeError for a feed the engine does not take, DeviceLost for ever once the GPU fails.
        """
        with self.owned():
            self._require_inputs(feeds.keys())
            return self._run(*self._fed(feeds))

    def run_written(
        self, name: str, shape: Shape, write: Write, work: Hashable, feeds: Mapping[str, Array]
    ) -> dict[str, Array]:
        """As `run`, but `write` queues the making of the input `name` on the device; `feeds` are the others.

        Writes of equal `work` must queue the same: what is recorded is not asked again. Inside `owned`.
        """
        self._require_inputs({name, *feeds})
        self._set_shape(name, shape)
        place = Place(self._inputs[name].buffer.address, self._inputs[name].dtype, self._stream)
        upload, fed = self._fed(feeds)

        def fill() -> None:
            write(place)
            upload()

        return self._run(fill, (shape, work, fed))

    def _fed(self, feeds: Mapping[str, Array]) -> tuple[Callable[[], None], Hashable]:
        """Lays the feeds into host memory -> what queues their upload, and what tells such uploads apart."""
        for name, array in feeds.items():
            tensor = self._inputs[name]
            if array.dtype != tensor.dtype:
                raise EdgeposeError(f"{name}: the engine takes {tensor.dtype}, given was {array.dtype}")
            self._set_shape(name, array.shape)
            tensor.host(array.shape)[...] = array

        def upload() -> None:
            for name, array in feeds.items():
                self.cuda.upload(self._inputs[name].buffer, array.nbytes, self._stream)

        return upload, tuple((name, array.shape) for name, array in feeds.items())

    @contextmanager
    def owned(self) -> Iterator[None]:
        """The engine and its CUDA context are this thread's inside the block; not for two at once.

        Raises DeviceLost for ever once the GPU fails.
        """
        if self._lost is not None:
            raise DeviceLost(self._lost)
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("two threads run one engine at once; each thread needs its own")
        try:
            with self.cuda.current():
                yield
        except DeviceLost as error:
            self._lost = (
                f"{error}; the engine is lost: start edgepose again, and look into dmesg if it recurs"
            )
            raise DeviceLost(self._lost) from error
        finally:
            self._busy.release()

    def _require_inputs(self, given: Collection[str]) -> None:
        if set(given) != self._inputs.keys():
            raise EdgeposeError(f"the engine takes {', '.join(self._inputs)}; given were {', '.join(given)}")

    def _run(self, fill: Callable[[], None], work: Hashable) -> dict[str, Array]:
        """What `fill` queues, the engine, its outputs; `work` tells runs apart that queue other things."""
        shapes = {name: tuple(self._execution.get_tensor_shape(name)) for name in self._outputs}

        def queue() -> None:
            fill()
            if not self._execution.execute_async_v3(self._stream):
                raise DeviceLost(f"TensorRT cannot run the engine: {self._said.why()}")
            for name, tensor in self._outputs.items():
                size = math.prod(shapes[name]) * tensor.dtype.itemsize
                self.cuda.download(tensor.buffer, size, self._stream)

        self._queue(queue, work)
        self.cuda.wait(self._stream)
        return {name: tensor.host(shapes[name]).copy() for name, tensor in self._outputs.items()}

    def _queue(self, queue: Callable[[], None], work: Hashable) -> None:
        """As one CUDA graph where the library has them and the same work comes again."""
        if work != self._work:
            self._work = None
            self._drop_graph()
            queue()
            self._work = work
            return
        if self._graph is None and self._records:
            self._record(queue)
        if self._graph is None:
            queue()
        else:
            self.cuda.replay(self._graph, self._stream)

    def _record(self, queue: Callable[[], None]) -> None:
        try:
            self._graph = self.cuda.record(self._stream, queue)
        except NotRecorded as error:
            log.warning("%s; it runs step by step", error)
        self._records = self._graph is not None

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self.cuda.forget(self._graph)
            self._graph = None

    def describe(self) -> str:
        """What TensorRT's inspector tells about the engine's layers, as JSON."""
        import tensorrt as trt

        with self.cuda.current():
            inspector = self._model.create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free everything; once is enough, twice does no harm. A lost GPU is not asked again."""
        if self._closed:
            return
        self._closed = True
        with suppress(DeviceLost):
            with self.cuda.current():
                with suppress(DeviceLost):
                    self._drop_graph()
                self._context = self._engine = self._runtime = None  # in this order, inside the context
                for buffer in self._buffers:
                    self.cuda.free(buffer)
            self.cuda.close()
        self._hears.close()
        self._buffers.clear()

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
