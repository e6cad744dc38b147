"""Weight initialisation: every scheme in one table.

| name     | weights                                                | biases                         |
|----------|--------------------------------------------------------|--------------------------------|
| torch    | torch's default: uniform, bound 1 / sqrt(fan_in)       | the same                       |
| normal   | N(0, 0.01)                                             | 0                              |
| paper    | N(0, 0.01)                                             | 0, but 1 in the raised layers  |
| original | N(0, 0.01), but N(0, 0.03) in conv3, conv4, conv5      | 0, but 1 in the raised layers  |
| caffe    | N(0, 0.01), but N(0, 0.005) in hidden fully connected  | 0, but 0.1 in the raised layers |
| keras    | Glorot uniform, bound sqrt(6 / (fan_in + fan_out))     | 0                              |
| he       | N(0, sqrt(2 / fan_in))                                 | 0                              |

The raised layers are conv2, conv4, conv5 and the hidden fully connected ones. A layer's `weight_std` and
`bias_init` override its row. fan_in counts the inputs of one unit (inside its group), fan_out is the kernel's
area times the output channels, as in Keras.

Source: paper section 5; layers-145.cfg of the released code; Caffe's bvlc_alexnet train_val.prototxt;
Glorot & Bengio 2010; He et al. 2015.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import init

from alexnet_exp.models.layers import LocallyConnected2d

_RAISED = ("conv2", "conv4", "conv5")


def initialise(
    layer: nn.Module, name: str, scheme: str, *, hidden: bool, std: float | None, bias: float | None
) -> None:
    """Initialise weight and bias of one layer in place.

    Args:
        layer: A module with a `weight` and a `bias` that may be None.
        name: The layer's name in the yaml ('conv2'), which selects the paper's biases.
        scheme: A row of the table above.
        hidden: True for a fully connected layer that is not the last.
        std: Overrides the scheme's standard deviation of the weights.
        bias: Overrides the scheme's constant for the bias.
    """
    if std is not None:
        init.normal_(layer.weight, std=std)
    elif scheme != "torch":  # the constructor has applied torch's
        _weights(layer, name, scheme, hidden)
    if layer.bias is None:
        return
    if bias is not None:
        init.constant_(layer.bias, bias)
    elif scheme != "torch":
        raised = (name in _RAISED or hidden) and scheme in ("paper", "original", "caffe")
        init.constant_(layer.bias, (0.1 if scheme == "caffe" else 1.0) if raised else 0.0)


def _weights(layer: nn.Module, name: str, scheme: str, hidden: bool) -> None:
    fan_in, fan_out = _fans(layer)
    if scheme == "keras":
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        init.uniform_(layer.weight, -bound, bound)
        return
    std = 0.01
    if scheme == "he":
        std = math.sqrt(2.0 / fan_in)
    elif scheme == "original" and name in ("conv3", "conv4", "conv5"):
        std = 0.03
    elif scheme == "caffe" and hidden:
        std = 0.005
    init.normal_(layer.weight, std=std)


def _fans(layer: nn.Module) -> tuple[int, int]:
    """Return (fan_in, fan_out); for untied weights, those of one position."""
    kernel = layer.weight.shape[2:].numel() if isinstance(layer, nn.Conv2d) else 1
    # Weights (out, in / groups, k, k) or (out, in): the groups are already divided out of fan_in.
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return layer.weight[0].numel(), kernel * layer.weight.shape[0]
    _, out_channels, fan_in = layer.weight.shape  # LocallyConnected2d: (positions, out_channels, fan_in)
    return fan_in, layer.kernel_size**2 * out_channels


@torch.no_grad()
def scale_to_unit_variance(network: nn.Module, images: Tensor) -> None:
    """Divide each layer's weights by the standard deviation of its outputs, in the order of the layers.

    `he` alone keeps the scale from layer to layer only between ReLUs: max pooling and dropout raise it, local response
    normalisation lowers it, by up to a factor of ten each. Eight layers of AlexNets end with logits of 0.03 to 6.

    Args:
        network: Freshly initialised, biases 0; in training mode, so that dropout counts.
        images: (N, C, H, W), as the network gets them.

    Source: Mishkin & Matas 2016, All you need is a good init (LSUV), without its orthonormal matrices.
    """

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        std = outputs.std()
        if not 0 < std < math.inf:  # images without any contrast
            return outputs
        layer.weight /= std
        return outputs / std

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | LocallyConnected2d)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    with torch.random.fork_rng(devices=[]):
        network(images)
    for hook in hooks:
        hook.remove()
