"""The artefacts that a bundle and its origin are: torch, quantized torch, and what ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates, Ledger
from edgepose.calibration.measure import (
    Artefact,
    artefact_of,
    cpu_artefacts,
    environment,
    ledger_of,
    run_all,
)
from edgepose.compression.artefact import open_compressed
from edgepose.compression.source_model import load_bundled_model
from edgepose.compression.torch_quantize import load_quantized_torch
from edgepose.export.specs import CONTRACTS
from edgepose.runtime.backend import Array, Backend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.stream.camera_path import CameraPath

TORCH_FP32, TORCH_INT8 = "torch FP32", "torch INT8 (NNCF)"


class TorchBackend:
    """A torch model behind the protocol of `runtime.backend`, so that one estimator serves all rows."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model.eval()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name."""
        with torch.inference_mode():
            outputs = self._model(**{name: torch.from_numpy(np.asarray(feeds[name])) for name in feeds})
        return {name: value.numpy() for name, value in outputs.items()}

    def close(self) -> None:
        """Free the model."""
        del self._model

    def __enter__(self) -> TorchBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the artefacts of one ledger come from."""

    bundle: Bundle
    weights: Path
    compressed: Path | None = None  # what `edgepose compress` wrote: adds the quantized torch row
    threads: int = 1


@contextmanager
def artefacts(sources: Sources) -> Iterator[list[Artefact]]:
    """All artefacts, torch FP32 first. Raises EdgeposeError when weights or folder are not the bundle's."""
    bundle, spec = sources.bundle, sources.bundle.spec
    torch.set_num_threads(sources.threads)
    model = load_bundled_model(bundle, sources.weights)
    modules = CONTRACTS[spec.family].modules(model)
    plain: list[Backend] = [TorchBackend(module) for module in modules.values()]
    with ExitStack() as stack:
        found = [artefact_of(TORCH_FP32, plain, spec, "fp32", sources.weights.stat().st_size)]
        if sources.compressed is not None:
            found.append(_quantized_torch(sources.compressed, model, bundle))
        found += stack.enter_context(cpu_artefacts(bundle, sources.threads))
        yield found


def _quantized_torch(compressed: Path, model: torch.nn.Module, bundle: Bundle) -> Artefact:
    found, spec = open_compressed(compressed), bundle.spec
    if found.sha256() != bundle.provenance.get("compressed_sha256"):
        raise EdgeposeError(
            f"{compressed}: not the folder that {bundle.path} says it was exported from; name that one, or "
            "export this one"
        )
    folder = found.torch()
    quantized = load_quantized_torch(folder, model, torch.zeros(1, 3, spec.height, spec.width))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return artefact_of(TORCH_INT8, [TorchBackend(quantized)], spec, "int8", size)


def against_torch(
    sources: Sources, shown: Shown, gates: Gates, min_height_px: float, cameras: Sequence[CameraPath] = ()
) -> Ledger:
    """The ledger of a workstation; behind each of the `cameras` the last artefact is scored once more."""
    with artefacts(sources) as found:
        filmed = [found[-1].behind(camera) for camera in cameras]
        runs = run_all([*found, *filmed], shown)
        ledger = ledger_of(runs, shown, sources.bundle.spec, gates, min_height_px)
    return replace(ledger, environment=torch_environment())


def torch_environment() -> dict[str, str]:
    """`environment`, and the torch that the first row ran in."""
    return environment() | {"torch": str(torch.__version__)}
