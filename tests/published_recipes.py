"""What each recipe's source says about its training; typed in by hand."""

from __future__ import annotations

from typing import Any

# Batch size, learning rate of the weights, momentum, weight decay, epochs, input size.
PUBLISHED: dict[str, tuple[int, float, float | None, float, int, int]] = {
    "alexnet_cifar": (128, 0.01, 0.9, 5e-4, 164, 32),
    "alexnet_small_plain": (128, 0.01, 0.9, 0.0, 100, 28),
    "alexnet_small_wd": (128, 0.01, 0.9, 5e-4, 100, 28),
    "alexnet_small_crop": (128, 0.01, 0.9, 0.0, 100, 28),
    "alexnet_small_crop_wd": (128, 0.01, 0.9, 5e-4, 100, 28),
    "caffe_cifar_full": (100, 0.001, 0.9, 0.004, 140, 32),
    "caffe_cifar_quick": (100, 0.001, 0.9, 0.004, 10, 32),
    "caffe_imagenet": (256, 0.01, 0.9, 5e-4, 90, 227),
    "caffenet_imagenet": (256, 0.01, 0.9, 5e-4, 90, 227),
    "convnet_11pct": (128, 0.001, 0.9, 0.0, 520, 24),
    "convnet_13pct": (128, 0.001, 0.9, 0.0, 160, 24),
    "convnet_18pct": (128, 0.001, 0.9, 0.004, 140, 32),
    "convnet_19pct": (128, 0.001, 0.9, 0.004, 140, 32),
    "convnet_19pct_crops": (128, 0.001, 0.9, 0.0, 140, 24),
    "convnet_80sec": (128, 0.001, 0.9, 0.004, 10, 32),
    "cvgj_imagenet": (256, 0.05, 0.9, 5e-4, 64, 227),
    "icpm": (100, 0.001, None, 0.0, 200, 32),
    "original_half_imagenet": (128, 0.01, 0.9, 5e-4, 96, 224),
    "original_imagenet": (128, 0.01, 0.9, 5e-4, 91, 224),
    "owt_imagenet": (128, 0.01, 0.9, 5e-4, 90, 224),
    "paper_imagenet": (128, 0.01, 0.9, 5e-4, 90, 224),
    "keras_bn_cifar10": (32, 0.001, 0.0, 0.0, 20, 128),
    "alexnet_227_cifar10": (128, 0.001, 0.9, 0.0, 20, 227),
    "lrn_folder": (32, 0.01, 0.9, 5e-4, 100, 227),
    "valid_imagenet": (256, 0.01, 0.9, 1e-4, 90, 224),
    "features_6400_imagenet": (256, 0.01, 0.9, 1e-4, 90, 224),
    "stride4_mnist": (64, 0.001, None, 0.0, 5, 224),
    "two_fc_imagenet": (256, 0.01, 0.9, 1e-4, 90, 224),
    "resnet18_imagenet": (256, 0.1, 0.9, 1e-4, 90, 224),
    "resnet18_cifar": (128, 0.1, 0.9, 5e-4, 200, 32),
    "tensorpack_imagenet": (128, 0.01, 0.9, 5e-4, 100, 224),
    "tf_tutorial": (128, 0.1, 0.0, 0.0, 256, 24),
    "torchvision_imagenet": (256, 0.01, 0.9, 1e-4, 90, 224),
    "zfnet_imagenet": (128, 0.01, 0.9, 5e-4, 70, 224),
}
# Augmentation where it differs from conf/augment/none.yaml; resized_crop is the default of its file.
AUGMENT: dict[str, dict[str, Any]] = {
    "alexnet_cifar": {"flip": True, "pad": 4},
    "alexnet_small_plain": {"whiten": True, "centre_crop": True},
    "alexnet_small_wd": {"whiten": True, "centre_crop": True},
    "alexnet_small_crop": {"whiten": True, "crop": True},
    "alexnet_small_crop_wd": {"whiten": True, "crop": True},
    "caffe_cifar_full": {"mean_image": "aligned"},
    "caffe_cifar_quick": {"mean_image": "aligned"},
    "caffe_imagenet": {"flip": True, "crop": True, "mean_image": "aligned"},
    "caffenet_imagenet": {"flip": True, "crop": True, "mean_image": "aligned"},
    "convnet_11pct": {"flip": True, "crop": True, "mean_image": "centre", "views": "ten_crop"},
    "convnet_13pct": {"flip": True, "crop": True, "mean_image": "centre", "views": "ten_crop"},
    "convnet_18pct": {"mean_image": "centre"},
    "convnet_19pct": {"mean_image": "centre"},
    "convnet_19pct_crops": {"flip": True, "crop": True, "mean_image": "centre", "views": "ten_crop"},
    "convnet_80sec": {"mean_image": "centre"},
    "cvgj_imagenet": {"flip": True, "crop": True},
    "icpm": {"flip": True},
    "original_half_imagenet": {
        "flip": True, "crop": True, "mean_image": "centre", "views": "ten_crop", "colour_noise": "source",
        "colour_noise_epochs": 66,
    },
    "original_imagenet": {
        "flip": True, "crop": True, "mean_image": "centre", "views": "ten_crop", "colour_noise": "source",
        "colour_noise_epochs": 67,
    },
    "owt_imagenet": {
        "flip": True, "crop": True, "mean_image": "centre", "views": "ten_crop", "colour_noise": "source",
    },
    "paper_imagenet": {
        "flip": True, "crop": True, "mean_image": "aligned", "views": "ten_crop", "colour_noise": "paper",
    },
    "keras_bn_cifar10": {},
    "alexnet_227_cifar10": {},
    "lrn_folder": {"flip": True, "crop": True},
    "stride4_mnist": {},
    "resnet18_cifar": {"flip": True, "pad": 4},
    "tensorpack_imagenet": {"flip": True, "crop": True, "colour_noise": "paper"},
    "tf_tutorial": {"flip": True, "crop": True, "contrast": [0.2, 1.8], "whiten": True},
    "zfnet_imagenet": {"flip": True, "crop": True, "mean_image": "aligned", "views": "ten_crop"},
}  # fmt: skip
TORCHVISION = (
    "torchvision_imagenet",
    "valid_imagenet",
    "features_6400_imagenet",
    "two_fc_imagenet",
    "resnet18_imagenet",
)


def _at(gamma: float, *epochs: int) -> dict[str, Any]:
    return {"name": "multistep", "epochs": list(epochs), "gamma": gamma}


def _every(epochs: int, gamma: float = 0.1) -> dict[str, Any]:
    return {"name": "step", "every_epochs": epochs, "gamma": gamma}


def _by_hand(*changes: dict[str, Any]) -> dict[str, Any]:
    return {"name": "table", "changes": list(changes)}


_CONSTANT = {"name": "none"}
_WHEN_IT_STALLS = {
    "name": "plateau", "monitor": "val/top1", "mode": "max", "factor": 0.1, "patience": 5, "min_lr": 1e-5,
}  # fmt: skip
_OF_THE_HALF = (
    {"epoch": 20, "lr": 1e-3},
    {"epoch": 48, "lr": 1e-4},
    {"epoch": 66, "layer": "conv1", "lr": 1e-5},
    {"epoch": 72, "layer": "conv1", "lr": 0.0},
)
_OF_145 = (
    {"epoch": 25, "lr": 1e-3},
    {"epoch": 51, "lr": 1e-4},
    {"epoch": 67, "layer": "conv1", "lr": 1e-5},
    {"epoch": 72, "layer": "conv1", "lr": 0.0, "bias_lr": 0.0},
    {"epoch": 79, "lr": 1e-5, "but": "conv1"},
)
# Learning rate schedules.
SCHEDULES: dict[str, dict[str, Any]] = {
    "alexnet_cifar": _at(0.1, 81, 122),
    "alexnet_small_plain": _every(1, 0.95),
    "alexnet_small_wd": _every(1, 0.95),
    "alexnet_small_crop": _every(1, 0.95),
    "alexnet_small_crop_wd": _every(1, 0.95),
    "caffe_cifar_full": _at(0.1, 120, 130),
    "caffe_cifar_quick": _at(0.1, 8),
    "caffe_imagenet": _every(20),
    "caffenet_imagenet": _every(20),
    "convnet_11pct": _by_hand({"epoch": 500, "lr": 1e-4}, {"epoch": 510, "lr": 1e-5}),
    "convnet_13pct": _by_hand({"epoch": 140, "lr": 1e-4}, {"epoch": 150, "lr": 1e-5}),
    "convnet_18pct": _at(0.1, 120, 130),
    "convnet_19pct": _at(0.1, 120, 130),
    "convnet_19pct_crops": _at(0.1, 120, 130),
    "convnet_80sec": _at(0.1, 8),
    "cvgj_imagenet": {"name": "poly", "power": 1.0, "warmup_epochs": 0.0},
    "icpm": _at(0.5, 74, 149),
    "original_half_imagenet": _by_hand(*_OF_THE_HALF),
    "original_imagenet": _by_hand(*_OF_145),
    "owt_imagenet": {"name": "dexp", "factor": 250.0, "steps": 4, "bias_factor": 10.0, "bias_steps": 2},
    "paper_imagenet": _WHEN_IT_STALLS,
    "keras_bn_cifar10": _CONSTANT,
    "alexnet_227_cifar10": _CONSTANT,
    "lrn_folder": _CONSTANT,
    "stride4_mnist": _CONSTANT,
    "resnet18_cifar": {"name": "cosine", "warmup_epochs": 0.0, "final_factor": 0.0},
    "tensorpack_imagenet": _at(0.1, 30, 60, 80),
    "tf_tutorial": _every(350),
    "zfnet_imagenet": _WHEN_IT_STALLS,
    **dict.fromkeys(TORCHVISION, _every(30)),
}
