"""What a bundle must show on a board before it goes live there."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from edgepose.runtime.backend import CPU_VIEWS
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.child import run_verb
from edgepose.runtime.deploy.streaming import Streaming
from edgepose.runtime.errors import GateFailed, HardwareError, MissingLibrary
from edgepose.runtime.golden import NotReproduced, reproduced
from edgepose.runtime.trt.board import require_board
from edgepose.runtime.trt.precision import NO_ENGINE


def prove(bundle: Bundle, streaming: Streaming) -> dict[str, Any]:
    """JSON-able figures of what will run here: an engine where one passes, else ONNX Runtime.

    Engines are built, timed and scored by `edgepose build` and `edgepose verify --on-board`, whose rows go
    into the bundle's ledger; one that fails gives way to the next safer one. ONNX Runtime must reproduce the
    golden vectors. Raises GateFailed for a bundle that must not go live.
    """
    on_cpu = {"runs": "ONNX Runtime", "golden": _on_cpu(bundle, streaming.precision)}
    if streaming.device == "cpu" or not _has_engines():
        return on_cpu
    run_verb("build", bundle.path, "--json", may_fail=True)
    found = json.loads(run_verb("verify", bundle.path, "--on-board", "--json", may_fail=True))
    if found["live"] != NO_ENGINE:
        on_cpu = {"runs": f"{found['live']} engine"}
    return on_cpu | {"board": found["board"], "ledger": found["ledger"]}


def _has_engines() -> bool:
    try:
        require_board()
    except (HardwareError, MissingLibrary):
        return False
    return True


def _on_cpu(bundle: Bundle, precision: str) -> dict[str, dict[str, float]]:
    """How far ONNX Runtime's answers to the golden pictures are from the recorded ones, by view."""
    found = {}
    for graph in bundle.spec.graphs:
        view = CPU_VIEWS.get(precision, CPU_VIEWS["fp32"])
        with OnnxRuntimeBackend(bundle.graph(graph, view), threads=1) as backend:
            try:
                difference = reproduced(backend, bundle, f"{graph}.{view}", "ONNX Runtime here")
            except NotReproduced as error:
                raise GateFailed(f"{bundle.spec.model}: {error}") from error
        found[f"{graph}.{view}"] = asdict(difference)
    return found
