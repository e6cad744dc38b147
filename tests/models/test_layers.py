"""Padding rules, untied weights, spatial normalisation and test-scaled dropout, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import slow_reference
import torch
from torch import nn

from alexnet_exp.models.arithmetic import pooled_size, window_count
from alexnet_exp.models.layers import (
    Conv2d,
    LocallyConnected2d,
    MaxPool2d,
    SpatialResponseNorm,
    TestScaledDropout,
)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def convolved(conv: Conv2d, x: torch.Tensor, before: int, outputs: int) -> torch.Tensor:
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    maps = [
        slow_reference.convolve(image, weight, bias, conv.stride[0], before, outputs) for image in x.numpy()
    ]
    return torch.from_numpy(np.stack(maps))


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [(9, 3, 1), (9, 3, 2), (10, 3, 2), (11, 5, 4), (8, 3, 4), (1, 3, 4), (7, 2, 1)],
)
def test_same_padding_matches_tensorflow(size: int, kernel: int, stride: int):
    torch.manual_seed(0)
    conv, x = Conv2d(2, 3, kernel, stride, padding="same").double(), images(2, 2, size, size)
    outputs, before = slow_reference.tensorflow_same(size, kernel, stride)
    torch.testing.assert_close(conv(x), convolved(conv, x, before, outputs))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(12, 5, 4, 0), (13, 5, 4, 0), (10, 3, 2, 1)]
)
def test_ceil_convolution_reads_zeros_past_the_border(size: int, kernel: int, stride: int, padding: int):
    torch.manual_seed(0)
    conv, x = Conv2d(2, 3, kernel, stride, padding, ceil_mode=True).double(), images(1, 2, size, size)
    outputs = 1 + -(-(2 * padding + size - kernel) // stride)
    torch.testing.assert_close(conv(x), convolved(conv, x, padding, outputs))


def test_ceil_convolution_turns_224_into_55():
    conv = Conv2d(1, 1, 11, 4, ceil_mode=True)
    x = torch.randn(1, 1, 224, 224)
    padded = nn.functional.conv2d(nn.functional.pad(x, (0, 3, 0, 3)), conv.weight, conv.bias, stride=4)
    assert conv(x).shape == (1, 1, 55, 55)
    torch.testing.assert_close(conv(x), padded)


@pytest.mark.parametrize("size", [5, 6, 7, 12])
def test_pooling_clips_its_last_window(size: int):
    x = images(1, 2, size, size)
    outputs = 1 + -(-(size - 3) // 2)
    for what, layer in (
        ("max", MaxPool2d(3, 2, ceil_mode=True)),
        ("mean", nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)),
    ):
        expected = slow_reference.pool(x[0].numpy(), 3, 2, 0, outputs, what)
        torch.testing.assert_close(layer(x)[0], torch.from_numpy(expected))


@pytest.mark.parametrize("size", [6, 7, 28])
def test_same_padded_max_pool_ignores_the_border(size: int):
    x = -images(1, 2, size, size).abs()
    outputs, before = slow_reference.tensorflow_same(size, 3, 2)
    expected = slow_reference.pool(x[0].numpy(), 3, 2, before, outputs, "max")
    torch.testing.assert_close(MaxPool2d(3, 2, padding="same")(x)[0], torch.from_numpy(expected))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [(6, 3, 1, 1), (7, 3, 2, 0), (5, 2, 1, 0)])
def test_untied_weights_differ_at_every_position(size: int, kernel: int, stride: int, padding: int):
    torch.manual_seed(0)
    layer, x = LocallyConnected2d(2, 3, size, kernel, stride, padding).double(), images(2, 2, size, size)
    positions = layer.output_size**2
    weight = layer.weight.detach().reshape(positions, 3, 2, kernel, kernel).numpy()
    maps = [
        slow_reference.convolve(
            image, weight, layer.bias.detach().numpy(), stride, padding, layer.output_size
        )
        for image in x.numpy()
    ]
    torch.testing.assert_close(layer(x), torch.from_numpy(np.stack(maps)))


def test_an_untied_layer_with_equal_filter_banks_is_a_convolution():
    torch.manual_seed(0)
    layer, conv, x = (
        LocallyConnected2d(2, 3, 6, 3, padding=1),
        nn.Conv2d(2, 3, 3, padding=1),
        torch.randn(2, 2, 6, 6),
    )
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1).expand_as(layer.weight))
        layer.bias.copy_(conv.bias.expand_as(layer.bias))
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize(("size", "alpha"), [(3, 5e-5), (5, 1e-3), (3, 2.0)])
def test_spatial_norm_matches_cuda_convnet(size: int, alpha: float):
    x = 10 * images(2, 2, 6, 7)
    expected = slow_reference.spatial_norm(x.numpy(), size, alpha, 0.75, 1.0)
    ours = SpatialResponseNorm(size, alpha, 0.75, 1.0)(x)
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_spatial_norm_keeps_half_precision_and_computes_in_float32():
    x = (300 * images(1, 2, 5, 5)).half()
    norm = SpatialResponseNorm(3, 1e-3)
    torch.testing.assert_close(norm(x), norm(x.float()).half(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(2, 2, 3, 2, padding="same"),
        Conv2d(2, 2, 3, 2, ceil_mode=True),
        LocallyConnected2d(2, 2, 4, 3, padding=1),
        MaxPool2d(3, 2, padding="same"),
        SpatialResponseNorm(3, 0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_pass_gradcheck(layer: nn.Module):
    layer = layer.double()
    x = images(2, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_test_scaled_dropout_scales_only_in_eval():
    torch.manual_seed(0)
    drop, x = TestScaledDropout(0.25), torch.full((20_000,), 3.0)
    dropped = drop(x)
    assert set(dropped.tolist()) == {0.0, 3.0}
    assert abs((dropped == 0).float().mean().item() - 0.25) < 0.015
    assert torch.equal(drop.eval()(x), x * 0.75)


def test_window_count_matches_torch():
    for size in range(5, 14):
        for kernel, stride, padding in ((3, 2, 0), (3, 1, 1), (5, 4, 2), (2, 2, 0)):
            expected = nn.Conv2d(1, 1, kernel, stride, padding)(torch.zeros(1, 1, size, size)).shape[-1]
            assert window_count(size, kernel, stride, padding, ceil=False) == expected


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 3, 1), (2, 2, 1), (4, 5, 2)]
)
@pytest.mark.parametrize("ceil", [False, True])
def test_pooled_size_matches_torch(kernel: int, stride: int, padding: int, ceil: bool):
    # With ceil_mode a window that would start past the image is dropped: 5 pixels, kernel 2, stride 3, padding 1.
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    for size in range(4, 15):
        expected = nn.MaxPool2d(**settings)(torch.zeros(1, 1, size, size)).shape[-1]
        assert pooled_size(size, settings) == expected, size
