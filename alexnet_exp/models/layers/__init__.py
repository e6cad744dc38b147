"""Layers that torch lacks or runs slowly."""

from alexnet_exp.models.layers.compiler import missing_compiler
from alexnet_exp.models.layers.conv import Conv2d, LocallyConnected2d, MaxPool2d
from alexnet_exp.models.layers.dropout import TestScaledDropout
from alexnet_exp.models.layers.norm import LocalResponseNorm, SpatialResponseNorm, local_response_norm

__all__ = [
    "Conv2d",
    "LocalResponseNorm",
    "LocallyConnected2d",
    "MaxPool2d",
    "SpatialResponseNorm",
    "TestScaledDropout",
    "local_response_norm",
    "missing_compiler",
]
