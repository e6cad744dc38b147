"""Every experiment: its header, its numbers as published, and a step of training and a batch of testing."""

from __future__ import annotations

import copy
import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, conf_dir, group, options, plain
from alexnet_exp.runs import fit
from tests.data.makers import write_cifar10, write_folder, write_mnist

EXPERIMENTS = [name for name in options("experiment") if name != "none"]
CIFAR = {"std": [1 / 255] * 3, "mean": [0.0] * 3}  # pixels stay 0..255
IMAGENET = {"std": [0.229, 0.224, 0.225], "mean": [0.485, 0.456, 0.406]}


@functools.cache
def _composed(experiment: str) -> dict[str, Any]:
    return plain(compose("train", shlex.split(header(experiment)["Command"])[2:]))


def settings(experiment: str) -> dict[str, Any]:
    """Return the settings of the command that an experiment's header gives."""
    return copy.deepcopy(_composed(experiment))


def header(experiment: str) -> dict[str, str]:
    """Read the 'Key: text' comments that open an experiment; a text may go on over several lines."""
    fields: dict[str, str] = {}
    for line in (conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"# ([A-Z][a-z]+(?: bugs)?): +(.+)", line):
            fields[found[1]] = found[2]
        elif line.startswith("#   ") and fields:
            fields[list(fields)[-1]] += " " + line[1:].strip()
    return fields


# ------------------------------------------------------------------------------------------------ headers


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_header_says_what_the_command_the_source_and_the_figures(experiment: str) -> None:
    lines = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert re.fullmatch(r"# [^:]+(: .+)?\.", lines[1]), lines[1]
    keys = list(header(experiment))
    assert keys[:2] == ["Command", "Source"]
    assert keys[-2:] == ["Published", "Measured"]
    assert set(keys[2:-2]) <= {"Its bugs", "Differs"}
    assert ("Its bugs" in keys) == (experiment.startswith("readme") and experiment != "readme004_resnet18")
    assert max(map(len, lines)) <= 125


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_names_the_experiment_and_passes_the_check(experiment: str) -> None:
    python, script, first, *others = shlex.split(header(experiment)["Command"])
    assert (python, script, first) == ("python", "train.py", f"experiment={experiment}")
    config = settings(experiment)
    check_config(config)
    assert ("data.root=IMAGENET" in others) == (
        config["data"].get("stored_size") == 256 and experiment != "readme001"
    )


def test_what_is_measured_says_so_with_its_number_of_runs() -> None:
    for experiment in EXPERIMENTS:
        measured = header(experiment)["Measured"]
        assert measured == "not yet measured" or re.search(r"\bseed|\bn = \d", measured), experiment


# ------------------------------------------------------------------------------------------------ numbers

# Batch, rate of the weights, momentum, decay, epochs, side of the input; typed in from the sources.
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
    "convnet_80sec": (128, 0.001, 0.9, 0.004, 10, 32),
    "cvgj_imagenet": (256, 0.05, 0.9, 5e-4, 64, 227),
    "icpm": (100, 0.001, None, 0.0, 200, 32),
    "original_imagenet": (128, 0.01, 0.9, 5e-4, 91, 224),
    "owt_imagenet": (128, 0.01, 0.9, 5e-4, 90, 224),
    "paper_imagenet": (128, 0.01, 0.9, 5e-4, 90, 224),
    "readme000_keras": (32, 0.001, 0.0, 0.0, 20, 128),
    "readme000_pytorch": (128, 0.001, 0.9, 0.0, 20, 227),
    "readme001": (32, 0.01, 0.9, 5e-4, 100, 227),
    "readme002_keras": (256, 0.01, 0.9, 1e-4, 90, 224),
    "readme002_pytorch": (256, 0.01, 0.9, 1e-4, 90, 224),
    "readme003": (64, 0.001, None, 0.0, 5, 224),
    "readme004_alexnet": (256, 0.01, 0.9, 1e-4, 90, 224),
    "readme004_resnet18": (256, 0.1, 0.9, 1e-4, 90, 224),
    "tensorpack_imagenet": (128, 0.01, 0.9, 5e-4, 100, 224),
    "torchvision_imagenet": (256, 0.01, 0.9, 1e-4, 90, 224),
    "zfnet_imagenet": (128, 0.01, 0.9, 5e-4, 70, 224),
}
# What each does to its images, beside what conf/augment/none.yaml says; resized_crop is the default of its file.
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
    "convnet_80sec": {"mean_image": "centre"},
    "cvgj_imagenet": {"flip": True, "crop": True},
    "icpm": {"flip": True},
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
    "readme000_keras": {},
    "readme000_pytorch": {},
    "readme001": {"flip": True, "crop": True},
    "readme003": {},
    "tensorpack_imagenet": {"flip": True, "crop": True, "colour_noise": "paper"},
    "zfnet_imagenet": {"flip": True, "crop": True, "mean_image": "aligned", "views": "ten_crop"},
}  # fmt: skip
TORCHVISION = (
    "torchvision_imagenet",
    "readme002_keras",
    "readme002_pytorch",
    "readme004_alexnet",
    "readme004_resnet18",
)

OURS = ("cifar10_fast", "cifar10_fast_resnet18", "cifar10_fast_cpu")


def test_every_experiment_has_its_numbers_here() -> None:
    assert sorted([*PUBLISHED, *OURS]) == EXPERIMENTS
    assert sorted([*AUGMENT, *TORCHVISION, *OURS]) == EXPERIMENTS


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_numbers_are_the_published_ones(experiment: str) -> None:
    config = settings(experiment)
    optimizer = config["optimizer"]
    batch, lr, momentum, decay, epochs, size = PUBLISHED[experiment]
    assert config["data"]["batch_size"] == batch
    assert (optimizer["lr"], optimizer.get("momentum"), optimizer["weight_decay"]) == (lr, momentum, decay)
    assert config["trainer"]["max_epochs"] == epochs
    assert config["data"]["image_size"] == config["model"]["input_size"] == size
    assert optimizer.get("nesterov", False) == (experiment == "tensorpack_imagenet")
    # Caffe and cuda-convnet have the rate inside the velocity, as the paper.
    inside = ("paper", "original", "owt", "caffe", "cvgj", "convnet")
    assert ("PaperSGD" in optimizer["_target_"]) == experiment.startswith(inside)


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_augmentation_is_the_published_one(experiment: str) -> None:
    augment = settings(experiment)["augment"]
    expected = group("augment", "none")
    if experiment in TORCHVISION:
        part = {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]}
        expected |= {"flip": True, "crop": True, "resized_crop": part}
    assert augment == expected | AUGMENT.get(experiment, {})


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_pixels_are_scaled_as_published(experiment: str) -> None:
    data = settings(experiment)["data"]
    scaled = {"mean": data["mean"], "std": data["std"]}
    if experiment in ("readme001", "tensorpack_imagenet", *TORCHVISION):
        assert scaled == IMAGENET
    elif experiment in ("icpm", "readme003") or experiment.startswith("alexnet_small"):
        assert scaled == {"mean": [0.0] * 3, "std": [1.0] * 3}
    elif experiment == "readme000_pytorch":
        assert scaled == {"mean": [0.5] * 3, "std": [0.5] * 3}
    elif experiment == "alexnet_cifar":
        assert scaled == {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    else:
        assert scaled == {"mean": [0.0] * 3, "std": pytest.approx([1 / 255] * 3, rel=1e-12)}


def test_the_subsets_and_the_validation_are_those_of_the_readmes() -> None:
    cuts = ("train_subset", "test_subset", "val_size")
    of = {
        name: tuple(settings(name)["data"][key] for key in cuts)
        for name in ("readme000_pytorch", "readme000_keras")
    }
    assert of == {"readme000_pytorch": (1000, 1000, 0), "readme000_keras": (10_000, 1000, 0)}
    readme003 = settings("readme003")
    assert (readme003["data"]["val_size"], readme003["data"]["val_split"]) == (2000, "last")
    assert readme003["test_weights"] == "last"
    assert (readme003["optimizer"]["_target_"], readme003["optimizer"]["eps"]) == ("torch.optim.Adam", 1e-7)


def test_recipes_on_cifar10_train_on_all_of_its_images() -> None:
    for experiment in PUBLISHED:
        data = settings(experiment)["data"]
        if data["_target_"].endswith("CIFAR10") and not experiment.startswith("readme"):
            assert (data["val_size"], data["train_subset"], data["test_subset"]) == (0, None, None), (
                experiment
            )


def test_imagenet_is_stored_as_squares_of_256_pixels() -> None:
    for experiment in PUBLISHED:
        data = settings(experiment)["data"]
        assert data.get("stored_size", 256) == 256, experiment


def test_the_paper_s_rate_falls_three_times_at_most() -> None:
    scheduler = settings("paper_imagenet")["scheduler"]
    assert (scheduler["monitor"], scheduler["mode"], scheduler["factor"]) == ("val/top1", "max", 0.1)
    assert settings("paper_imagenet")["optimizer"]["lr"] * 0.1**3 == pytest.approx(scheduler["min_lr"])


# ------------------------------------------------------------------------------------------------ a step


def tiny(model: dict[str, Any]) -> None:
    """Make every layer of a network as narrow as its groups allow, wherever it has layers."""
    for layer in model.get("features", {}).values():
        layer["out_channels"] = 4 * layer["groups"]
    for layer in model.get("classifier", {}).values():
        if layer.get("out_features") is not None:
            layer["out_features"] = 8


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few random images in every layout that an experiment reads."""
    folder = tmp_path_factory.mktemp("data")
    write_cifar10(folder, per_batch=10)
    write_mnist(folder, train=40, test=10)
    write_folder(
        folder / "images", {f"{split}/{name}": 4 for split in ("train", "val") for name in ("cat", "dog")}
    )
    return folder


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_trains_a_step_and_tests_a_batch(
    experiment: str, data_dir: Path, tmp_path: Path
) -> None:
    config = settings(experiment)
    tiny(config["model"])
    data = config["data"]
    if "root" in data:
        data |= {"root": str(data_dir / "images"), "num_workers": 0}
    else:
        data |= {"data_dir": str(data_dir), "val_size": min(data["val_size"], 8)}
    data |= {"batch_size": 4, **{key: 8 for key in ("train_subset", "test_subset") if data[key]}}
    limits = {f"limit_{split}_batches": 1 for split in ("train", "val", "test")}
    config["trainer"] |= {"accelerator": "cpu", "devices": 1, "strategy": "auto", "max_epochs": 1, **limits}
    config["callbacks"]["checkpoint"]["enabled"] = config["callbacks"]["progress_bar"]["enabled"] = False
    images = fit.prepare_data(config)
    fit.fit_to_data(config, images, [])
    made = fit.assemble(config, images, tmp_path, [], Console(quiet=True))
    before = [p.detach().clone() for p in made.classifier.model.parameters()]
    assert fit.train_and_test(made, None)
    assert made.trainer.global_step == 1
    after = list(made.classifier.model.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.isfinite(p).all() for p in after)
    assert int(made.classifier.test_meter.confusion_counts.sum()) == 4
