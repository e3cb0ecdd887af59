"""The preprocessing kernel's share of the bandwidth of a copy on the device, at a 4K picture.

    python -m edgepose.runtime.trt.kernel_bench BUNDLE

In turns, in one process, are timed the kernel and a copy that reads and writes as many bytes in all, both in
memory of the device. Needs a GPU and NVRTC, not TensorRT. cuda-python queues them as one CUDA graph; with
pycuda, which has none, a GPU that prepares a picture sooner than Python queues it is not measured. Nor is one
whose cache holds the picture: it is meant for boards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgepose.runtime.bench import alternate
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.spec import Spec
from edgepose.runtime.trt.cuda import LIBRARIES, Cuda, any_library, open_cuda
from edgepose.runtime.trt.driver import require_gpu
from edgepose.runtime.trt.kernel import FORMATS, PIXEL, SOURCE, Source, blocks, letterbox_task
from edgepose.runtime.trt.nvrtc import compiled

SIZE = (3840, 2160)  # width and height of the picture
ASKED = 0.7  # of the copy's bandwidth, at least
AT_ONCE = 20  # queued before the wait: Python's own time must not count


@dataclass(frozen=True, slots=True)
class Share:
    """Of the copy's bandwidth: median over the rounds, and between what the middle half of them lies."""

    format: str
    of_copy: float
    low: float
    high: float
    ms: float  # one picture, median
    gigabytes: float  # a second, read and written


def shares(cuda: Cuda, cubin: bytes, spec: Spec, size: tuple[int, int], rounds: int) -> list[Share]:
    """For a picture of every format, letterboxed to the network's input in float32. Raises as `Cuda` does."""
    width, height = size
    with cuda.current():
        bench = _Bench(cuda, cuda.kernel(cubin, "prepare_f32"), cuda.stream(), spec, rounds)
        return [bench.share(Source(width, height, PIXEL[name] * width, name)) for name in FORMATS]


@dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    cuda: Cuda
    kernel: Any
    stream: int
    spec: Spec
    rounds: int

    def share(self, source: Source) -> Share:
        """Of a picture that lies in memory like this."""
        read, written = source.pitch * source.rows, 4 * 3 * self.spec.width * self.spec.height
        half = (read + written) // 2  # a copy reads what it writes
        with self._memory((read, written, half, half)) as (picture, images, target, origin):
            chroma = picture + source.pitch * source.height
            arguments = (picture, chroma, images, letterbox_task(source, self.spec)[0], 0)
            shape = blocks(self.spec, 1)
            work = {
                "copy": partial(self.cuda.copy, target, origin, half, self.stream),
                "kernel": partial(self.cuda.launch, self.kernel, shape, arguments, self.stream),
            }
            with ExitStack() as stack:
                timed = {name: self._many(queue, stack) for name, queue in work.items()}
                timing = alternate(timed, self.rounds)[1]
        ms = timing.p50_ms / AT_ONCE
        figures = (1 / timing.ratio, 1 / timing.high, 1 / timing.low, ms, (read + written) / ms / 1e6)
        return Share(source.format, *figures)

    def _many(self, queue: Callable[[], None], stack: ExitStack) -> Callable[[], None]:
        """AT_ONCE times the work, and the wait for it; what it takes is freed with the `stack`."""

        def all_of_it() -> None:
            for _ in range(AT_ONCE):
                queue()

        again, graph = all_of_it, self.cuda.record(self.stream, all_of_it)
        if graph is not None:
            stack.callback(self.cuda.forget, graph)
            again = partial(self.cuda.replay, graph, self.stream)

        def done() -> None:
            again()
            self.cuda.wait(self.stream)

        return done

    @contextmanager
    def _memory(self, sizes: tuple[int, ...]) -> Iterator[list[int]]:
        """Addresses of so many bytes each."""
        with ExitStack() as stack:
            addresses = []
            for size in sizes:
                buffer = self.cuda.allocate(size, mapped=False)
                stack.callback(self.cuda.free, buffer)
                addresses.append(buffer.address)
            yield addresses


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--cuda", "library", type=click.Choice(list(LIBRARIES)), help="[default: the one that is there]"
)
@click.option("--rounds", type=click.IntRange(3), default=50, show_default=True, help="Turns of each.")
def main(bundle: Path, library: str | None, rounds: int) -> None:
    """Hold the kernel that prepares pictures for BUNDLE against a copy on this GPU."""
    spec, gpu = Bundle.open(bundle).spec, require_gpu()
    cuda = open_cuda(library or any_library())
    try:
        found = shares(cuda, compiled(SOURCE.read_bytes(), gpu.sm), spec, SIZE, rounds)
    finally:
        cuda.close()
    click.echo(f"{gpu.name} sm_{gpu.sm}: {SIZE[0]}x{SIZE[1]} to {spec.width}x{spec.height}")
    for share in found:
        middle = f"{share.of_copy:.2f} of the copy's bandwidth ({share.low:.2f} … {share.high:.2f})"
        click.echo(f"{share.format}: {middle}, {share.ms:.3f} ms, {share.gigabytes:.0f} GB/s")
    if slow := [share.format for share in found if not share.of_copy >= ASKED]:
        raise GateFailed(f"the kernel reads {', '.join(slow)} at less than {ASKED:g} of the copy's bandwidth")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(standalone_mode=False)))
