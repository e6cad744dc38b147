"""ResNet-18, the baseline for the AlexNets."""

from __future__ import annotations

from torch import nn

from alexnet_exp.errors import UserError


def resnet18(
    stem: str = "imagenet", input_size: int = 224, in_channels: int = 3, num_classes: int = 1000
) -> nn.Module:
    """Build torchvision's ResNet-18 or its CIFAR variant.

    Args:
        stem: 'imagenet' (7x7 stride 2, max pool) or 'cifar' (3x3 stride 1, no pool).
        input_size: Side of the square input in pixels; recorded only, the network accepts any size.
        in_channels: 1 or 3.
        num_classes: Number of logits.

    Returns:
        A module that maps (N, in_channels, H, W) to logits (N, num_classes), with torchvision's parameter names.

    Source: He et al. 2016; torchvision.models.resnet18; the CIFAR stem as in kuangliu/pytorch-cifar.
    """
    from torchvision.models import resnet18 as torchvision_resnet18

    if stem not in ("imagenet", "cifar"):
        raise UserError(f"invalid model.stem={stem!r}: expected imagenet or cifar.")
    net = torchvision_resnet18(weights=None, num_classes=num_classes)
    if stem == "cifar":
        net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif in_channels != 3:
        net.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    if in_channels != 3 or stem == "cifar":  # a replaced conv1 starts as torchvision starts its own
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.input_size = input_size
    return net
