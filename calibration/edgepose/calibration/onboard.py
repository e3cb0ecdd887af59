"""Engines on the board they run on: proven on golden pictures, scored on labelled ones, into the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgepose.calibration.boxes import Labels
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.evaluation import Shown, require_unseen
from edgepose.calibration.ledger import Gates, Ledger
from edgepose.calibration.measure import Artefact, artefact_of, cpu_artefacts, ledger_of, run_all
from edgepose.calibration.score import evaluate
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.golden import read
from edgepose.runtime.stream.camera_path import CameraPath
from edgepose.runtime.trt.board import conditions
from edgepose.runtime.trt.engines import Engines, Opened, Options
from edgepose.runtime.trt.precision import ANSWERS, LADDER, NO_ENGINE, rungs


@dataclass(frozen=True, slots=True)
class Settings:
    """How engines are made and judged."""

    options: Options
    gates: Gates
    min_height_px: float = 0.0
    threads: int = 1
    cameras: tuple[CameraPath, ...] = ()  # behind which the best of what runs here is scored, too


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found out on the board."""

    board: dict[str, str]
    engines: dict[str, dict[str, dict[str, Any]]]  # graph -> precision -> its steps and its self-test
    ledger: Ledger  # over the pictures shown here; the first row is ONNX FP32 on this board
    live: str  # the precision that runs from now on, or NO_ENGINE

    def failures(self) -> list[str]:
        """In words: engines that do not go live, and gates that rows fail."""
        problems = [
            f"{graph} {precision}: {found['problem']}"
            for graph, of in self.engines.items()
            for precision, found in of.items()
            if found["problem"]
        ]
        return problems + self.ledger.verdict()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "board": self.board,
            "engines": self.engines,
            "live": self.live,
            "ledger": self.ledger.to_dict(),
        }


def stage(precision: str) -> str:
    """The row's name in the ledger."""
    return f"engine {precision.upper()}"


def verified(bundle: Bundle, shown: Shown, settings: Settings) -> Verified:
    """Build or load every engine, prove it, and show it the pictures beside ONNX Runtime, in turns.

    What ran here before (of several graphs' precisions the safest) goes on if it passes, else the next safer
    precision that does; it is remembered for every graph. Errors are those of `Engines` and `ledger_of`.
    """
    remembered = {
        graph: Engines(bundle, graph, settings.options).remembered() for graph in bundle.spec.graphs
    }
    before = max((precision for precision, _ in remembered.values()), key=(*LADDER, NO_ENGINE).index)
    made = {graph: engines for graph, (_, engines) in remembered.items()}
    with ExitStack() as stack:
        board = _Board(bundle, made, stack, {})
        engines = [*filter(None, (board.artefact(precision) for precision in _recorded(bundle)))]
        on_cpu = stack.enter_context(cpu_artefacts(bundle, settings.threads))
        best = engines[0] if engines else on_cpu[-1]
        filmed = [best.behind(camera) for camera in settings.cameras]
        runs = run_all([*on_cpu, *engines, *filmed], shown)
        where = conditions(next(iter(made.values())).board)  # at once: clocks fall when nothing runs
        ledger = ledger_of(runs, shown, bundle.spec, settings.gates, settings.min_height_px)
    ledger = replace(ledger, rows=tuple(replace(row, board=where) for row in ledger.rows))
    live = _live(before, ledger)
    for precision, one in remembered.values():
        if precision != live:
            one.keep_default(live, {"verified": ledger.data})
    return Verified(where, board.records, ledger, live)


@dataclass(frozen=True, slots=True, eq=False)
class _Board:
    """All engines of a bundle while they are verified."""

    bundle: Bundle
    made: dict[str, Engines]  # by graph
    stack: ExitStack  # closes what is opened
    records: dict[str, dict[str, dict[str, Any]]]  # graph -> precision -> what is told of it

    def artefact(self, precision: str) -> Artefact | None:
        """The engines of one precision, proven; None when one of the graphs has none that can be used."""
        opened: list[Opened] = []
        size = 0
        for graph, engines in self.made.items():
            backend, steps = engines.exactly(precision)
            record = {"steps": [asdict(step) for step in steps], "problem": steps[-1].problem}
            self.records.setdefault(graph, {})[precision] = record
            if backend is not None:
                opened.append(engines.seeing(backend, precision))
                self.stack.callback(opened[-1].close)
                test = engines.examined(opened[-1], precision)
                record |= {"golden": steps[-1].report["golden"], **test.to_dict()}
                size += steps[-1].report["bytes"]
        if len(opened) < len(self.made):
            return None
        return artefact_of(stage(precision), opened, self.bundle.spec, precision, size)


def _recorded(bundle: Bundle) -> list[str]:
    """The precisions that the bundle has answers of, so that engines can be proven."""
    known = read(bundle).expected
    return [
        name for name in LADDER if all(f"{graph}.{ANSWERS[name]}" in known for graph in bundle.spec.graphs)
    ]


def lines(found: Verified) -> Iterator[str]:
    """The self-tests for the terminal, one line for each engine, and what runs from now on."""
    for graph, of in found.engines.items():
        for precision, record in of.items():
            told = f"no engine: {record['problem']}" if record["problem"] else _tested(record)
            yield f"{graph} {precision}: {told}"
    yield f"runs from now on: {found.live if found.live != NO_ENGINE else 'ONNX Runtime on the CPU'}"


def _tested(record: Mapping[str, Any]) -> str:
    cpu, drift = record["onnx_runtime"], record["drift"]
    parts = {
        "from golden": _figures(record["golden"]),
        "from ONNX Runtime": _figures(cpu) if cpu else "no such view",
        "joints from FP32, median / 95 % / most": "nobody to compare"
        if drift["p50_px"] is None
        else f"{drift['p50_px']:.2f} / {drift['p95_px']:.2f} / {drift['most_px']:.2f} px",
    }
    return "; ".join(f"{name} {text}" for name, text in parts.items())


def _figures(difference: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2g}" for name, value in difference.items())


def ap_losses(
    bundle: Bundle, made: Mapping[str, Engines], precisions: Sequence[str], data: str
) -> dict[str, float]:
    """Points of AP that the engines of each precision lose to ONNX FP32 here, over `data`.

    Built where they are not there yet; without a figure where an engine cannot be used. Networks that see
    crops are told of the labelled people. Raises GateFailed for pictures that INT8 was calibrated on.
    """
    pictures = open_dataset(data)
    require_unseen(pictures, bundle)
    samples = (pictures[index] for index in range(len(pictures)))
    shown = Shown(pictures, Labels().find(samples) if bundle.spec.resize == "crop" else None)
    with ExitStack() as stack:
        board = _Board(bundle, dict(made), stack, {})
        found = {precision: board.artefact(precision) for precision in precisions}
        usable = {precision: one for precision, one in found.items() if one is not None}
        reference = stack.enter_context(cpu_artefacts(bundle, threads=1))[0]
        runs = run_all([reference, *usable.values()], shown)
    truth, joints = [pictures.people(index) for index in range(len(pictures))], bundle.spec.joints()
    best, *others = (evaluate(truth, run.poses, joints).ap for run in runs)
    return {precision: 100 * (best - ap) for precision, ap in zip(usable, others, strict=True)}


def _live(before: str, ledger: Ledger) -> str:
    """The precision of before if its row passes, else the next safer one that does."""
    passing = {row.stage for row in ledger.rows if not ledger.failures(row)}
    safer = rungs(before if before in LADDER else LADDER[0])
    return next((precision for precision in safer if stage(precision) in passing), NO_ENGINE)


def differences(before: Ledger, here: Ledger) -> list[str]:
    """In words: what the two were not measured on alike, so that their rows cannot stand in one ledger."""
    there, now = _measured_on(before), _measured_on(here)
    return [
        f"{name} {there.get(name)} (here {now.get(name)})"
        for name in sorted({*there, *now})
        if there.get(name) != now.get(name)
    ]


def _measured_on(ledger: Ledger) -> dict[str, Any]:
    """All that the rows of one ledger share; what INT8 was calibrated on is the bundle's."""
    shared = {name: value for name, value in ledger.data.items() if name != "calibration"}
    return shared | {"min_height_px": ledger.baseline.score.min_height_px}
