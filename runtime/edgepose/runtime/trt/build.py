"""An ONNX file of the bundle becomes a TensorRT engine of this board."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.progress import progress_bar
from edgepose.runtime.signals import postponed
from edgepose.runtime.trt.cuda import OutOfMemory
from edgepose.runtime.trt.listener import Said, heard
from edgepose.runtime.trt.monitor import Phases, monitor
from edgepose.runtime.trt.precision import Attempt, network_flags

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

MIB = 1 << 20
DEFAULT_LEVEL = 3  # TensorRT's own
# First release whose parser takes the operator: operators.md of onnx-tensorrt's 8.5-GA, 8.6-GA, 10.1-GA.
OPERATOR_SINCE = {
    "LayerNormalization": "8.6",
    "GroupNormalization": "8.6",
    "Gelu": "10.1",
    "DeformConv": "10.1",
}
# Newest opset of the releases before 10, and of 10.1, which reads up to 20: the same tables.
OLD_OPSET, OPSET_OF_10 = 17, 20
_OPSET = re.compile(r"opset (?:version )?(\d+)", re.IGNORECASE)
_OPERATOR = (r"No importer registered for op: (\w+)", r"parsing node number \d+ \[(\w+)")
_MOST_REASONS = 4  # a transformer can have the same one 30 times
_WORKSPACE = ("insufficient workspace", "could not find any implementation", "workspace size")


@dataclass(frozen=True, slots=True)
class Settings:
    """What may be chosen about an engine; all of it is part of the engine's key."""

    batches: tuple[int, int, int] = (1, 1, 1)  # smallest, the one to be fast for, largest
    workspace_mib: int = 1024
    level: int = DEFAULT_LEVEL  # 0 (quick build) to 5 (long search)
    sparsity: bool = False  # use the 2:4 pattern in the weights where it is there
    dla_core: int | None = None
    implicit: str = (
        ""  # identity of where INT8's scales come from (`implicit.Source`); empty: Q/DQ in the file
    )

    def __post_init__(self) -> None:
        """Raises EdgeposeError for values that contradict each other."""
        low, best, high = self.batches
        if not 1 <= low <= best <= high:
            raise EdgeposeError(
                f"batches {low},{best},{high}: must be smallest, best, largest, in that order"
            )


class BuildFailed(EdgeposeError):
    """TensorRT makes no engine of this file."""


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """An engine fresh from the builder."""

    plan: bytes
    timing_cache: bytes
    warnings: tuple[str, ...]
    seconds: float


def build(
    onnx: Path, attempt: Attempt, settings: Settings, timing_cache: bytes = b"", calibrator: Any = None
) -> Built:
    """Build one engine; takes minutes on a board. The driver must have been asked (`board.require_board`).

    With a `calibrator` (`implicit.calibrator`) the tensors of a file without Q/DQ get their scales from it.

    Raises BuildFailed with TensorRT's reason, OutOfMemory when the GPU's memory is exhausted, EdgeposeError
    for settings this board cannot follow.
    """
    import tensorrt as trt

    start, said = time.monotonic(), Said()
    # TensorRT prints what a callback of ours raises, and goes on or takes it for a refusal.
    with heard(said) as logger, postponed(_wait) as signals:
        trt.init_libnvinfer_plugins(logger, "")  # RoiAlign is a plugin in several releases
        builder = trt.Builder(logger)
        network = builder.create_network(network_flags(attempt.typing))
        if network is None:
            raise BuildFailed(f"{onnx.name}: TensorRT makes no network: {said.why()}")
        parser = trt.OnnxParser(network, logger)  # owns the weights, so it must outlive the build
        if not parser.parse(onnx.read_bytes()):
            raise BuildFailed(
                f"{onnx.name}: TensorRT {trt.__version__} cannot read it: {_refusal(parser, said)}"
            )
        config = _configuration(builder, attempt, settings)
        if calibrator is not None and hasattr(config, "int8_calibrator"):
            config.int8_calibrator = calibrator
        _add_profile(builder, network, config, settings)
        _offer_timing_cache(config, timing_cache)
        with progress_bar() as bar:
            if (told := monitor(Phases(bar), signals)) is not None and hasattr(config, "progress_monitor"):
                config.progress_monitor = told
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _failure(onnx.name, said, settings)
        kept = config.get_timing_cache()
        cache = bytes(kept.serialize()) if kept is not None else b""
    return Built(bytes(plan), cache, tuple(said.lines), time.monotonic() - start)


def _wait() -> None:
    log.warning("stopping as soon as TensorRT lets go; once more ends it at once")


def _refusal(parser: trt.OnnxParser, said: Said) -> str:
    """Why the parser refuses, with the release that knows the operator where that is the reason."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    texts = [error.desc() for error in errors]
    operators = [error.node_operator() for error in errors if hasattr(error, "node_operator")]
    for pattern in _OPERATOR:
        operators += re.findall(pattern, " ".join([*texts, *said.errors]))
    hints = [
        f"{name} needs TensorRT {OPERATOR_SINCE[name]} or newer (update JetPack, or export it decomposed)"
        for name in dict.fromkeys(operators)
        if name in OPERATOR_SINCE
    ]
    named = _OPSET.search(" ".join([*texts, *said.errors]))
    if named and OLD_OPSET < int(named[1]) <= OPSET_OF_10:
        hints.append(
            f"opset {named[1]} needs TensorRT 10.1 or newer (update JetPack, or export it with {OLD_OPSET})"
        )
    return "; ".join([*hints, *dict.fromkeys(texts)][:_MOST_REASONS]) or said.why()


def _configuration(builder: trt.Builder, attempt: Attempt, settings: Settings) -> trt.IBuilderConfig:
    import tensorrt as trt

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's report needs it
    for name in attempt.flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if attempt.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, with 10 bits of mantissa: as coarse as FP16
    if settings.sparsity:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = settings.level
    elif settings.level != DEFAULT_LEVEL:
        raise EdgeposeError(
            f"--level {settings.level}: TensorRT {trt.__version__} has no levels; leave it out"
        )
    if settings.dla_core is not None:
        _send_to_dla(builder, config, attempt, settings)
    return config


def _send_to_dla(
    builder: trt.Builder, config: trt.IBuilderConfig, attempt: Attempt, settings: Settings
) -> None:
    import tensorrt as trt

    core = settings.dla_core
    assert core is not None, "no DLA was asked for"
    if core >= builder.num_DLA_cores:  # asked of the builder: can_run_on_DLA logs an error on boards without
        raise HardwareError(
            f"--dla-core {core}: this board has {builder.num_DLA_cores} for TensorRT {trt.__version__} "
            "(Orin Nano and Thor have none; TensorRT 10.8 to 11.4.0 uses none)"
        )
    if len({*settings.batches}) > 1:  # it would run on the GPU, and say so in the log alone
        raise EdgeposeError("--dla-core: the DLA takes one batch size; add --batch 1, or another one")
    if attempt.precision == "int8" and attempt.view.startswith("int8"):
        raise BuildFailed(
            "--dla-core: the DLA takes no INT8 written as Q/DQ; build with --precision fp16, or on TensorRT "
            "8.x and 10.x with --implicit-int8 scales"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # it lacks many layers


def _add_profile(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, settings: Settings
) -> None:
    """The batches the engine must take. A graph of a fixed batch needs no profile."""
    profile, is_open = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if -1 in rest:
            raise EdgeposeError(
                f"{tensor.name}: its shape {(batch, *rest)} is open beyond the batch; export it again"
            )
        if batch == -1:
            profile.set_shape(tensor.name, *((size, *rest) for size in settings.batches))
            is_open = True
        elif settings.batches != (batch, batch, batch):
            raise EdgeposeError(f"{tensor.name}: its batch is fixed at {batch}; build with --batch {batch}")
    if is_open and config.add_optimization_profile(profile) < 0:
        raise BuildFailed("TensorRT refuses the batch profile; see the log (edgepose -v build …)")


def _offer_timing_cache(config: trt.IBuilderConfig, saved: bytes) -> None:
    """Start from the saved timings where they are of this release and board, else from none."""
    for data in (saved, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        log.warning("the saved timing cache is damaged or of another board; building without it")


def _failure(name: str, said: Said, settings: Settings) -> EdgeposeError:
    if said.short_of_memory():
        return OutOfMemory(
            f"{name}: the GPU's memory is exhausted ({said.why()}); stop what else uses it, or build with a "
            f"smaller --workspace than {settings.workspace_mib}"
        )
    advice = ""
    if any(phrase in said.why().lower() for phrase in _WORKSPACE):
        advice = f"; build with a larger --workspace than {settings.workspace_mib} (MiB)"
    return BuildFailed(f"{name}: TensorRT cannot build it: {said.why()}{advice}")
