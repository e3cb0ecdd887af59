"""What a bundle must show before a board streams it: the stand-in's engines, made and verified as by hand."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgepose.export.verb_build import build
from edgepose.export.verb_verify import verify
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.deploy import proof
from edgepose.runtime.deploy.streaming import Streaming

SOURCE = ("--source", "/dev/null")


@pytest.fixture
def own(bundle: Bundle, tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of the bundle, and verbs that run in this process, where the stand-in is, on few pictures."""
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path / "engines"))
    more: dict[str, tuple[Any, list[str]]] = {
        "build": (build, []),
        # The gates of AP and duplicates are open: what is tested is not the small network's INT8.
        "verify": (verify, ["--data", str(labelled), "--max-ap-loss", "60", "--max-duplicates", "100"]),
    }

    def run(verb: str, *words: object, may_fail: bool) -> str:
        command, added = more[verb]
        with contextlib.redirect_stdout(io.StringIO()) as told:
            code = guarded(lambda: command.main([*map(str, words), *added], standalone_mode=False))
        assert code == 0 or (may_fail and code == 1)
        return told.getvalue()

    monkeypatch.setattr(proof, "run_verb", run)
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / "bundle"))


def test_engines_are_built_scored_and_entered(own: Bundle, install) -> None:
    install("10.3")
    found = proof.prove(own, Streaming(SOURCE))
    assert found["runs"] in ("int8 engine", "fp16 engine")  # whichever was faster there
    assert found["board"]["tensorrt"] == "10.3.0"
    stages = [row["stage"] for row in Bundle.open(own.path).read("ledger.json", "a ledger")["rows"]]
    assert stages == [row["stage"] for row in found["ledger"]["rows"]]
    assert "engine INT8" in stages


def test_an_engine_that_fails_gives_way(own: Bundle, install) -> None:
    install("10.3").faults.wrong_precisions = {"int8", "fp16"}
    assert proof.prove(own, Streaming(SOURCE))["runs"] == "fp32 engine"


def test_without_an_engine_onnx_runtime_streams(own: Bundle, install) -> None:
    install("10.3").faults.unbuildable = {"int8", "fp16", "fp32"}
    found = proof.prove(own, Streaming(SOURCE))
    assert found["runs"] == "ONNX Runtime"
    assert set(found["golden"]) == {"pose.int8.ort"}
    assert found["board"]["tensorrt"] == "10.3.0"


def test_who_asks_for_the_cpu_gets_no_engines(own: Bundle, install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("10.3")
    monkeypatch.setattr(proof, "run_verb", None)
    wish = Streaming((*SOURCE, "--device", "cpu", "--precision", "fp32"))
    assert set(proof.prove(own, wish)["golden"]) == {"pose.fp32"}
