"""The dense and the sparse graph of the shipped weights: the same people, the same AP; one is the faster."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.quality import assess
from edgepose.calibration.score import Score, evaluate
from edgepose.compression.source_model import load_bundled_model
from edgepose.export.verb_export import export
from edgepose.runtime.backend import open_backend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.estimator import Estimator
from edgepose.training.models.qrpose.network import QrPose


def run(*arguments: object) -> int:
    with contextlib.redirect_stdout(io.StringIO()):
        return guarded(lambda: export.main([str(a) for a in arguments], standalone_mode=False))


@pytest.fixture(scope="module", params=["sparse", "dense"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("heads") / request.param
    assert run("qrpose_tiny", "--option", f"head={request.param}", "--out", out) == 0
    return Bundle.open(out)


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    return {}


def test_64_candidates_lose_nobody_and_nobody_is_found_twice(
    bundle: Bundle, scores: dict[str, Score]
) -> None:
    """AP of the sparse graph with M = 64 is that of the dense graph (specs/qrpose.md section 7)."""
    model = load_bundled_model(bundle, None)
    assert isinstance(model, QrPose)
    assert model.config.candidates == 64
    data = open_dataset("synthetic:count=40,seed=77,size=256")
    people = [data.people(index) for index in range(len(data))]
    with open_backend(bundle, "fp32", threads=1) as backend:
        estimate = Estimator(backend, bundle.spec)
        poses = [estimate(data[index].image) for index in range(len(data))]
    assert assess(people, poses, data.skeleton, 48.0).duplicates == 0
    scores[model.config.head] = evaluate(people, poses, data.skeleton, 48.0)
    if len(scores) == 2:
        assert scores["dense"].ap > 0.1 + 1e-3
        assert scores["sparse"].ap == pytest.approx(scores["dense"].ap, abs=1e-3)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("head", "NAME=VALUE"),
        ("head=[", "YAML"),
        ("haed=dense", "did you mean 'head'"),
        ("head=x", "'sparse' or 'dense'"),
        ("candidates=many", "integer"),
    ],
)
def test_a_wrong_option_is_named(
    option: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    assert run("qrpose_tiny", "--option", option, "--out", tmp_path / "b") == 2
    assert said in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
