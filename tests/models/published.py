"""What the papers, sources and READMEs say about each network; typed in by hand."""

from __future__ import annotations

# Learned parameters at the network's own class count.
PARAMETERS = {
    "alexnet": 62_378_344,
    "alexnet_6400": 50_844_008,
    "alexnet_bn": 60_965_230,
    "alexnet_cifar": 2_472_266,
    "alexnet_d2l": 46_764_746,
    "alexnet_icpm": 23_272_266,
    "alexnet_fast": 1_554_506,  # ours
    "alexnet_icpm_bn": 23_274_570,
    "alexnet_keras_bn": 22_804_554,
    "alexnet_lrn": 62_378_344,
    "alexnet_original": 60_965_224,
    "alexnet_original_half": 59_798_312,
    "alexnet_owt": 61_100_840,
    "alexnet_owt_lrn": 61_100_840,
    "alexnet_paper": 60_965_224,
    "alexnet_small": 1_387_786,
    "alexnet_stride4": 21_622_154,
    "alexnet_tf_cifar": 1_068_298,
    "alexnet_two_fc": 44_319_528,
    "alexnet_valid": 25_678_184,
    "caffe_alexnet": 60_965_224,
    "caffe_cifar_full": 89_578,
    "caffe_cifar_quick": 145_578,
    "caffenet": 60_965_224,
    "convnet_11pct": 2_112_970,
    "convnet_13pct": 1_116_490,
    "convnet_18pct": 89_578,
    "convnet_19pct": 89_578,
    "convnet_80sec": 145_578,
    "resnet18": 11_689_512,
    "resnet18_cifar": 11_173_962,
    "tensorpack_alexnet": 60_965_224,
    "zfnet": 62_357_608,
}

# The same at other class counts and input sizes: (network, overrides, parameters).
OTHER_PARAMETERS = [
    ("alexnet", {"num_classes": 10}, 58_322_314),
    ("alexnet_lrn", {"num_classes": 5}, 58_301_829),
    ("resnet18", {"num_classes": 10}, 11_181_642),
    ("resnet18", {"num_classes": 5}, 11_179_077),
    ("resnet18_cifar", {"num_classes": 100}, 11_220_132),
    ("convnet_80sec", {"input_size": 24}, 116_906),
    ("convnet_19pct", {"input_size": 24}, 85_098),
    ("convnet_18pct", {"input_size": 24}, 85_098),
    ("convnet_13pct", {"input_size": 32}, 1_901_386),
    ("convnet_11pct", {"input_size": 32}, 3_672_906),
]

# Side of the map after every convolution and pool, in order.
_IMAGENET = (55, 27, 27, 13, 13, 13, 13, 6)
_CUDA_CONVNET = (32, 16, 16, 8, 8, 4)
SIDES = {
    "alexnet": _IMAGENET,
    "alexnet_6400": (54, 26, 26, 12, 12, 12, 12, 5),
    "alexnet_bn": _IMAGENET,
    "alexnet_cifar": (8, 4, 4, 2, 2, 2, 2, 1),
    "alexnet_d2l": (54, 26, 26, 12, 12, 12, 12, 5),
    "alexnet_icpm": (16, 8, 8, 4, 4, 4, 4, 2),
    "alexnet_fast": (32, 32, 16, 16, 8, 8, 8, 4),
    "alexnet_icpm_bn": (16, 8, 8, 4, 4, 4, 4, 2),
    "alexnet_keras_bn": (30, 14, 14, 6, 6, 6, 6, 2),
    "alexnet_lrn": _IMAGENET,
    "alexnet_original": _IMAGENET,
    "alexnet_original_half": _IMAGENET,
    "alexnet_owt": _IMAGENET,
    "alexnet_owt_lrn": _IMAGENET,
    "alexnet_paper": _IMAGENET,
    "alexnet_small": (28, 14, 14, 7),
    "alexnet_stride4": (56, 27, 7, 3, 1, 1, 1),
    "alexnet_tf_cifar": (24, 12, 12, 6),
    "alexnet_two_fc": _IMAGENET,
    "alexnet_valid": (54, 26, 22, 10, 8, 6, 4, 1),
    "caffe_alexnet": _IMAGENET,
    "caffe_cifar_full": _CUDA_CONVNET,
    "caffe_cifar_quick": _CUDA_CONVNET,
    "caffenet": _IMAGENET,
    "convnet_11pct": (24, 12, 12, 6, 6, 6),
    "convnet_13pct": (24, 12, 12, 6, 6, 6),
    "convnet_18pct": _CUDA_CONVNET,
    "convnet_19pct": _CUDA_CONVNET,
    "convnet_80sec": _CUDA_CONVNET,
    "tensorpack_alexnet": _IMAGENET,
    "zfnet": (110, 55, 26, 13, 13, 13, 13, 6),
}

# Output channels of every convolution and untied layer, and units of every hidden layer.
_PAPER = (96, 256, 384, 384, 256, 4096, 4096)
_ONE_WEIRD_TRICK = (64, 192, 384, 256, 256, 4096, 4096)
WIDTHS = {
    **dict.fromkeys(SIDES, _PAPER),
    **dict.fromkeys(("alexnet_icpm", "alexnet_icpm_bn", "alexnet_owt", "alexnet_owt_lrn"), _ONE_WEIRD_TRICK),
    **dict.fromkeys(("alexnet_small", "alexnet_tf_cifar"), (64, 64, 384, 192)),
    **dict.fromkeys(("caffe_cifar_full", "convnet_18pct", "convnet_19pct"), (32, 32, 64)),
    **dict.fromkeys(("caffe_cifar_quick", "convnet_80sec"), (32, 32, 64, 64)),
    "alexnet_cifar": (64, 192, 384, 256, 256),
    "alexnet_fast": (64, 128, 256, 256, 256),
    "alexnet_original_half": (48, 128, 192, 192, 256, 4096, 4096),
    "alexnet_two_fc": (64, 192, 384, 256, 256, 4096),
    "convnet_11pct": (64, 64, 64, 32),
    "convnet_13pct": (64, 64, 32, 32),
}

# Modules in the order they run. max and avg are the pools, rn the norm within a map.
_MIDDLE = "conv3 relu conv4 relu"
_HIDDEN = "fc6 relu dropout fc7 relu dropout fc8"
_LRN = f"conv1 relu lrn max conv2 relu lrn max {_MIDDLE} conv5 relu max {_HIDDEN}"
_PLAIN = f"conv1 relu max conv2 relu max {_MIDDLE} conv5 relu max"
ORDER = {
    "alexnet": f"{_PLAIN} {_HIDDEN}",
    "alexnet_6400": f"{_PLAIN} {_HIDDEN}",
    "alexnet_bn": "bn conv1 bn relu max conv2 bn relu max conv3 bn relu conv4 bn relu conv5 bn relu max "
    "fc6 bn relu fc7 bn relu fc8",
    "alexnet_cifar": f"{_PLAIN} fc8",
    "alexnet_d2l": f"{_PLAIN} {_HIDDEN}",
    "alexnet_icpm": f"{_PLAIN} dropout fc6 relu dropout fc7 relu fc8",
    "alexnet_fast": "conv1 bn relu conv2 bn relu max conv3 bn relu max conv4 bn relu conv5 bn relu max fc8",
    "alexnet_icpm_bn": "conv1 bn relu max conv2 bn relu max conv3 bn relu conv4 bn relu conv5 bn relu max "
    "dropout fc6 relu dropout fc7 relu fc8",
    "alexnet_keras_bn": "conv1 relu bn max conv2 relu bn max conv3 relu bn conv4 relu bn conv5 relu bn max "
    + _HIDDEN,
    "alexnet_lrn": _LRN,
    "alexnet_original": f"conv1 lrn max relu conv2 relu lrn rn max {_MIDDLE} conv5 max relu {_HIDDEN}",
    "alexnet_original_half": f"conv1 lrn max relu conv2 relu lrn rn max {_MIDDLE} conv5 max relu {_HIDDEN}",
    "alexnet_owt": f"{_PLAIN} dropout fc6 relu dropout fc7 relu fc8",
    "alexnet_owt_lrn": f"conv1 lrn max relu conv2 relu lrn max {_MIDDLE} conv5 max relu {_HIDDEN}",
    "alexnet_paper": _LRN,
    "alexnet_small": "conv1 relu max lrn conv2 relu max lrn fc6 relu fc7 relu fc8",
    "alexnet_stride4": f"conv1 lrn relu max conv2 lrn relu max {_MIDDLE} conv5 relu {_HIDDEN}",
    "alexnet_tf_cifar": "conv1 relu max lrn conv2 relu lrn max fc6 relu fc7 relu fc8",
    "alexnet_two_fc": f"{_PLAIN} fc6 relu dropout fc8",
    "alexnet_valid": f"{_PLAIN} {_HIDDEN}",
    "caffe_alexnet": _LRN,
    "caffe_cifar_full": "conv1 max relu rn conv2 relu avg rn conv3 relu avg fc8",
    "caffe_cifar_quick": "conv1 max relu conv2 relu avg conv3 relu avg fc6 fc8",
    "caffenet": f"conv1 relu max lrn conv2 relu max lrn {_MIDDLE} conv5 relu max {_HIDDEN}",
    "convnet_11pct": "conv1 relu max lrn conv2 relu lrn max local3 relu local4 relu fc8",
    "convnet_13pct": "conv1 relu max conv2 relu max local3 relu local4 relu fc8",
    "convnet_18pct": "conv1 max relu rn conv2 relu avg rn conv3 relu avg fc8",
    "convnet_19pct": "conv1 max relu conv2 relu avg conv3 relu avg fc8",
    "convnet_80sec": "conv1 max relu conv2 relu avg conv3 relu avg fc6 relu fc8",
    "tensorpack_alexnet": _LRN,
    "zfnet": f"conv1 relu max lrn conv2 relu max lrn {_MIDDLE} conv5 relu max {_HIDDEN}",
}

# (size, alpha in torch's convention, beta, k, towers) of every LRN in the network.
LRN = {
    "alexnet_lrn": (5, 1e-4, 0.75, 2.0, 1),
    "alexnet_original": (5, 1e-4, 0.75, 2.0, 2),
    "alexnet_original_half": (5, 1e-4, 0.75, 2.0, 1),
    "alexnet_owt_lrn": (5, 1e-4, 0.75, 2.0, 1),
    "alexnet_paper": (5, 5e-4, 0.75, 2.0, 1),
    "alexnet_small": (9, 1e-3, 0.75, 1.0, 1),
    "alexnet_stride4": (11, 11.0, 0.5, 1.0, 1),
    "alexnet_tf_cifar": (9, 1e-3, 0.75, 1.0, 1),
    "caffe_alexnet": (5, 1e-4, 0.75, 1.0, 1),
    "caffenet": (5, 1e-4, 0.75, 1.0, 1),
    "convnet_11pct": (9, 1e-3, 0.75, 1.0, 1),
    "tensorpack_alexnet": (5, 1e-4, 0.75, 1.0, 1),
    "zfnet": (5, 1e-4, 0.75, 2.0, 1),
}

# (size, alpha, beta, k) of every norm within a map.
SPATIAL_NORM = {
    "alexnet_original": (5, 1e-3, 0.75, 1.0),
    "alexnet_original_half": (5, 1e-3, 0.75, 1.0),
    "caffe_cifar_full": (3, 5e-5, 0.75, 1.0),
    "convnet_18pct": (3, 5e-5, 0.75, 1.0),
}

# Networks whose conv2, conv4 and conv5 have two groups.
TWO_TOWERS = {
    "alexnet_bn",
    "alexnet_original",
    "alexnet_paper",
    "caffe_alexnet",
    "caffenet",
    "tensorpack_alexnet",
}

# Networks that multiply by 1 - p at test instead of dividing in training.
TEST_SCALED = {"alexnet_original", "alexnet_original_half", "alexnet_owt_lrn", "alexnet_paper"}

# Networks whose pools count windows by rounding up (Caffe, cuda-convnet, ZFNet); all others round down.
POOLS_ROUND_UP = {
    "alexnet_bn",
    "alexnet_original",
    "alexnet_original_half",
    "alexnet_owt_lrn",
    "alexnet_paper",
    "caffe_alexnet",
    "caffe_cifar_full",
    "caffe_cifar_quick",
    "caffenet",
    "convnet_11pct",
    "convnet_13pct",
    "convnet_18pct",
    "convnet_19pct",
    "convnet_80sec",
    "zfnet",
}

# Convolutions whose last window may reach past the border.
CONVOLUTIONS_ROUND_UP = {
    "alexnet_original": {"conv1"},
    "alexnet_original_half": {"conv1"},
    "alexnet_owt_lrn": {"conv1"},
    "alexnet_paper": {"conv1"},
    "zfnet": {"conv1", "conv2"},
}

# (eps, momentum in torch's convention) of every batch norm: Caffe's .9, Keras' .99, torch's own.
BATCH_NORM = {
    "alexnet_bn": (1e-5, 0.1),
    "alexnet_fast": (1e-5, 0.1),
    "alexnet_icpm_bn": (1e-5, 0.1),
    "alexnet_keras_bn": (1e-3, 0.01),
}

_AT_0, _AT_1 = (0.01, 0.0), (0.01, 1.0)
_OF_THE_CODE = {
    "conv1": _AT_0, "conv2": _AT_1, "conv3": (0.03, 0.0), "conv4": (0.03, 1.0), "conv5": (0.03, 1.0),
    "fc6": _AT_1, "fc7": _AT_1, "fc8": _AT_0,
}  # fmt: skip


def _caffe(raised: float) -> dict[str, tuple[float, float]]:
    """Return the initial values of both Caffe ports, which differ only in the raised biases."""
    return {
        **dict.fromkeys(("conv1", "conv3", "fc8"), _AT_0),
        **dict.fromkeys(("conv2", "conv4", "conv5"), (0.01, raised)),
        **dict.fromkeys(("fc6", "fc7"), (0.005, raised)),
    }


def _he(**inputs: int) -> dict[str, tuple[float, float]]:
    """Return a standard deviation of sqrt(2 / fan-in) and biases of 0."""
    return {layer: ((2 / count) ** 0.5, 0.0) for layer, count in inputs.items()}


_HE_CONVOLUTIONS = {"conv1": 363, "conv2": 1200, "conv3": 2304, "conv4": 1728, "conv5": 1728}
_CONVNET = {"conv1": (1e-4, 0.0), "conv2": _AT_0, "conv3": _AT_0}
_LOCAL = {"conv1": (1e-4, 0.0), "conv2": _AT_0, "local3": (0.04, 0.0), "local4": (0.04, 0.0), "fc8": _AT_0}

# Initial (standard deviation, bias) of a layer, where the source states them.
INITIAL: dict[str, dict[str, tuple[float, float]]] = {
    "alexnet_original": _OF_THE_CODE,
    "alexnet_original_half": _OF_THE_CODE,
    "alexnet_owt_lrn": {**_OF_THE_CODE, "fc8": (0.01, -7.0)},
    "alexnet_paper": {
        **dict.fromkeys(("conv1", "conv3", "fc8"), _AT_0),
        **dict.fromkeys(("conv2", "conv4", "conv5", "fc6", "fc7"), _AT_1),
    },
    "caffe_alexnet": _caffe(0.1),
    "caffenet": _caffe(1.0),
    "tensorpack_alexnet": {**_he(**_HE_CONVOLUTIONS), "fc6": _AT_1, "fc7": _AT_0, "fc8": _AT_0},
    "alexnet_bn": _he(**_HE_CONVOLUTIONS, fc6=9216, fc7=64, fc8=64),  # 64: see the test
    "alexnet_fast": _he(conv1=27, conv2=576, conv3=1152, conv4=2304, conv5=2304, fc8=256),
    "zfnet": dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"), _AT_0),
    "alexnet_tf_cifar": {
        "conv1": (0.05, 0.0),
        "conv2": (0.05, 0.1),
        "fc6": (0.04, 0.1),
        "fc7": (0.04, 0.1),
        "fc8": (1 / 192, 0.0),
    },
    **{n: {**_CONVNET, "fc6": (0.1, 0.0), "fc8": (0.1, 0.0)} for n in ("convnet_80sec", "caffe_cifar_quick")},
    **{n: {**_CONVNET, "fc8": _AT_0} for n in ("caffe_cifar_full", "convnet_18pct", "convnet_19pct")},
    "convnet_13pct": _LOCAL,
    "convnet_11pct": _LOCAL,
}

# (fan-in, fan-out) of a layer, in the networks with Keras' initialisation.
GLOROT = {
    "alexnet_d2l": {"conv1": (121, 11_616), "conv3": (2304, 3456)},
    "alexnet_keras_bn": {"conv1": (363, 11_616), "conv4": (384, 384), "conv5": (384, 256)},
    "alexnet_stride4": {"conv1": (363, 11_616), "conv2": (2400, 6400)},
    "alexnet_valid": {"conv2": (2400, 6400), "conv5": (3456, 2304)},
}

# Networks whose source keeps torch's initialisation, or states none.
TORCH_START = {
    "alexnet",
    "alexnet_6400",
    "alexnet_cifar",
    "alexnet_icpm",
    "alexnet_icpm_bn",
    "alexnet_lrn",
    "alexnet_owt",
    "alexnet_small",
    "alexnet_two_fc",
}
