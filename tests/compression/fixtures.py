"""The stand-in network in every form the compression and export tests need, each made once."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto

from edgepose.compression.execution import INPUT, Feeds
from edgepose.compression.quantize import Quantized, quantize
from edgepose.export.simplify import simplify
from edgepose.export.trace import trace
from edgepose.runtime.poses import F32
from edgepose.runtime.spec import Spec


def load(name: str) -> Any:
    """A module of this folder, under one name for all tests (importlib mode has no packages)."""
    key = f"edgepose_tests_{name}"
    if key not in sys.modules:
        found = importlib.util.spec_from_file_location(key, Path(__file__).parent / f"{name}.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[key] = module
        found.loader.exec_module(module)
    return sys.modules[key]


SPEC = Spec(family="qrpose", model="standin", width=64, height=64)


@cache
def make_images() -> list[F32]:
    """Twelve normalised inputs (1, 3, 64, 64) with structure at several scales."""
    rng = np.random.default_rng(3)
    images = []
    for _ in range(12):
        coarse = rng.normal(size=(3, 8, 8)).repeat(8, 1).repeat(8, 2)
        fine = rng.normal(size=(3, 64, 64))
        images.append((coarse + 0.3 * fine)[None].astype(np.float32))
    return images


@cache
def make_feeds() -> list[Feeds]:
    return [{INPUT: image} for image in make_images()]


@cache
def make_standin() -> Any:
    torch.set_num_threads(1)
    return load("standin").trained_like()


@cache
def make_raw() -> ModelProto:
    return trace(make_standin(), SPEC)["pose"]


@cache
def make_traced() -> ModelProto:
    return simplify(make_raw(), make_feeds()[:2])[0]


@cache
def make_quantized() -> Quantized:
    return quantize(make_traced(), make_feeds(), "qrpose")


@pytest.fixture(scope="session")
def spec() -> Spec:
    return SPEC


@pytest.fixture(scope="session")
def images() -> list[F32]:
    return make_images()


@pytest.fixture(scope="session")
def feeds() -> list[Feeds]:
    """The same by name, as a graph wants them."""
    return make_feeds()


@pytest.fixture(scope="session")
def standin() -> Any:
    return make_standin()


@pytest.fixture(scope="session")
def raw() -> ModelProto:
    """The FP32 graph of the stand-in as it was traced."""
    return make_raw()


@pytest.fixture(scope="session")
def traced() -> ModelProto:
    """The FP32 graph of the stand-in, simplified."""
    return make_traced()


@pytest.fixture(scope="session")
def quantized() -> Quantized:
    return make_quantized()
