"""Every network runs, in both precisions and both layouts, and its gradient reaches every parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alexnet_exp import create_model, list_models

SMALL = {
    "alexnet_cifar",
    "alexnet_small",
    "alexnet_tf_cifar",
    "caffe_cifar_full",
    "caffe_cifar_quick",
    "convnet_11pct",
    "convnet_13pct",
    "convnet_18pct",
    "convnet_19pct",
    "convnet_80sec",
}  # under 3 million parameters, images of at most 32 pixels
EVERY = [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in list_models()]


def build(name: str, **overrides: object) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = create_model(name, **overrides)
    in_channels = 1 if name == "alexnet_d2l" else 3
    return net, torch.randn(4, in_channels, net.input_size, net.input_size)


def step(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = net(images)
    nn.functional.cross_entropy(logits, torch.arange(len(images))).backward()
    return logits


@pytest.mark.parametrize("name", EVERY)
def test_gradient_reaches_every_parameter(name: str):
    # Scaled up to pixels as the sources feed them: with std 1e-4 in conv1, small values leave no gradient.
    net, images = build(name)
    logits = step(net.train(), 50 * images)
    assert logits.shape == (4, net.fc.out_features if "resnet" in name else net.spec.num_classes)
    assert torch.isfinite(logits).all()
    for parameter_name, parameter in net.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", EVERY)
def test_forward_is_finite_in_bfloat16(name: str):
    net, images = build(name)
    net.eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(net(images)).all()
        logits = net.bfloat16()(images.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", EVERY)
def test_channels_last_gives_the_same_logits(name: str):
    net, images = build(name)
    net.eval()
    with torch.no_grad():
        expected = net(images)
        logits = net.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_borders_of_stride4s_last_kernels_never_get_a_gradient():
    # Their map is one pixel: a 3x3 kernel sees it in the middle and zeros around it (README 003).
    torch.manual_seed(0)
    net = create_model("alexnet_stride4")
    step(net, torch.randn(4, 3, 224, 224))
    without = 0
    for conv in (net.features.conv4, net.features.conv5):
        grad = conv.weight.grad.clone()
        assert grad[:, :, 1, 1].any()
        grad[:, :, 1, 1] = 1.0
        without += int((grad == 0).sum())
    assert without == 1_966_080
