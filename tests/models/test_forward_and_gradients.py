"""Forward and backward of every network, in both precisions and layouts; every parameter gets a gradient."""

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
    return logits.detach()


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients by parameter name, and clear them."""
    found = {name: parameter.grad.float() for name, parameter in net.named_parameters()}
    net.zero_grad()
    return found


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_gets_a_gradient(name: str):
    # Scaled up to pixels as the sources feed them: with std 1e-4 in conv1, small values leave no gradient.
    net, images = build(name)
    logits = step(net.train(), 50 * images)
    assert logits.shape == (4, net.fc.out_features if "resnet" in name else net.spec.num_classes)
    assert torch.isfinite(logits).all()
    for parameter_name, grad in gradients(net).items():
        assert torch.isfinite(grad).all(), parameter_name
        if name == "alexnet_stride4" and parameter_name in ("features.conv4.weight", "features.conv5.weight"):
            grad = grad[:, :, 1, 1]  # their borders see only padding: the last test of this file
        # With four images, some units are dead and others dropped. The smallest fraction seen is a fifth.
        assert grad.count_nonzero() > grad.numel() / 8, parameter_name


@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_is_close_to_float32(name: str):
    net, images = build(name)
    net.eval()
    step(net, 50 * images)
    expected = gradients(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(step(net, 50 * images)).all()
    assert_same_direction(gradients(net), expected)
    logits = step(net.bfloat16(), 50 * images.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    assert_same_direction(gradients(net), expected)


def assert_same_direction(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare by angle: with 8 bits, units near 0 and pooling windows with two close maxima may flip."""
    for name, grad in expected.items():
        cosine = nn.functional.cosine_similarity(found[name].flatten(), grad.flatten(), dim=0)
        assert cosine > 0.85, (name, cosine)


@pytest.mark.parametrize("name", EVERY)
def test_channels_last_gives_the_same_logits_and_gradients(name: str):
    net, images = build(name)
    net.eval()
    images = 50 * images
    expected, grads = step(net, images), gradients(net)
    logits = step(net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    for parameter_name, grad in gradients(net).items():
        # A pool may pick the other of two maxima that differ by a rounding error.
        difference = (grad - grads[parameter_name]).norm()
        assert difference < 0.05 * grads[parameter_name].norm(), parameter_name


def test_the_border_of_the_last_stride4_kernels_gets_no_gradient():
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
