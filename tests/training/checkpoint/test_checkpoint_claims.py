"""The claims of a checkpoint or run directory are checked before a class is instantiated or an image read."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from tests.training.checkpoint.hostile_files import refused, write
from tests.training.small_runs import checkpoint


def changed(honest: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a valid checkpoint with one change."""
    saved = copy.deepcopy(checkpoint(honest))
    change(saved)
    return write(path, saved)


def in_model(**keys: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: saved["config"]["model"].update(keys)


TARGETS = [
    "os.system", "builtins.eval", "subprocess.Popen", "functools.partial", "hydra.utils.instantiate",
    "hydra.utils.get_method", "importlib.import_module", "torch.load", "torch.hub.load",
    "alexnet_exp.data.datasets.cifar10.os.system", "alexnet_exp.training.launch.ranks.Ranks",
    "alexnet_exp.models.alexnet.torch.load", "alexnet_exp.targets.build", "alexnet_exp.models.AlexNet.load_state_dict",
    "alexnet_exp.models.AlexNet ", "ALEXNET_EXP.models.AlexNet", "..os.system", "",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_no_class_outside_the_list_is_instantiated(
    target: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(honest, place / "hostile.ckpt", in_model(_target_=target, _args_=["touch canary"]))
    line = refused(capsys, "predict", file, "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert "is not part of this package" in line
    assert not (place / "canary").exists()


NESTED = [
    {"features": {"conv1": {"_target_": "os.system", "_args_": ["touch canary"]}}},
    {"_args_": [{"_target_": "os.system", "command": "touch canary"}]},
    {"_partial_": True, "lrn": [[({"_target_": "builtins.exec"},)]]},
]


@pytest.mark.parametrize("keys", NESTED)
def test_nested_classes_are_checked(
    keys: dict[str, Any], honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(honest, place / "hostile.ckpt", in_model(**keys))
    line = refused(capsys, "export", file, "format=safetensors", f"hydra.run.dir={place / 'out'}")
    assert "is not part of this package" in line
    assert not (place / "canary").exists()


DIGITS = {"batch_size": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "ten billion classes": (in_model(num_classes=10**10), "do not fit its network"),
    "a number beyond counting": (in_model(num_classes=2**2000), "an integer >= 1 and < 9007199254740992"),
    "a layer of 10 TB": (
        lambda s: s["config"]["model"]["features"]["conv1"].update(out_channels=10**11),
        "do not fit its network",
    ),
    "a kernel of text": (
        lambda s: s["config"]["model"]["features"]["conv1"].update(kernel_size="big"),
        "expected an integer >= 1",
    ),
    "a stride that no number holds": (
        lambda s: s["config"]["model"]["max_pool"].update(stride=2**63),
        "expected an integer >= 1",
    ),
    "layers that are none": (in_model(features=7), "expected a mapping from layer name to settings"),
    "a data set as the network": (
        lambda s: s["config"].update(model={"_target_": "alexnet_exp.data.Digits", **DIGITS}),
        "is not an nn.Module",
    ),
    "images of a million pixels' side": (lambda s: s["preprocessing"].update(stored_size=10**6), "its preprocessing"),
    "another image size": (lambda s: s["preprocessing"].update(image_size=900), "does not accept its images"),
    "channels that are a tensor": (lambda s: s["preprocessing"].update(channels=torch.zeros(2)), "its preprocessing"),
    "no mean": (lambda s: s["preprocessing"].update(mean=None), "its preprocessing"),
    "no preprocessing": (lambda s: s.pop("preprocessing"), "its preprocessing"),
    "classes that are numbers": (lambda s: s.update(classes=list(range(10))), "its classes"),
    "too few classes": (lambda s: s.update(classes=["one"]), "has 1 classes"),
    "settings that are none": (lambda s: s.update(config=[1]), "its config"),
    "settings without a model": (lambda s: s["config"].pop("model"), "its config"),
    "weights that are none": (lambda s: s.update(state_dict={"a": 1}), "its state_dict"),
    "weights of other names": (lambda s: s.update(state_dict={1: torch.zeros(1)}), "its state_dict"),
    "no weights": (lambda s: s.update(state_dict={}), "do not fit its network"),
    "augmentation that is none": (lambda s: s["config"]["augment"].update(views=7), r"augment\.views=7"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_claims_of_a_checkpoint_are_checked_before_its_network_is_built(
    name: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = SETTINGS[name]
    file = changed(honest, place / "hostile.ckpt", change)
    line = refused(capsys, "predict", file, "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert re.search(message, line), line


DATA: list[tuple[dict[str, Any], str]] = [
    ({"num_workers": 10**6}, r"invalid data\.num_workers=1000000: expected"),
    ({"_target_": "os.system"}, "is not part of this package"),
    ({"test_subset": "all"}, r"invalid data\.test_subset='all': expected"),
]


@pytest.mark.parametrize(("keys", "message"), DATA)
def test_the_data_settings_of_a_checkpoint_are_checked(
    keys: dict[str, Any], message: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(honest, place / "hostile.ckpt", lambda saved: saved["config"]["data"].update(keys))
    line = refused(capsys, "evaluate", file, "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "part", ["loops", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step"]
)
@pytest.mark.parametrize("value", [None, {"fit_loop": 3}, -1, 2**70, "x", torch.zeros(2)], ids=str)
def test_training_does_not_resume_from_malformed_parts(part: str, value: Any, honest: Path) -> None:
    from alexnet_exp.training.checkpoint.read import check_progress

    saved = checkpoint(honest)
    check_progress(saved, "a.ckpt")
    if part == "callbacks" and isinstance(value, dict):  # callbacks check their own states
        check_progress({**saved, part: value}, "a.ckpt")
        return
    with pytest.raises(UserError, match=f"its {part} is not what a run writes"):
        check_progress({**saved, part: value}, "a.ckpt")


# ---------------------------------------------------------------------------------- hostile run directories


OVERRIDES: list[Any] = [
    "hydra.callbacks.x._target_=os.system",
    "+hydra.callbacks.x._target_=os.system",
    "hydra/launcher=evil",
    "hydra.job_logging.handlers.file.class=os.system",
    "--config-dir=/tmp/evil",
    "-m",
    {"a": 1},
]


@pytest.mark.parametrize("override", OVERRIDES, ids=str)
def test_a_run_directory_passes_only_settings_to_hydra(
    override: Any, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(honest, place / "run")
    typed = yaml.safe_load((honest / "overrides.yaml").read_text())
    (place / "run" / "overrides.yaml").write_text(yaml.safe_dump([*typed, override]))
    line = refused(capsys, "train", f"resume={place / 'run'}", "trainer.max_epochs=3")
    assert "which no run writes there" in line
    assert not (place / "canary").exists()


def test_a_run_directory_cannot_add_a_class_to_the_typed_settings(
    honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(honest, place / "run")
    config = yaml.safe_load((honest / "config.yaml").read_text())
    config["callbacks"]["evil"] = {"_target_": "os.system", "command": "touch canary"}
    (place / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    line = refused(capsys, "train", f"resume={place / 'run'}", "callbacks.early_stopping.patience=3")
    assert "is not part of this package" in line
    assert not (place / "canary").exists()


def test_the_recorded_overrides_are_not_composed_again(honest: Path, place: Path) -> None:
    shutil.copytree(honest, place / "run")
    typed = yaml.safe_load((honest / "overrides.yaml").read_text())
    evil = ["+callbacks.evil._target_=os.system", "+callbacks.evil.command='touch canary'"]
    (place / "run" / "overrides.yaml").write_text(yaml.safe_dump([*typed, *evil]))
    assert main(["train", f"resume={place / 'run'}", "trainer.max_epochs=2"]) == 0
    assert not (place / "canary").exists()


DIRECTORIES = [  # file, its text, message
    ("config.yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "was not written by a run"),
    ("config.yaml", "model: 3\n", "does not hold the settings of a run"),
    ("config.yaml", "a: [", "cannot be read"),
    ("config.yaml", "\x00", "cannot be read"),
    ("result.json", "{", "cannot be read"),
    ("result.json", "[]", "was not written by a run"),
    ("overrides.yaml", "a: b", "was not written by a run"),
]


@pytest.mark.parametrize(("file", "text", "message"), DIRECTORIES)
def test_a_damaged_run_directory_is_a_one_line_error(
    file: str, text: str, message: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(honest, place / "run")
    (place / "run" / file).write_text(text)
    assert message in refused(capsys, "train", f"resume={place / 'run'}", "trainer.max_epochs=3")
