"""The quantized PyTorch model: quantizers as in the ONNX file, without a compiler, saved and rebuilt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from edgepose.compression.quantize import Quantized
from edgepose.compression.torch_quantize import (
    CONFIG,
    WEIGHTS,
    _fake_quantize,
    fold_batch_norm,
    load_quantized_torch,
    quantize_torch,
    save_quantized_torch,
    without_compiler,
)
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def quantized_torch(standin: Any, images: list[F32]) -> nn.Module:
    return quantize_torch(standin, images, "qrpose")


def quantizers(model: nn.Module) -> dict[str, Any]:
    from nncf.torch.function_hook.wrapper import get_hook_storage

    hooks = get_hook_storage(model).named_hooks(remove_duplicate=False)
    return {name: hook for name, hook in hooks if hasattr(hook, "signed")}


def test_folding_removes_every_norm_and_changes_nothing(standin: Any, images: list[F32]) -> None:
    image = torch.from_numpy(images[0])
    folded = fold_batch_norm(standin, image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(
        isinstance(module, nn.BatchNorm2d) for module in standin.modules()
    )  # the given one is untouched
    with torch.no_grad():
        before, after = standin(image), folded(image)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-4)


class Attributes(nn.Module):
    """Convolution and norm under names of their own, and a norm with no convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn0 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(3)
        self.up, self.bn2 = nn.ConvTranspose2d(4, 2, 2, 2), nn.BatchNorm2d(2)
        for norm in (self.bn0, self.bn1, self.bn2):
            norm.state_dict()["running_var"].uniform_(0.5, 2)
            norm.state_dict()["running_mean"].normal_()

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.bn2(self.up(self.bn1(self.conv(self.bn0(x))))))


def test_pairs_are_found_by_running_not_by_naming() -> None:
    model, image = Attributes().eval(), torch.randn(2, 3, 8, 8)
    folded = fold_batch_norm(model, image)
    assert isinstance(folded.get_submodule("bn1"), nn.Identity)
    assert isinstance(folded.get_submodule("bn2"), nn.Identity)
    assert isinstance(folded.get_submodule("bn0"), nn.BatchNorm2d)
    with torch.no_grad():
        torch.testing.assert_close(folded(image), model(image), rtol=1e-4, atol=1e-5)


class CalledTwice(nn.Module):
    """One convolution with its norm, applied to its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer[1].state_dict()["running_var"].uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(self.layer(x)))


def test_a_layer_that_is_called_twice_is_folded_once() -> None:
    model, image = CalledTwice().eval(), torch.randn(2, 4, 8, 8)
    folded = fold_batch_norm(model, image)
    assert isinstance(folded.get_submodule("layer.1"), nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(folded(image), model(image), rtol=1e-4, atol=1e-5)


def test_same_scales_as_the_onnx_file(quantized_torch: nn.Module, quantized: Quantized) -> None:
    """Two NNCF backends, one table: as many quantizers, all signed, and weight scales equal to rounding."""
    hooks = quantizers(quantized_torch)
    graph = quantized.model.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    dequantizers = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert not any(name.startswith("pre_hooks.stem/0/0/") for name in hooks)  # as in the file
    boundaries = 2  # of the ONNX file alone: kernels want them, NNCF makes none
    assert len(hooks) == len(dequantizers) - boundaries
    assert all(hook.signed and hook.num_bits == 8 for hook in hooks.values())
    onnx_scales = {n.input[0]: values[n.input[1]] for n in dequantizers if n.input[0] in values}
    for layer in ("stem.1.0", "layer2.second.0", "kpt.1.0"):
        mine = next(
            hook for name, hook in hooks.items() if name.startswith(f"pre_hooks.{layer.replace('.', '/')}/")
        )
        theirs = next(scale for name, scale in onnx_scales.items() if f"{layer}.weight" in name)
        np.testing.assert_allclose(mine.scale.detach().numpy().reshape(-1) / 127, theirs, rtol=2e-2)


def test_layers_kept_float_in_onnx_are_in_torch_too(standin: Any, images: list[F32]) -> None:
    keep = {"layer1": "asked for", "layer2.short": "too", "Add_add_60": "has no name here"}
    state = quantize_torch(standin, images[:2], "qrpose", keep).state_dict()
    found = (re.search(r"pre_hooks\.(.+)/conv2d/0__1\.0\.scale", name) for name in state)  # of weights
    layers = {match[1] for match in found if match}
    assert not layers & {"layer1/first/0", "layer1/second/0", "layer2/short"}
    assert layers >= {"layer2/first/0", "layer2/second/0", "lateral1", "inst/0"}


def test_saved_and_rebuilt_bit_for_bit(
    tmp_path: Path, quantized_torch: nn.Module, standin: Any, images: list[F32]
) -> None:
    save_quantized_torch(tmp_path / "q", quantized_torch)
    image = torch.from_numpy(images[1])
    rebuilt = load_quantized_torch(tmp_path / "q", standin, image)
    with torch.no_grad(), without_compiler():
        expected = quantized_torch(image)
    with torch.no_grad():
        actual = rebuilt(image)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def test_no_compiler_is_asked(
    monkeypatch: pytest.MonkeyPatch, standin: Any, images: list[F32], tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something is being compiled")

    monkeypatch.setattr("torch.utils.cpp_extension.load", refuse)
    monkeypatch.setattr("torch.compile", refuse)
    model = quantize_torch(standin, images[:2], "qrpose")
    save_quantized_torch(tmp_path / "q", model)
    image = torch.from_numpy(images[0])
    with torch.no_grad():
        load_quantized_torch(tmp_path / "q", standin, image)(image)


def test_nncf_gets_its_functions_back() -> None:
    from nncf.torch.quantization.extensions import QuantizedFunctionsCPU

    before = QuantizedFunctionsCPU._loaded_namespace
    with without_compiler():
        assert QuantizedFunctionsCPU._loaded_namespace is not before
    assert QuantizedFunctionsCPU._loaded_namespace is before


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1e3), st.booleans())
def test_fake_quantize_is_quantize_linear(seed: int, largest: float, per_channel: bool) -> None:
    """Against ONNX's definition: x / scale rounded half to even, saturated to -128..127."""
    rng = np.random.default_rng(seed)
    values = rng.normal(scale=largest, size=(3, 5, 2, 2)).astype(np.float32)
    high = np.full((5, 1, 1), largest, np.float32) if per_channel else np.full(1, largest, np.float32)
    scale = torch.from_numpy(high)
    low = scale * (-128 / 127)
    mine = _fake_quantize(torch.from_numpy(values), low, scale - low, 256).numpy()
    step = ((scale - low) / 255).numpy()
    plain = np.clip(np.rint(values / step), -128, 127) * step
    # A quotient that lies on a half in one precision may fall to either side in the other.
    off = np.abs(mine - plain) > 1e-5 * largest
    assert off.mean() < 0.05
    assert np.abs(mine - plain).max() <= step.max() * 1.001


def test_damaged_or_foreign_folders_get_one_sentence(
    tmp_path: Path, quantized_torch: nn.Module, standin: Any, images: list[F32]
) -> None:
    image = torch.from_numpy(images[0])
    folder = tmp_path / "q"
    with pytest.raises(EdgeposeError, match="placement"):
        load_quantized_torch(folder, standin, image)
    save_quantized_torch(folder, quantized_torch)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:1000])
    with pytest.raises(EdgeposeError, match="truncated"):
        load_quantized_torch(folder, standin, image)
    (folder / WEIGHTS).unlink()
    with pytest.raises(EdgeposeError, match="no such file"):
        load_quantized_torch(folder, standin, image)
    (folder / WEIGHTS).write_bytes(whole)
    with pytest.raises(EdgeposeError, match="not the quantized form"):
        load_quantized_torch(folder, Attributes(), torch.randn(1, 3, 8, 8))
    (folder / CONFIG).write_text("{}")
    with pytest.raises(EdgeposeError, match="damaged"):
        load_quantized_torch(folder, standin, image)


def test_no_images_no_model(standin: Any) -> None:
    with pytest.raises(EdgeposeError, match="empty"):
        quantize_torch(standin, [], "qrpose")
