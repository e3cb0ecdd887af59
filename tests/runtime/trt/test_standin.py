"""The stand-in itself: as strict as the real bindings, and seen to catch the mistakes it is there for."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import pytest
from standin_tensorrt import NotSimulated, WouldCrash
from trt_surface import RELEASES, surface

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.trt import runner as runners
from edgepose.runtime.trt.build import BuildFailed, Built, Settings, build
from edgepose.runtime.trt.cuda import open_cuda
from edgepose.runtime.trt.precision import attempts, typings

BATCHES = Settings(batches=(1, 2, 4))


def built(bundle: Bundle, precision: str = "int8", settings: Settings = BATCHES) -> Built:
    attempt = attempts(precision, typings())[0]
    return build(bundle.graph("pose", attempt.view), attempt, settings)


def images(batch: int) -> dict[str, Any]:
    return {"images": np.random.default_rng(1).standard_normal((batch, 3, 32, 32), np.float32)}


@pytest.mark.parametrize("release", RELEASES)
def test_it_has_exactly_the_names_of_the_release(release: str, install) -> None:
    install(release)
    trt, names = sys.modules["tensorrt"], surface(release)["names"]
    assert trt.__version__ == surface(release)["version"]
    assert {name for name in vars(trt) if not name.startswith("_")} == names.keys()
    for name, entry in names.items():
        members = {m for part in ("methods", "readable", "nested", "values") for m in entry.get(part, {})}
        extra = {m for m in vars(getattr(trt, name)) if not m.startswith("_")} - members if members else set()
        # the surface counts ILogger.ERROR and the like as constants, an enum has a name and a value
        assert extra <= {"name", "value", "itemsize", *entry.get("constants", ())}, name


def test_integers_of_enums_are_those_of_the_release(install) -> None:
    install("8.6")
    assert int(sys.modules["tensorrt"].BuilderFlag.REFIT) == 5
    install("10.3")
    assert int(sys.modules["tensorrt"].BuilderFlag.REFIT) == 4


MISTAKES = {
    "unknown name": (AttributeError, lambda trt, b, c: trt.BuilderFlagg),
    "calibrator of old": (AttributeError, lambda trt, b, c: trt.IInt8EntropyCalibrator2),
    "INT8 flag of old": (AttributeError, lambda trt, b, c: c.set_flag(trt.BuilderFlag.INT8)),
    "workspace of old": (AttributeError, lambda trt, b, c: setattr(c, "max_workspace_size", 1 << 30)),
    "flag by number": (TypeError, lambda trt, b, c: c.set_flag(1)),
    "shift by enum": (TypeError, lambda trt, b, c: b.create_network(1 << trt.BuilderFlag.DEBUG)),
    "wrong keyword": (
        TypeError,
        lambda trt, b, c: c.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, size=1),
    ),
    "float for int": (
        TypeError,
        lambda trt, b, c: c.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1e9),
    ),
    "enum of another kind": (
        TypeError,
        lambda trt, b, c: setattr(c, "profiling_verbosity", trt.DeviceType.GPU),
    ),
    "not simulated call": (NotSimulated, lambda trt, b, c: c.reset()),
    "not simulated property": (NotSimulated, lambda trt, b, c: setattr(c, "avg_timing_iterations", 2)),
    "not simulated class": (NotSimulated, lambda trt, b, c: trt.Refitter(1, 2)),
    "no constructor": (TypeError, lambda trt, b, c: trt.IBuilderConfig()),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_never_silently_accepted(mistake: str, install) -> None:
    install("11.4")
    trt = sys.modules["tensorrt"]
    builder = trt.Builder(trt_logger(trt))
    error, act = MISTAKES[mistake]
    if mistake == "not simulated class":
        error = (NotSimulated, TypeError)
    with pytest.raises(error):
        act(trt, builder, builder.create_builder_config())


def trt_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            pass

    return Logger()


def test_a_logger_whose_base_was_not_initialised_is_refused(install) -> None:
    install("10.3")
    trt = sys.modules["tensorrt"]
    logger = type("Logger", (trt.ILogger,), {"__init__": lambda self: None, "log": print})
    with pytest.raises(TypeError, match="must be called"):
        logger()


def test_without_a_driver_it_says_that_the_process_would_end(install) -> None:
    gpu = install("10.16")
    trt = sys.modules["tensorrt"]
    gpu.faults.no_driver = True
    for kind in (trt.Runtime, trt.Builder):
        with pytest.raises(WouldCrash):
            kind(trt_logger(trt))


def mutated(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Our own source with one line changed, in place of the original."""
    source = inspect.getsource(getattr(owner, name))
    assert old in source
    lines = source.splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    text = "\n".join(line[margin:] for line in lines).replace(old, new)
    scope = dict(vars(runners if owner is runners.TensorRtBackend else owner))
    exec(compile("from __future__ import annotations\n" + text, "mutant", "exec"), scope)
    monkeypatch.setattr(owner, name, scope[name])


RUN_MUTANTS = {
    "one buffer for all": (
        "_tensor",
        "self._buffers.append(buffer)",
        "buffer = (self._buffers or [buffer])[0]; self._buffers.append(buffer)",
    ),
    "sized by the best, not the largest": ("_allocate", "(name, 0)[2]", "(name, 0)[1]"),
    "half the memory": ("_tensor", "* dtype.itemsize", "* dtype.itemsize // 2"),
    "outputs and inputs swapped": ("_allocate", 'name == "INPUT"', 'name == "OUTPUT"'),
    "every output at the first's address": (
        "_allocate",
        "tensor.buffer.address)",
        "next(iter((self._outputs or self._inputs).values())).buffer.address)",
    ),
    "the host's address": ("_allocate", "tensor.buffer.address)", "tensor.buffer.host.ctypes.data)"),
    "no context on the thread": ("owned", "with self.cuda.current():", "if True:"),
    "the old call": (
        "_run",
        "execute_async_v3(self._stream)",
        "execute_async_v2([], self._stream)",
    ),
    "shape never set": ("_fed", "self._set_shape(name, array.shape)", "pass"),
    "the wrong type": ("_tensor", "np.dtype(numpy_type(type_name))", "np.dtype(np.float16)"),
}


@pytest.mark.parametrize("mutant", RUN_MUTANTS)
def test_a_mistake_in_the_runner_is_caught(mutant: str, bundle: Bundle, install, monkeypatch) -> None:
    """Each of these would compute nonsense or touch foreign memory on a board."""
    install("10.3")
    plan = built(bundle).plan
    expected = runners.TensorRtBackend(plan, open_cuda(), mapped=False).run(images(3))
    mutated(monkeypatch, runners.TensorRtBackend, *RUN_MUTANTS[mutant])

    def answers() -> dict[str, Any]:
        return runners.TensorRtBackend(plan, open_cuda(), mapped=False).run(images(3))

    try:
        found = answers()
    except (WouldCrash, Exception):
        return
    assert any(not np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("release", "bits"), [("8.6", 2), ("10.3", 1)])
def test_network_flags_by_number_are_caught(
    release: str, bits: int, bundle: Bundle, install, monkeypatch
) -> None:
    """1 is right on 8.6 (explicit batch) and 2 on 10.3 (strong typing); each is wrong on the other."""
    install(release)
    monkeypatch.setattr("edgepose.runtime.trt.build.network_flags", lambda typing: bits)
    with pytest.raises(BuildFailed, match=r"explicit batch|network flags|int8 is not configured"):
        built(bundle)
