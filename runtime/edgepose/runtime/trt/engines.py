"""From a bundle to a running engine: cached or built, proven on golden vectors, else the next safer one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepose.runtime.agreement import Array
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.golden import INPUT, NotReproduced, apart, figures, limit, read, reproduced
from edgepose.runtime.preprocess import U8, prepare
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown import crop
from edgepose.runtime.topdown.crop import Regions
from edgepose.runtime.topdown.twostage import MOST
from edgepose.runtime.trt.board import Board, require_board
from edgepose.runtime.trt.build import BuildFailed, Settings, build
from edgepose.runtime.trt.cache import EngineCache, Kept, Key, default_root
from edgepose.runtime.trt.cuda import DeviceLost, OutOfMemory, open_cuda, require_library
from edgepose.runtime.trt.frames import FrameEngine
from edgepose.runtime.trt.implicit import (
    ATTEMPT,
    GOLDEN,
    SCALES,
    Source,
    calibrator,
    require_calibrators,
    scales_file,
    source_of,
)
from edgepose.runtime.trt.inspector import count_layers
from edgepose.runtime.trt.kernel import SOURCE
from edgepose.runtime.trt.nvrtc import compiled
from edgepose.runtime.trt.precision import ANSWERS, Attempt, attempts, rungs, typings
from edgepose.runtime.trt.runner import EngineRefused, TensorRtBackend
from edgepose.runtime.trt.selftest import SelfTest, examine

log = logging.getLogger(__name__)


class NotBuilt(EdgeposeError):
    """An engine that was not built here yet, and is not to be now."""


# What makes an engine give way to the next safer one. A lost GPU or a missing library is not among them.
_GIVES_WAY = (BuildFailed, EngineRefused, NotReproduced, NotBuilt, OutOfMemory)
CROPS = (1, 4, MOST)  # batches of a network that sees people one by one: as many as are in a frame
Opened = TensorRtBackend | FrameEngine


def batches_for(spec: Spec) -> tuple[int, int, int]:
    """Smallest, usual and largest batch that a stream shows a network."""
    return CROPS if spec.resize == "crop" else (1, 1, 1)


@dataclass(frozen=True, slots=True)
class Options:
    """Where and how engines are made."""

    settings: Settings = field(default_factory=Settings)
    cuda: str = "pycuda"
    root: Path = field(default_factory=default_root)
    rebuild: bool = False  # also what is in the cache
    build: bool = True  # False: only what is in the cache
    implicit: Source | None = None  # where INT8's scales come from, if not from Q/DQ


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt at an engine, as the build report tells it."""

    precision: str
    typing: str
    view: str
    problem: str  # empty for the one that is running
    report: dict[str, Any]


class Engines:
    """All engines of one graph of a bundle on this board.

    Raises HardwareError or MissingLibrary at once for what is not there, EdgeposeError for an unknown graph.
    """

    def __init__(self, bundle: Bundle, graph: str, options: Options) -> None:
        self.board: Board = require_board()
        if options.implicit is not None:
            require_calibrators()
            options = replace(options, settings=replace(options.settings, implicit=options.implicit.identity))
        self.settings = options.settings
        self._cache = EngineCache(options.root)
        self._bundle, self._graph, self._options = bundle, graph, options
        bundle.graph(graph, "fp32")  # raises for an unknown one
        self._identity = _identity(bundle, graph)
        self._rebuilt: set[Key] = set()  # with `rebuild`: what is anew already

    def live(self, precision: str) -> tuple[Opened | None, list[Step]]:
        """The first engine from `precision` downwards that can be built and reproduces the golden vectors.

        None when there is no such engine, with every step that was tried and what was wrong with it.
        """
        steps: list[Step] = []
        self._require_view(precision)
        for rung in rungs(precision):
            backend, tried = self.exactly(rung)
            steps += tried
            if backend is not None:
                if rung != precision:
                    log.warning("the %s engine of %s runs, not %s", rung, self._graph, precision)
                return self.seeing(backend, rung), steps
        return None, steps

    def seeing(self, backend: TensorRtBackend, precision: str) -> Opened:
        """The engine with the kernel that prepares its pictures, where there is one and it does so rightly.

        Else it is said why pictures are prepared on the CPU.
        """
        if self.settings.batches[0] > 1:
            return backend
        try:
            seeing = FrameEngine(backend, compiled(SOURCE.read_bytes(), self.board.sm), self._bundle.spec)
            with ExitStack() as stack:
                stack.callback(seeing.release)
                _require_sight(seeing, self._bundle, f"{self._graph}.{ANSWERS[precision]}")
                stack.pop_all()
        except DeviceLost:
            backend.close()
            raise
        except EdgeposeError as error:
            log.warning("pictures are prepared on the CPU, which is slower: %s", error)
            return backend
        return seeing

    def exactly(self, precision: str) -> tuple[TensorRtBackend | None, list[Step]]:
        """The engine of one precision, by the first way that works; None and the problems when none does."""
        steps: list[Step] = []
        for attempt in self._attempts(precision):
            try:
                backend, report = self._proven(attempt)
            except _GIVES_WAY as error:
                level = logging.INFO if isinstance(error, NotBuilt) else logging.WARNING
                log.log(level, "no %s engine (%s typing): %s", attempt.precision, attempt.typing, error)
                steps.append(Step(precision, attempt.typing, attempt.view, str(error), {}))
                continue
            return backend, [*steps, Step(precision, attempt.typing, attempt.view, "", report)]
        return None, steps

    def examined(self, backend: Opened, precision: str) -> SelfTest:
        """An engine of these on the golden pictures."""
        return examine(backend, self._bundle, self._graph, precision, self.settings.batches[0])

    def feeds(self, inputs: Iterable[str]) -> dict[str, Array]:
        """The first golden picture by these names, for the batch the engines are to be fast for.

        Not noise: one graph's output may be an index in the next.
        """
        known = read(self._bundle).known(self._bundle.spec)[0]
        return {name: np.repeat(known[name], self.settings.batches[1], 0) for name in inputs}

    def remembered(self) -> tuple[str, Engines]:
        """The precision that `edgepose build` found best here, and the engines with the settings it had.

        int8 and these engines before it was asked.
        """
        choice = self._cache.default(self._identity, self.board)
        if choice is None:
            return "int8", self
        settings = choice["report"]["settings"]
        options = replace(
            self._options,
            settings=Settings(**{**settings, "batches": tuple(settings["batches"])}),
            cuda=choice["report"]["cuda"],
        )
        return choice["precision"], Engines(self._bundle, self._graph, options)

    def keep_default(self, precision: str, report: dict[str, Any]) -> None:
        """Remember it, with the settings and the build report."""
        kept = {"settings": asdict(self.settings), "cuda": self._options.cuda, **report}
        self._cache.keep_default(self._identity, self.board, precision, kept)

    def _attempts(self, precision: str) -> list[Attempt]:
        implicit = precision == "int8" and self.settings.implicit
        return [ATTEMPT] if implicit else attempts(precision, typings())

    def _require_view(self, precision: str) -> None:
        """Raises EdgeposeError when the bundle holds no file of the precision that was asked for."""
        wanted = [attempt.view for attempt in self._attempts(rungs(precision)[0])]
        if not any(f"{self._graph}.{view}.onnx" in self._bundle.files for view in wanted):
            self._bundle.graph(self._graph, wanted[0])

    def _proven(self, attempt: Attempt) -> tuple[TensorRtBackend, dict[str, Any]]:
        if f"{self._graph}.{attempt.view}.onnx" not in self._bundle.files:
            raise BuildFailed(f"the bundle has no {self._graph}.{attempt.view}.onnx")
        key = Key(
            self._bundle.files[f"{self._graph}.{attempt.view}.onnx"],
            self.board,
            attempt,
            self.settings,
        )
        is_due = self._options.rebuild and key not in self._rebuilt
        kept = None if is_due else self._cache.find(key)
        if kept is None and not self._options.build:
            raise NotBuilt(f"{attempt.view} was not built here; build it: edgepose build {self._bundle.path}")
        if kept is not None and not kept.refusal:
            try:
                return self._started(kept, attempt), kept.report
            except EngineRefused as error:
                if not self._options.build:
                    raise
                log.warning("%s", error)
                kept = self._build(key, attempt, anew=True)
        elif kept is None:
            kept = self._build(key, attempt, anew=self._options.rebuild)
        if kept.refusal:
            raise BuildFailed(
                f"{kept.refusal} (remembered from its build; try again: edgepose build --rebuild)"
            )
        return self._started(kept, attempt), kept.report

    def _build(self, key: Key, attempt: Attempt, *, anew: bool) -> Kept:
        """Build it, unless another process did so meanwhile and it need not be `anew`.

        A failure is remembered, for it takes minutes too, but not in the place of an engine.
        """
        require_library(self._options.cuda)  # without it the engine could not be run
        with self._cache.building(key):
            if not anew and (made := self._cache.find(key)) is not None:
                return made
            onnx = self._bundle.graph(self._graph, attempt.view)
            log.warning("building the %s engine of %s here; this takes minutes", attempt.precision, onnx.name)
            try:
                with self._calibrator(attempt) as calibrator:
                    built = build(onnx, attempt, self.settings, self._cache.timings(self.board), calibrator)
            except BuildFailed as error:
                there = self._cache.find(key)
                if there is None or there.refusal:
                    self._keep(key, b"", {}, str(error))
                raise
            self._cache.keep_timings(self.board, built.timing_cache)
            report = {
                "seconds": round(built.seconds, 1),
                "bytes": len(built.plan),
                "warnings": list(built.warnings),
            }
            return self._keep(key, built.plan, report)

    def _keep(self, key: Key, plan: bytes, report: dict[str, Any], refusal: str = "") -> Kept:
        self._rebuilt.add(key)
        return self._cache.keep(key, plan, report, refusal)

    def _calibrator(self, attempt: Attempt) -> AbstractContextManager[Any]:
        if attempt != ATTEMPT:
            return nullcontext()
        source, kind = self._options.implicit, self.settings.implicit.partition(":")[0]
        if source is None and kind not in (SCALES, GOLDEN):  # where the pictures lie is not remembered
            raise BuildFailed(
                "INT8 was calibrated on pictures; build it again: edgepose build --implicit-int8"
            )
        source = source or source_of(self._bundle, self._graph, kind)
        return calibrator(self._bundle, self._graph, source, self.settings.batches[1], self._options.cuda)

    def _opened(self, plan: bytes) -> TensorRtBackend:
        cuda = open_cuda(self._options.cuda)
        return TensorRtBackend(plan, cuda, mapped=self.board.integrated, dla_core=self.settings.dla_core)

    def _started(self, kept: Kept, attempt: Attempt) -> TensorRtBackend:
        with _closed_on_error(self._opened(kept.plan)) as backend:
            kept.report["layers"] = count_layers(backend.describe()).to_dict()
            view = _recorded(self._graph, attempt)
            furthest = reproduced(backend, self._bundle, view, "the engine", self.settings.batches[0])
            kept.report["golden"] = asdict(furthest)
        return backend


def _identity(bundle: Bundle, graph: str) -> str:
    """Of a graph in all its precisions: what was chosen for it holds for no other files."""
    views = {name for name in bundle.files if name.startswith(f"{graph}.") and name.endswith(".onnx")}
    mine = sorted(views | ({scales_file(graph)} & bundle.files.keys()))
    return hashlib.sha256("\n".join(f"{name} {bundle.files[name]}" for name in mine).encode()).hexdigest()


@contextmanager
def _closed_on_error(backend: TensorRtBackend) -> Iterator[TensorRtBackend]:
    try:
        yield backend
    except BaseException:
        backend.close()
        raise


def _recorded(graph: str, attempt: Attempt) -> str:
    """The view whose golden vectors an engine must reproduce.

    Weak FP16 and implicit INT8 are made of the FP32 file, and held against what their precision answered.
    """
    return f"{graph}.{attempt.view if attempt.view.startswith('int8') else ANSWERS[attempt.precision]}"


def _require_sight(seeing: FrameEngine, bundle: Bundle, view: str) -> None:
    """Raises NotReproduced when the engine answers what the kernel prepared otherwise than what the CPU did.

    Shown are the golden pictures as they are, three times as large, and half of them beside padding or beyond
    the frame's border: pictures whose rounding is never in doubt.
    """
    spec, golden = bundle.spec, read(bundle)
    look = _cut if spec.resize == "crop" else _letterboxed
    fed, seen = [], []
    for frame, known in zip(golden.frames, golden.known(spec), strict=True):
        others = {name: known[name] for name in seeing.inputs if name != INPUT}
        for images, answers in look(seeing, frame, others):
            fed.append(seeing.run({INPUT: images, **others}))
            seen.append(answers)
    furthest, allowed = apart(fed, seen, spec), limit(view, spec)
    if not furthest.within(allowed):
        raise NotReproduced(
            f"the kernel prepares the golden pictures wrongly: answers are {figures(furthest)} away, "
            f"allowed are {figures(allowed)}"
        )


Looks = Iterator[tuple[Array, dict[str, Array]]]  # what the CPU prepares, and the answers to the kernel's


def _letterboxed(seeing: FrameEngine, frame: U8, others: Mapping[str, Array]) -> Looks:
    assert not others, "who sees whole frames reads nothing else"
    for shown in (frame, _tripled(frame), frame[:, : frame.shape[1] // 2]):
        yield prepare(shown, seeing.spec)[0], seeing.see(shown)[0]


def _cut(seeing: FrameEngine, frame: U8, others: Mapping[str, Array]) -> Looks:
    whole = _whole(frame)
    beyond = replace(whole, centres=whole.centres + np.rint(whole.sides / 2))
    tripled = _tripled(frame)
    from_it = Regions(3 * whole.centres + 1, 3 * whole.sides, whole.degrees)
    for shown, regions in ((frame, whole), (tripled, from_it), (frame, beyond)):
        yield crop.prepare(shown, regions, seeing.spec), seeing.see_regions(shown, regions, others)


def _whole(frame: U8) -> Regions:
    """The region whose crop, of the frame's own size, is the frame."""
    size = np.array([[frame.shape[1] - 1.0, frame.shape[0] - 1.0]])
    return Regions(size / 2, size, np.zeros(1))


def _tripled(frame: U8) -> U8:
    """Each pixel nine times, the middle one inverted: who samples instead of averaging sees the negative."""
    large = frame.repeat(3, 0).repeat(3, 1)
    large[1::3, 1::3] = 255 - frame
    return large
