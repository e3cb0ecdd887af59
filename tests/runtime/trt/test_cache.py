"""Engines on disk: found by everything they depend on, whole or not at all, built by one process only."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.runtime.trt.board import Board
from edgepose.runtime.trt.build import Settings
from edgepose.runtime.trt.cache import PLAN, RECORD, EngineCache, Key, default_root
from edgepose.runtime.trt.precision import Attempt

BOARD = Board("10.3.0", 87, "36.4.3", "Orin", True)
KEY = Key("ab" * 32, BOARD, Attempt("int8", "strong", "int8.trt-typed"), Settings((1, 2, 4)))
CHANGES: dict[str, Any] = {
    "graph": {"graph": "cd" * 32},
    "TensorRT": {"board": dataclasses.replace(BOARD, tensorrt="10.7.0")},
    "Jetson Linux": {"board": dataclasses.replace(BOARD, l4t="36.4.4")},
    "SM": {"board": dataclasses.replace(BOARD, sm=72)},
    "precision": {"attempt": Attempt("fp16", "strong", "fp16")},
    "typing": {"attempt": Attempt("int8", "weak", "int8.trt", ("INT8", "FP16"))},
    "profile": {"settings": Settings((1, 2, 8))},
    "sparsity": {"settings": Settings((1, 2, 4), sparsity=True)},
    "level": {"settings": Settings((1, 2, 4), level=5)},
}


def test_an_engine_is_found_again_with_its_report(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert cache.find(KEY) is None
    cache.keep(KEY, b"plan", {"seconds": 3})
    found = EngineCache(tmp_path).find(KEY)
    assert found is not None
    assert (found.plan, found.report, found.refusal) == (b"plan", {"seconds": 3}, "")
    assert (found.path / PLAN).read_bytes() == b"plan"  # trtexec --loadEngine takes it as it is


@pytest.mark.parametrize("change", CHANGES)
def test_another_value_of_anything_is_another_engine(change: str, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.keep(KEY, b"plan", {})
    assert cache.find(dataclasses.replace(KEY, **CHANGES[change])) is None


def test_failures_are_remembered_too(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.keep(KEY, b"", {}, "no tactic")
    found = cache.find(KEY)
    assert found is not None
    assert (found.plan, found.refusal) == (b"", "no tactic")


@given(place=st.integers(0, 10**6), flip=st.integers(1, 255), which=st.sampled_from([PLAN, RECORD]))
def test_a_changed_byte_is_never_run(tmp_path_factory, place: int, flip: int, which: str) -> None:
    """Whatever byte of plan or record is changed: the plan that comes back is the one kept, or none."""
    cache = EngineCache(tmp_path_factory.mktemp("cache"))
    kept = cache.keep(KEY, bytes(range(256)), {})
    data = bytearray((kept.path / which).read_bytes())
    data[place % len(data)] ^= flip
    (kept.path / which).write_bytes(data)
    found = cache.find(KEY)
    assert found is None or found.plan in (bytes(range(256)), b"")
    assert found is None or which == RECORD


def test_a_folder_of_another_board_under_this_name_is_not_taken(tmp_path: Path, caplog) -> None:
    cache = EngineCache(tmp_path)
    other = cache.keep(dataclasses.replace(KEY, **CHANGES["SM"]), b"plan", {})
    other.path.rename(tmp_path / KEY.digest)
    assert cache.find(KEY) is None
    assert "another board" in caplog.text


def _build(root: Path, log: Path, hold: float) -> None:
    cache = EngineCache(root)
    with cache.building(KEY):
        if cache.find(KEY) is None:
            with log.open("a") as file:
                file.write("built\n")
            time.sleep(hold)
            cache.keep(KEY, b"plan", {})


def test_of_many_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "engines", tmp_path / "log", 0.2)
    workers = [context.Process(target=_build, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def _killed_while_writing(root: Path) -> None:
    cache = EngineCache(root)
    with cache.building(KEY):
        import edgepose.runtime.trt.cache as module

        def die(path: Path, value: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        module.write_json = die  # type: ignore[assignment]
        cache.keep(KEY, b"half a plan", {})


def test_a_killed_build_leaves_nothing_half_and_no_lock(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=(tmp_path,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    cache = EngineCache(tmp_path)
    assert cache.find(KEY) is None
    assert any(path.name.startswith(f".{KEY.digest}.") for path in tmp_path.iterdir())  # its debris
    with cache.building(KEY):  # not locked for ever
        assert not any(path.name.startswith(f".{KEY.digest}.") for path in tmp_path.iterdir())
        cache.keep(KEY, b"plan", {})
    assert cache.find(KEY) is not None


def test_timings_are_kept_per_release_and_gpu(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert cache.timings(BOARD) == b""
    cache.keep_timings(BOARD, b"timings")
    assert cache.timings(BOARD) == b"timings"
    assert cache.timings(dataclasses.replace(BOARD, sm=72)) == b""
    assert cache.timings(dataclasses.replace(BOARD, tensorrt="10.7.0")) == b""
    assert cache.timings(dataclasses.replace(BOARD, l4t="36.5")) == b"timings"


def test_the_folder_can_be_chosen(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("EDGEPOSE_ENGINES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edgepose" / "engines"
