"""Every network written a second time in torch functions, from its source: kernels, strides, padding, order.

Only weights, biases and running statistics come from the network under test; no setting of a module does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    batch_norm,
    conv2d,
    linear,
    local_response_norm,
    max_pool2d,
    pad,
    relu,
)

Operation = Callable[[Tensor], Tensor]


def conv(
    net: nn.Module, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    layer = net.get_submodule(f"features.{name}")
    return conv2d(x, layer.weight, layer.bias, stride, padding, groups=groups)


def normalised(net: nn.Module, name: str, x: Tensor, eps: float) -> Tensor:
    """Batch-normalise with the running statistics."""
    layer = net.get_submodule(name)
    return batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=eps)


def head(net: nn.Module, y: Tensor, *hidden: str, at_test: float = 1.0, then: Operation = relu) -> Tensor:
    """Run the hidden layers, each followed by `then` and the test-time factor of dropout, and fc8."""
    y = y.flatten(1)
    for name in hidden:
        layer = net.get_submodule(f"classifier.{name}")
        y = at_test * then(linear(y, layer.weight, layer.bias))
    layer = net.get_submodule("classifier.fc8")
    return linear(y, layer.weight, layer.bias)


# ------------------------------------------------------------------------------------------------ operations


def past_border(x: Tensor, pixels: int) -> Tensor:
    """Add the zeros that cuda-convnet's last window reads to the right and below."""
    return pad(x, (0, pixels, 0, pixels))


def same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad as TensorFlow does: ceil(size / stride) windows, the odd pixel after."""
    size = x.shape[-1]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return pad(x, (total // 2, total - total // 2) * 2, value=value)


def undivided_lrn(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Normalise with alpha times the sum of squares, as the paper and TensorFlow write it."""
    squares = pad(x * x, (0, 0, 0, 0, size // 2, size // 2))
    total = torch.stack([squares[:, i : i + x.shape[1]] for i in range(size)]).sum(0)
    return x / (k + alpha * total) ** beta


def within_map(x: Tensor, size: int, alpha: float) -> Tensor:
    """Normalise by the mean square over size x size pixels of the same map (cuda-convnet's rnorm)."""
    return x / (1 + alpha * avg_pool2d(x * x, size, stride=1, padding=size // 2)) ** 0.75


pool = partial(max_pool2d, kernel_size=3, stride=2)
pool_up = partial(max_pool2d, kernel_size=3, stride=2, ceil_mode=True)
mean_up = partial(avg_pool2d, kernel_size=3, stride=2, ceil_mode=True, count_include_pad=False)
halve = partial(max_pool2d, kernel_size=2, stride=2)
lrn_of_2012 = partial(local_response_norm, size=5, alpha=1e-4, beta=0.75, k=2.0)
lrn_of_ports = partial(local_response_norm, size=5, alpha=1e-4, beta=0.75, k=1.0)
lrn_of_9 = partial(local_response_norm, size=9, alpha=1e-3, beta=0.75, k=1.0)


def pool_same(x: Tensor) -> Tensor:
    return max_pool2d(same(x, 3, 2, value=-1e30), 3, 2)


def each_tower(x: Tensor, towers: int) -> Tensor:
    return torch.cat([lrn_of_2012(tower) for tower in x.chunk(towers, 1)], 1)


# ------------------------------------------------------------------------------------------------ ImageNet


def middle(net: nn.Module, y: Tensor, groups: int = 1) -> Tensor:
    """Run conv3 to conv5, without the operations after conv5."""
    y = relu(conv(net, "conv3", y, padding=1))
    y = relu(conv(net, "conv4", y, padding=1, groups=groups))
    return conv(net, "conv5", y, padding=1, groups=groups)


def plain(net: nn.Module, x: Tensor, block: Operation = pool, padding: int = 0, groups: int = 1) -> Tensor:
    """The order most ports have: each of the first two convolutions, ReLU, then `block`."""
    y = block(relu(conv(net, "conv1", x, stride=4, padding=padding)))
    y = block(relu(conv(net, "conv2", y, padding=2, groups=groups)))
    return head(net, pool(relu(middle(net, y, groups))), "fc6", "fc7")


def original(net: nn.Module, x: Tensor, towers: int) -> Tensor:
    y = conv(net, "conv1", past_border(x, 3), stride=4)
    y = relu(pool(each_tower(y, towers)))
    y = each_tower(relu(conv(net, "conv2", y, padding=2, groups=towers)), towers)
    y = pool(within_map(y, 5, 1e-3))
    return head(net, relu(pool(middle(net, y, towers))), "fc6", "fc7", at_test=0.5)


def paper(net: nn.Module, x: Tensor) -> Tensor:
    def block(y: Tensor) -> Tensor:
        return pool(undivided_lrn(relu(y), 5, 1e-4, 0.75, 2.0))

    y = block(conv(net, "conv1", past_border(x, 3), stride=4))
    y = block(conv(net, "conv2", y, padding=2, groups=2))
    return head(net, pool(relu(middle(net, y, 2))), "fc6", "fc7", at_test=0.5)


def one_weird_trick(net: nn.Module, x: Tensor) -> Tensor:
    y = relu(pool(lrn_of_2012(conv(net, "conv1", past_border(x, 3), stride=4))))
    y = pool(lrn_of_2012(relu(conv(net, "conv2", y, padding=2))))
    return head(net, relu(pool(middle(net, y))), "fc6", "fc7", at_test=0.5)


def torchvision(net: nn.Module, x: Tensor, *hidden: str) -> Tensor:
    y = pool(relu(conv(net, "conv1", x, stride=4, padding=2)))
    y = pool(relu(conv(net, "conv2", y, padding=2)))
    return head(net, pool(relu(middle(net, y))), *hidden)


def cvgj(net: nn.Module, x: Tensor) -> Tensor:
    def after(name: str, y: Tensor) -> Tensor:
        return relu(normalised(net, f"features.{name}_bn", y, 1e-5))

    y = normalised(net, "features.input_bn", x, 1e-5)
    y = pool(after("conv1", conv(net, "conv1", y, stride=4)))
    y = pool(after("conv2", conv(net, "conv2", y, padding=2, groups=2)))
    y = after("conv3", conv(net, "conv3", y, padding=1))
    y = after("conv4", conv(net, "conv4", y, padding=1, groups=2))
    y = pool(after("conv5", conv(net, "conv5", y, padding=1, groups=2))).flatten(1)
    for name in ("fc6", "fc7"):
        layer = net.get_submodule(f"classifier.{name}")
        y = relu(normalised(net, f"classifier.{name}_bn", linear(y, layer.weight, layer.bias), 1e-5))
    return head(net, y)


def zfnet(net: nn.Module, x: Tensor) -> Tensor:
    y = lrn_of_2012(pool_up(relu(conv(net, "conv1", past_border(x, 1), stride=2))))
    y = lrn_of_2012(pool_up(relu(conv(net, "conv2", y, stride=2))))
    return head(net, pool_up(relu(middle(net, y))), "fc6", "fc7")


def unpadded(net: nn.Module, x: Tensor) -> Tensor:
    y = pool(relu(conv(net, "conv1", x, stride=4)))
    y = pool(relu(conv(net, "conv2", y)))
    for name in ("conv3", "conv4", "conv5"):
        y = relu(conv(net, name, y))
    return head(net, pool(y), "fc6", "fc7")


def keras_bn(net: nn.Module, x: Tensor) -> Tensor:
    def after(name: str, y: Tensor) -> Tensor:
        return normalised(net, f"features.{name}_bn", relu(y), 1e-3)

    y = pool(after("conv1", conv(net, "conv1", x, stride=4)))
    y = pool(after("conv2", conv(net, "conv2", y, padding=2)))
    y = after("conv3", conv(net, "conv3", y, padding=1))
    y = after("conv4", conv(net, "conv4", y))
    return head(net, pool(after("conv5", conv(net, "conv5", y))), "fc6", "fc7")


def stride4(net: nn.Module, x: Tensor) -> Tensor:
    def block(name: str, kernel: int, y: Tensor) -> Tensor:
        y = conv(net, name, same(y, kernel, 4), stride=4)
        return pool(relu(undivided_lrn(y, 11, 1.0, 0.5, 1.0)))

    y = block("conv2", 5, block("conv1", 11, x))
    for name in ("conv3", "conv4", "conv5"):
        y = relu(conv(net, name, same(y, 3, 4), stride=4))
    return head(net, y, "fc6", "fc7")


# ------------------------------------------------------------------------------------------------ CIFAR


def bearpaw(net: nn.Module, x: Tensor) -> Tensor:
    y = halve(relu(conv(net, "conv1", x, stride=4, padding=5)))
    y = halve(relu(conv(net, "conv2", y, padding=2)))
    return head(net, halve(relu(middle(net, y))))


def icpm(net: nn.Module, x: Tensor, batch_norms: bool) -> Tensor:
    def after(name: str, y: Tensor) -> Tensor:
        return relu(normalised(net, f"features.{name}_bn", y, 1e-5) if batch_norms else y)

    y = halve(after("conv1", conv(net, "conv1", x, stride=2, padding=1)))
    y = halve(after("conv2", conv(net, "conv2", y, padding=1)))
    for name in ("conv3", "conv4", "conv5"):
        y = after(name, conv(net, name, y, padding=1))
    return head(net, halve(y), "fc6", "fc7")


def fast(net: nn.Module, x: Tensor) -> Tensor:
    y = x
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        y = relu(normalised(net, f"features.{name}_bn", conv(net, name, y, padding=1), 1e-5))
        y = y if name in ("conv1", "conv4") else halve(y)
    return head(net, y.mean((2, 3)))


def tutorial(net: nn.Module, x: Tensor, second: Operation) -> Tensor:
    y = lrn_of_9(pool_same(relu(conv(net, "conv1", same(x, 5, 1)))))
    return head(net, second(relu(conv(net, "conv2", same(y, 5, 1)))), "fc6", "fc7")


def cuda_convnet(
    net: nn.Module, x: Tensor, *hidden: str, after_pool: Operation = lambda y: y, then: Operation = relu
) -> Tensor:
    y = after_pool(relu(pool_up(conv(net, "conv1", x, padding=2))))
    y = after_pool(mean_up(relu(conv(net, "conv2", y, padding=2))))
    return head(net, mean_up(relu(conv(net, "conv3", y, padding=2))), *hidden, then=then)


def untied(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """Multiply every 3 x 3 window, zeros around the map, by the weights of its own position."""
    layer = net.get_submodule(f"features.{name}")
    side, padded = x.shape[-1], pad(x, (1, 1, 1, 1))
    rows = []
    for i in range(side):
        windows = [padded[:, :, i : i + 3, j : j + 3].flatten(1) for j in range(side)]
        own = range(i * side, (i + 1) * side)
        rows.append(
            torch.stack(
                [linear(w, layer.weight[p], layer.bias[p]) for w, p in zip(windows, own, strict=True)], -1
            )
        )
    return torch.stack(rows, -2)


def local_nets(net: nn.Module, x: Tensor, norm: Operation) -> Tensor:
    y = norm(pool_up(relu(conv(net, "conv1", x, padding=2))))
    y = pool_up(norm(relu(conv(net, "conv2", y, padding=2))))
    return head(net, relu(untied(net, "local4", relu(untied(net, "local3", y)))))


ports_block = {"lrn first": lambda y: pool(lrn_of_ports(y)), "pool first": lambda y: lrn_of_ports(pool(y))}
small_norm = partial(within_map, size=3, alpha=5e-5)
COMPOSITIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "alexnet": plain,
    "alexnet_6400": plain,
    "alexnet_bn": cvgj,
    "alexnet_cifar": bearpaw,
    "alexnet_d2l": partial(plain, padding=1),
    "alexnet_fast": fast,
    "alexnet_icpm": partial(icpm, batch_norms=False),
    "alexnet_icpm_bn": partial(icpm, batch_norms=True),
    "alexnet_keras_bn": keras_bn,
    "alexnet_lrn": partial(plain, block=lambda y: pool(lrn_of_2012(y))),
    "alexnet_original": partial(original, towers=2),
    "alexnet_original_half": partial(original, towers=1),
    "alexnet_owt": lambda net, x: torchvision(net, x, "fc6", "fc7"),
    "alexnet_owt_lrn": one_weird_trick,
    "alexnet_paper": paper,
    "alexnet_small": partial(tutorial, second=lambda y: lrn_of_9(pool_same(y))),
    "alexnet_stride4": stride4,
    "alexnet_tf_cifar": partial(tutorial, second=lambda y: pool_same(lrn_of_9(y))),
    "alexnet_two_fc": lambda net, x: torchvision(net, x, "fc6"),
    "alexnet_valid": unpadded,
    "caffe_alexnet": partial(plain, block=ports_block["lrn first"], groups=2),
    "caffe_cifar_full": partial(cuda_convnet, after_pool=small_norm),
    "caffe_cifar_quick": lambda net, x: cuda_convnet(net, x, "fc6", then=lambda y: y),
    "caffenet": partial(plain, block=ports_block["pool first"], groups=2),
    "convnet_11pct": partial(local_nets, norm=lrn_of_9),
    "convnet_13pct": partial(local_nets, norm=lambda y: y),
    "convnet_18pct": partial(cuda_convnet, after_pool=small_norm),
    "convnet_19pct": cuda_convnet,
    "convnet_80sec": lambda net, x: cuda_convnet(net, x, "fc6"),
    "tensorpack_alexnet": partial(plain, block=ports_block["lrn first"], padding=2, groups=2),
    "zfnet": zfnet,
}
