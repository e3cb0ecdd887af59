"""A whole stream with an engine in it: `edgepose stream --device …` on the stand-in, read by a client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import host_kernel
import numpy as np
import pytest

from edgepose.runtime.backend import BEST
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.stream.client import read_rtsp
from edgepose.runtime.stream.grammar import Synthetic, parse_endpoint
from edgepose.runtime.stream.lines import people_of
from edgepose.runtime.stream.session import Input, Settings, Stream
from edgepose.runtime.stream.source import Feeder
from edgepose.runtime.trt import frames
from edgepose.runtime.verb_stream import _estimator, _Means, _synthetic, stream

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")
pytestmark = pytest.mark.skipif(
    host_kernel.compiler() is None, reason="no C++ compiler (c++) to build the kernel for the host"
)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The heights of the pictures that were shown to engines."""
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path / "engines"))
    heights: list[int] = []
    original = frames.FrameEngine.see

    def counted(engine: Any, frame: Any) -> Any:
        heights.append(len(frame))
        return original(engine, frame)

    monkeypatch.setattr(frames.FrameEngine, "see", counted)
    return heights


def verb(bundle: Bundle, poses: Path, *words: str) -> int:
    arguments = ["--source", "synthetic:seed=3,size=320x240,fps=10", "--bundle", str(bundle.path)]
    arguments += ["--rtsp", ":0/pose", "--poses", str(poses), "--duration", "1", *words]
    return guarded(lambda: stream.main(arguments, standalone_mode=False))


def lines(path: Path) -> dict[int, Any]:
    """Poses by the frame's number."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["frame"]: people_of(line) for line in found}


def test_the_verb_streams_an_engines_poses_and_they_are_the_cpus(bundle, install, seen, tmp_path) -> None:
    install("10.3")
    assert verb(bundle, tmp_path / "gpu.jsonl", "--device", "gpu", "--precision", "fp32") == 0
    assert seen.count(240) >= 3
    shown = len(seen)
    assert verb(bundle, tmp_path / "auto.jsonl", "--precision", "fp32") == 0
    assert len(seen) > shown  # what was built is taken by itself
    shown = len(seen)
    assert verb(bundle, tmp_path / "cpu.jsonl", "--device", "cpu", "--precision", "fp32") == 0
    assert len(seen) == shown
    expected = lines(tmp_path / "cpu.jsonl")
    for name in ("gpu", "auto"):
        found = lines(tmp_path / f"{name}.jsonl")
        both = found.keys() & expected.keys()
        assert len(both) >= 3
        for frame in both:
            assert len(found[frame]) == len(expected[frame]) > 0
            np.testing.assert_allclose(found[frame].keypoints, expected[frame].keypoints, atol=1)


def test_a_viewer_gets_what_the_engine_saw(bundle, install, seen) -> None:
    """The estimator's thread owns the engine; picture and poses of a frame arrive together."""
    gpu = install("10.3")
    source = Synthetic(3, (320, 240), 10)
    made = Input("synthetic", lambda: Feeder("synthetic", _synthetic(source), 10))
    settings = Settings(parse_endpoint(":0/pose"), threshold=0.0)
    with Stream(settings, made, lambda: _estimator(bundle, _Means(BEST, "gpu"), None)) as served:
        received = read_rtsp(served.url, 4)
    assert [frame.image.shape for frame in received] == [(240, 320, 3)] * 4
    assert all(frame.poses is not None and frame.poses["people"] for frame in received)
    assert seen.count(240) >= 4
    assert (gpu.blocks, gpu.pinned) == ({}, {})


def test_a_lost_gpu_ends_the_stream_with_a_sentence(
    bundle, install, seen, tmp_path, capsys, monkeypatch
) -> None:
    gpu = install("10.3")
    original = frames.FrameEngine.see

    def failing(engine: Any, frame: Any) -> Any:
        gpu.faults.lost = len(frame) == 240  # a picture of the stream, not a golden one
        return original(engine, frame)

    monkeypatch.setattr(frames.FrameEngine, "see", failing)
    assert verb(bundle, tmp_path / "poses.jsonl", "--device", "gpu") == 4
    error = capsys.readouterr().err
    assert "the engine is lost: start edgepose again" in error
    assert "Traceback" not in error


def test_a_precision_that_only_engines_have_is_refused_on_the_cpu(bundle, tmp_path, capsys) -> None:
    assert verb(bundle, tmp_path / "poses.jsonl", "--device", "cpu", "--precision", "fp16") == 2
    assert "precision 'fp16': choose one of fp32, int8" in capsys.readouterr().err
