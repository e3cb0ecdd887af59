"""Quantizers that learn: their rounding is ONNX Runtime's, their gradients torch's, their place NNCF's."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nncf.torch.function_hook.wrapper import get_hook_storage
from onnx import TensorProto, helper
from torch import Tensor, nn

from edgepose.compression.torch_quantize import quantize_torch, without_compiler
from edgepose.compression.trainable import (
    Quantizer,
    along,
    into_nncf,
    qdq,
    quantizers,
    settled,
    with_learning_quantizers,
)
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def rounded_by_onnx_runtime(values: Tensor, scale: Tensor, axis: int) -> Tensor:
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
    ]
    kinds = {"x": TensorProto.FLOAT, "s": TensorProto.FLOAT, "z": TensorProto.INT8}
    shapes = {"x": list(values.shape), "s": list(scale.shape), "z": list(scale.shape)}
    inputs = [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in kinds]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(values.shape))
    model = helper.make_model(
        helper.make_graph(pair, "pair", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    zero = np.zeros(scale.shape, np.int8)
    return torch.from_numpy(session.run(None, {"x": values.numpy(), "s": scale.numpy(), "z": zero})[0])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3), st.booleans(), st.integers(0, 1000))
def test_rounding_is_onnx_runtimes(axis: int, sliced: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = 200 * torch.randn(3, 4, 2, 5, generator=generator)
    scale = 0.2 + torch.rand(values.shape[axis] if sliced else [], generator=generator)
    found = qdq(values, scale, torch.zeros_like(scale, dtype=torch.int8), axis, -128)
    assert torch.equal(found, rounded_by_onnx_runtime(values, scale, axis))


@settings(deadline=None, max_examples=30)
@given(st.booleans(), st.sampled_from([-127, -128]), st.integers(0, 1000))
def test_gradients_are_those_of_torchs_learnable_fake_quantizer(sliced: bool, lowest: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = 100 * torch.randn(3, 4, 5, generator=generator)
    wanted = torch.randn(3, 4, 5, generator=generator)
    scale = 0.3 + torch.rand(4 if sliced else 1, generator=generator)
    mine = [values.clone().requires_grad_(), (scale if sliced else scale[0]).clone().requires_grad_()]
    qdq(mine[0], mine[1], torch.zeros_like(mine[1], dtype=torch.int8), 1, lowest).backward(wanted)
    theirs = [values.clone().requires_grad_(), scale.clone().requires_grad_()]
    zero = torch.zeros_like(scale)
    if sliced:
        out = torch._fake_quantize_learnable_per_channel_affine(*theirs, zero, 1, lowest, 127, 1.0)
    else:
        out = torch._fake_quantize_learnable_per_tensor_affine(*theirs, zero, lowest, 127, 1.0)
    out.backward(wanted)
    torch.testing.assert_close(mine[0].grad, theirs[0].grad)
    torch.testing.assert_close(mine[1].grad, theirs[1].grad.reshape(mine[1].shape), rtol=1e-4, atol=1e-3)


class Plain(nn.Module):
    """Convolutions with norms, a shortcut, and one map as the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.third = nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        low = self.first(images)
        return {"map": self.third(torch.relu(self.second(low) + low))}


@pytest.fixture(scope="module")
def plain() -> Plain:
    torch.manual_seed(1)
    return Plain().eval()


@pytest.fixture(scope="module")
def theirs(plain: Plain, images: list[F32]) -> nn.Module:
    return quantize_torch(plain, images, "qrpose")


@pytest.fixture
def learning(theirs: nn.Module) -> nn.Module:
    return with_learning_quantizers(copy.deepcopy(theirs)).requires_grad_(True)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float((a["map"] - b["map"]).square().mean().sqrt())


def test_they_stand_where_nncfs_stood_and_round_alike(
    theirs: nn.Module, learning: nn.Module, images: list[F32]
) -> None:
    """A value half way between two steps goes either way; NNCF's first weights, in 7 bits, have such."""
    own, image = quantizers(learning.eval()), torch.from_numpy(images[0])
    # Two weights, without the first convolution's; what the ReLUs give, and the convolution that is added.
    assert len(own) == 2 + 3
    passed: dict[str, tuple[Tensor, Tensor]] = {}
    for name, quantizer in own.items():
        quantizer.register_forward_hook(
            lambda _, given, made, name=name: passed.__setitem__(name, (given[0], made))
        )
    hooks = get_hook_storage(theirs)
    with torch.no_grad(), without_compiler():
        learning(image)
        for name, (given, made) in passed.items():
            apart = (hooks.get_submodule(name)(given) - made).abs() / along(own[name].scale, 0, given.ndim)
            assert apart.max() < 1.001
            assert (apart > 0.01).float().mean() < 0.05


def test_learnt_scales_are_constants_of_the_same_network(learning: nn.Module, images: list[F32]) -> None:
    image, done = torch.from_numpy(images[0]), settled(learning)
    assert not [name for name, _ in done.named_parameters() if name.endswith("logarithm")]
    with torch.no_grad():
        assert torch.equal(done(image)["map"], learning.eval()(image)["map"])


def test_every_scale_and_weight_gets_a_gradient(learning: nn.Module, images: list[F32]) -> None:
    learning.train()(torch.from_numpy(images[0]))["map"].square().sum().backward()
    assert [name for name, p in learning.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_half_floats_are_rounded_in_whole_ones() -> None:
    quantizer = Quantizer(torch.tensor(0.1), 0, -128)
    values = torch.linspace(-12.8, 12.7, 256)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(values.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(
        found, (torch.round(values.bfloat16().float() / 0.1).clamp(-128, 127) * 0.1).bfloat16()
    )


def test_what_was_learnt_goes_back_into_nncfs_network(
    theirs: nn.Module, learning: nn.Module, images: list[F32]
) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learning.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    back = into_nncf(learning, copy.deepcopy(theirs)).eval()
    image = torch.from_numpy(images[1])
    with torch.no_grad(), without_compiler():
        assert apart(learning.eval()(image), back(image)) < 0.02 * apart(theirs(image), back(image))


def test_training_recovers_most_of_what_wrong_scales_cost(
    plain: Plain, learning: nn.Module, images: list[F32]
) -> None:
    """Activations in steps of four times their size, learnt back from the float network."""
    batch = torch.from_numpy(np.concatenate(images))
    scales = {id(quantizer.logarithm): quantizer.logarithm for quantizer in quantizers(learning).values()}
    weights = [parameter for parameter in learning.parameters() if id(parameter) not in scales]
    with torch.no_grad():
        wanted = plain(batch)
        calibrated = apart(learning(batch), wanted)
        for logarithm in scales.values():
            logarithm.add_(np.log(4.0) if logarithm.ndim == 0 else 0.0)
        provoked = apart(learning(batch), wanted)
    assert provoked > 2 * calibrated
    optimizer = torch.optim.AdamW([{"params": list(scales.values()), "lr": 3e-2}, {"params": weights}], 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (learning(batch)["map"] - wanted["map"]).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert provoked - apart(learning(batch), wanted) > 0.5 * (provoked - calibrated)


def test_unsigned_quantizers_are_refused(theirs: nn.Module) -> None:
    model = copy.deepcopy(theirs)
    next(module for module in model.modules() if hasattr(module, "signed_tensor")).signed = False
    with pytest.raises(EdgeposeError, match="is no signed one of 8 bits; compress again"):
        with_learning_quantizers(model)
