"""Lightning's errors about trainer settings become one sentence before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from alexnet_exp.config.groups import Settings
from alexnet_exp.config.schema import read
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.fit import _explain_trainer_errors
from alexnet_exp.training.launch.ranks import count_devices
from tests.training.small_runs import run, settings

TWO_BATCHES = ["data.batch_size=100", "data.test_subset=200", "data.val_size=150"]


@pytest.mark.parametrize(
    ("typed", "more"),
    [
        ("trainer.limit_train_batches=0.1", []),
        ("trainer.limit_val_batches=0.1", []),
        ("trainer.limit_val_batches=0.1", ["trainer.check_val_every_n_epoch=2"]),
        ("trainer.limit_test_batches=0.1", []),
        ("trainer.overfit_batches=0.1", []),
        ("trainer.val_check_interval=3", []),
    ],
)
def test_fraction_of_less_than_one_batch_is_refused_before_the_first_step(
    tmp_path: Path, typed: str, more: list[str]
) -> None:
    with pytest.raises(UserError, match=rf"^{typed.partition('=')[0]}: ") as caught:
        run(tmp_path, *TWO_BATCHES, typed, *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_fraction_of_an_unused_split_is_not_checked(tmp_path: Path) -> None:
    result = run(tmp_path, *TWO_BATCHES, "trainer.limit_test_batches=0.1", "test=false")
    assert result["status"] == "finished"


def raised_in_lightning(error: Exception) -> Callable[[], None]:
    """Return a function that raises an error as if inside a Lightning module."""
    scope = {"__name__": data_connector.__name__, "error": error}
    exec("def fail(): raise error", scope)
    return scope["fail"]  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [MisconfigurationException, ValueError, TypeError])
def test_lightning_error_about_a_setting_becomes_one_sentence(kind: type[Exception]) -> None:
    fail = raised_in_lightning(kind("`Trainer(max_time=1)` is\n not what it takes"))
    sentence = r"^trainer\.max_time: `Trainer\(max_time=1\)` is not"
    settings = {"overfit_batches": 0.0, "max_time": 1}
    with pytest.raises(UserError, match=sentence), _explain_trainer_errors(settings):
        fail()


@pytest.mark.parametrize("words", ["`configure_optimizers` returned nothing", "of this strategy"])
def test_internal_error_keeps_its_traceback(words: str) -> None:
    settings = {"overfit_batches": 0.0, "max_time": 1, "strategy": "auto"}
    with pytest.raises(MisconfigurationException), _explain_trainer_errors(settings):
        raised_in_lightning(MisconfigurationException(words))()
    with pytest.raises(ValueError, match="max_time"), _explain_trainer_errors(settings):
        raise ValueError("`max_time` of another library")


def test_validation_interval_of_less_than_one_batch_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, *TWO_BATCHES, "trainer.val_check_interval=0.01", "trainer.max_steps=1", "test=false")
    assert "trainer.val_check_interval=0.01 is less than one" in capsys.readouterr().err


def test_too_many_processes_for_the_cores_are_refused() -> None:
    trainer = read(Settings, settings("trainer.devices=2")[0]).trainer
    with pytest.raises(UserError, match=r"trainer.devices=99999 on CPU would start 99999 processes"):
        count_devices(replace(trainer, devices=99999))
    assert count_devices(trainer) == 2
