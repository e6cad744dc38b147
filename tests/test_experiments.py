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
from alexnet_exp.config.overrides import RENAMED, prepare
from alexnet_exp.runs.train import fit
from tests.data.makers import write_cifar10, write_folder, write_mnist
from tests.published_recipes import AUGMENT, PUBLISHED, SCHEDULES, TORCHVISION

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
    others = {"Then", "Its bugs", "Differs"}
    assert [k for k in keys if k not in others] == ["Command", "Source", "Published", "Measured"]
    assert (keys[0], keys[-2:]) == ("Command", ["Published", "Measured"])
    assert ("Its bugs" in keys) == (experiment in {*RENAMED["experiment"].values()} - {"resnet18_imagenet"})
    assert max(map(len, lines)) <= 125


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_names_the_experiment_and_passes_the_check(experiment: str) -> None:
    python, script, first, *others = shlex.split(header(experiment)["Command"])
    assert (python, script, first) == ("python", "train.py", f"experiment={experiment}")
    config = settings(experiment)
    check_config(config)
    assert ("data.root=IMAGENET" in others) == config["data"]["_target_"].endswith(".ImageNet")


def test_what_is_measured_says_so_with_its_number_of_runs() -> None:
    for experiment in EXPERIMENTS:
        measured = header(experiment)["Measured"]
        assert measured == "not yet measured" or re.search(r"\bseed|\bn = \d", measured), experiment


def test_a_network_that_no_experiment_trains_says_why() -> None:
    texts = [(conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8") for name in EXPERIMENTS]
    trained = {name for text in texts for name in re.findall(r"override /model: (\w+)", text)}
    for name in options("model"):
        text = (conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8")
        assert (name in trained) != ("No experiment: " in text), name


# ------------------------------------------------------------------------------------------------ numbers

OURS = (
    "cifar10_fast", "cifar10_fast_resnet18", "cifar10_fast_cpu", "finetune", "finetune_small", "imagenet_lars_8k"
)  # fmt: skip


def test_every_experiment_has_its_numbers_here() -> None:
    assert sorted([*PUBLISHED, *OURS]) == EXPERIMENTS
    assert sorted([*AUGMENT, *TORCHVISION, *OURS]) == EXPERIMENTS
    assert sorted([*SCHEDULES, *OURS]) == EXPERIMENTS


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
        part = {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "whole_image": True}
        expected |= {"flip": True, "crop": True, "resized_crop": part}
    assert augment == expected | AUGMENT.get(experiment, {})


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_pixels_are_scaled_as_published(experiment: str) -> None:
    data = settings(experiment)["data"]
    scaled = {"mean": data["mean"], "std": data["std"]}
    if experiment in ("lrn_folder", "tensorpack_imagenet", *TORCHVISION):
        assert scaled == IMAGENET
    elif experiment in ("icpm", "stride4_mnist") or experiment.startswith("alexnet_small"):
        assert scaled == {"mean": [0.0] * 3, "std": [1.0] * 3}
    elif experiment == "alexnet_227_cifar10":
        assert scaled == {"mean": [0.5] * 3, "std": [0.5] * 3}
    elif experiment in ("alexnet_cifar", "resnet18_cifar"):
        assert scaled == {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    else:
        assert scaled == {"mean": [0.0] * 3, "std": pytest.approx([1 / 255] * 3, rel=1e-12)}


def test_the_subsets_and_the_validation_are_those_of_the_readmes() -> None:
    cuts = ("train_subset", "test_subset", "val_size")
    of = {
        name: tuple(settings(name)["data"][key] for key in cuts)
        for name in ("alexnet_227_cifar10", "keras_bn_cifar10")
    }
    assert of == {"alexnet_227_cifar10": (1000, 1000, 0), "keras_bn_cifar10": (10_000, 1000, 0)}
    stride4_mnist = settings("stride4_mnist")
    assert (stride4_mnist["data"]["val_size"], stride4_mnist["data"]["val_split"]) == (2000, "last")
    assert stride4_mnist["test_weights"] == "last"
    assert (stride4_mnist["optimizer"]["_target_"], stride4_mnist["optimizer"]["eps"]) == (
        "torch.optim.Adam",
        1e-7,
    )


def test_recipes_on_cifar10_train_on_all_of_its_images() -> None:
    for experiment in PUBLISHED:
        data = settings(experiment)["data"]
        if data["_target_"].endswith("CIFAR10") and experiment not in RENAMED["experiment"].values():
            assert (data["val_size"], data["train_subset"], data["test_subset"]) == (0, None, None), (
                experiment
            )


def test_imagenet_is_stored_as_squares_of_256_pixels() -> None:
    for experiment in PUBLISHED:
        data = settings(experiment)["data"]
        assert data.get("stored_size", 256) == 256, experiment


def test_imagenet_as_published_differs_from_a_folder_in_what_finds_the_images_alone() -> None:
    typed = shlex.split(header("paper_imagenet")["Command"])[2:]
    for words in (["data.root=images", "data.batch_size=8"], typed):
        of = {name: plain(compose("train", [*words, f"data={name}"])) for name in ("folder", "imagenet")}
        folder, imagenet = of["folder"], of["imagenet"]
        own = {"val_fraction": folder["data"].pop("val_fraction"), "val_seed": folder["data"].pop("val_seed")}
        assert own == {"val_fraction": "auto", "val_seed": 0}
        assert imagenet["data"].pop("_target_") != folder["data"].pop("_target_")
        assert folder == imagenet


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_schedule_is_the_published_one(experiment: str) -> None:
    assert settings(experiment)["scheduler"] == SCHEDULES[experiment]


def test_the_paper_s_rate_falls_three_times_at_most() -> None:
    scheduler = settings("paper_imagenet")["scheduler"]
    assert settings("paper_imagenet")["optimizer"]["lr"] * 0.1**3 == pytest.approx(scheduler["min_lr"])


TEN_VIEWS = re.compile(r"alexnet-exp evaluate RUN_DIR split=val views=ten_crop\b")


def test_a_figure_from_ten_views_says_how_it_is_got() -> None:
    with_ten = {e for e in PUBLISHED if "ten-crop" in header(e)["Published"] and e.endswith("imagenet")}
    assert with_ten == {e for e in EXPERIMENTS if TEN_VIEWS.match(header(e).get("Then", ""))}
    assert {"paper_imagenet", "original_imagenet", "owt_imagenet", "zfnet_imagenet"} <= with_ten


def test_the_data_and_the_header_publish_the_same_figures() -> None:
    for experiment in EXPERIMENTS:
        text = header(experiment)["Published"]
        for entry in settings(experiment)["published"] or []:
            percent = 100 * entry["value"]
            shown = [f"{number:.6g}" for number in (percent, 100 - percent)] + [f"{entry['value']:.4f}"]
            figures = [f"{float(number):.6g}" for number in re.findall(r"\d+(?:\.\d+)?", text)]
            assert set(shown) & {*figures, *text.split()}, (experiment, entry)


def test_what_publishes_nothing_inherits_no_figures() -> None:
    for experiment in EXPERIMENTS:
        nothing = header(experiment)["Published"].startswith(("nothing", "none"))
        assert (settings(experiment)["published"] is None) == nothing, experiment


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
    classes = ("n01440764", "n15075141")  # ImageNet's names; a folder may have any
    write_folder(folder / "images", {f"{split}/{name}": 4 for split in ("train", "val") for name in classes})
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


def test_former_names_of_experiments_still_work() -> None:
    for old, new in RENAMED["experiment"].items():
        assert new in EXPERIMENTS and old not in EXPERIMENTS
        assert prepare([f"experiment={old}"]) == [f"experiment={new}"]
    assert (
        prepare(["-m", "experiment=readme003,convnet_80sec"])[-1] == "experiment=stride4_mnist,convnet_80sec"
    )
