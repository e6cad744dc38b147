"""Lightning's private names: each exists, and its replacement is called or changes what it should."""

from __future__ import annotations

import ast
import inspect
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from alexnet_exp.training import lightning_internals as internals
from alexnet_exp.training.lightning_internals import NoProfiler, leave_signals_to_us

BATCHES = 4  # per epoch


class Batches:
    """A loader whose position a checkpoint can restore, like ours."""

    def __init__(self) -> None:
        self.next, self.restored = 0, [0]

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Tensor]:
        start, self.next = self.next, 0
        for number in range(start, BATCHES):
            yield torch.full((1,), float(number))

    def state_dict(self) -> dict[str, int]:
        return {"batches": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.restored.append(state["batches"])


class Net(LightningModule):
    """A module with one weight; `set_names` records the attributes set on it.

    Args:
        complete: Call `complete_loops` when training starts.
        corrected: Correct checkpoints with `stay_inside_epoch`.
    """

    def __init__(self, complete: bool = True, corrected: bool = True) -> None:
        super().__init__()
        self.weight, self.loader = nn.Parameter(torch.ones(1)), Batches()
        self.complete, self.corrected = complete, corrected
        self.edit: Callable[[dict[str, Any]], Any] = lambda checkpoint: None
        self.set_names: set[tuple[str, str]] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        if "set_names" in vars(self):
            self.set_names.add((name, str(value)))
        super().__setattr__(name, value)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        self.trainer.fit_loop.setup_data()  # like ours: the loader is created before a checkpoint is read
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.corrected:
            internals.stay_inside_epoch(self.trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.edit(checkpoint)

    def on_train_start(self) -> None:
        if self.complete:
            internals.complete_loops(self.trainer)


class Probe(Callback):
    """Records what `look` returns after each batch and epoch, and where validation happens.

    Args:
        look: Called with the trainer.
        save: Where to save a checkpoint.
        at: Save after this many batches, or at the end of the first epoch.
    """

    def __init__(
        self, look: Callable[[Trainer], Any], save: Path | None = None, at: int | str = "epoch"
    ) -> None:
        self.look, self.save, self.at = look, save, at
        self.batches: list[Any] = []
        self.epochs: list[Any] = []
        self.validated_after: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.batches.append(self.look(trainer))
        if self.save and len(self.batches) == self.at:
            trainer.save_checkpoint(self.save)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated_after.append(internals.batches_begun(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(self.look(trainer))
        if self.save and self.at == "epoch" and not self.save.exists():
            trainer.save_checkpoint(self.save)


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return lightning.Trainer(
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **options}, callbacks=list(callbacks), accelerator="cpu",
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def fit(look: Callable[[Trainer], Any], net: Net | None = None, **options: Any) -> Probe:
    """Train for two epochs of four batches, and return the probe."""
    save, at, path = (options.pop(key, None) for key in ("save", "at", "path"))
    probe, net = Probe(look, save, at or "epoch"), net or Net()
    trainer = make_trainer(probe, **options)
    trainer.fit(net, net.loader, [torch.ones(1)], ckpt_path=path)
    return probe


def calls(function: Any) -> list[str]:
    """Return the names of all calls in a function's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


# ---------------------------------------------------------------------------------------- before a run

# What is replaced: its path from the trainer, its name, and the Lightning function that calls it.
REPLACED = [
    ("_signal_connector", "register_signal_handlers", Trainer._run),
    ("fit_loop.epoch_loop", "_broadcast_sigterm_tensor", _TrainingEpochLoop.advance),
]


def found(trainer: Trainer, way: str) -> Any:
    owner: Any = trainer
    for name in way.split("."):
        owner = getattr(owner, name)
    return owner


@pytest.mark.parametrize(("way", "name", "caller"), REPLACED)
def test_lightning_still_calls_what_is_replaced(way: str, name: str, caller: Any) -> None:
    trainer = make_trainer()
    owner = found(trainer, way)
    assert callable(getattr(type(owner), name))
    assert any(call.startswith("self.") and call.endswith(f".{name}") for call in calls(caller))
    assert not inspect.signature(getattr(owner, name)).parameters
    leave_signals_to_us(trainer)
    assert name in vars(owner)  # shadows the class's method
    assert getattr(owner, name)() is None


def test_nothing_else_in_lightning_registers_handlers_or_broadcasts_sigterm() -> None:
    source = inspect.getsource(_TrainingEpochLoop)
    assert source.count("torch.distributed.broadcast(") == 1
    assert "torch.distributed.broadcast(" in inspect.getsource(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_devices_are_found_without_a_trainer() -> None:
    assert internals.find_devices("cpu", 2, 1) == [torch.device("cpu")] * 2
    with pytest.raises(MisconfigurationException):
        internals.find_devices("cpu", 0, 1)


def test_a_limit_of_less_than_one_batch_is_refused_as_lightning_does_later() -> None:
    internals.check_limit(RunningStage.TRAINING, 10, 0.1)
    with pytest.raises(MisconfigurationException, match="limit_train_batches"):
        internals.check_limit(RunningStage.TRAINING, 10, 0.05)
    assert "_parse_num_batches" in calls(_FitLoop.setup_data)


def test_an_idle_trainer_can_be_put_in_training_mode() -> None:
    trainer = make_trainer()
    assert not trainer.training
    internals.augment_as_in_training(trainer)
    assert trainer.training


def test_training_asks_the_profiler_for_every_action() -> None:
    actions: list[str] = []

    class Counting(NoProfiler):
        def profile(self, action_name: str) -> Any:
            actions.append(action_name)
            return super().profile(action_name)

    fit(lambda trainer: None, profiler=Counting())
    assert len(actions) > 8 * BATCHES
    assert type(NoProfiler().profile("step")) is nullcontext


def test_lightning_records_the_name_of_every_hook_on_the_module() -> None:
    net = Net()
    fit(lambda trainer: None, net)
    assert {(internals.HOOK_NAME, "training_step"), (internals.HOOK_NAME, "validation_step")} <= net.set_names


# ---------------------------------------------------------------------------------------- progress of a run


@pytest.mark.parametrize(
    ("name", "batches", "epochs"),
    [
        ("epochs_begun", [1, 1, 1, 1, 2, 2, 2, 2], [1, 2]),
        ("epochs_ended", [0, 0, 0, 0, 1, 1, 1, 1], [1, 2]),
        ("batches_begun", [1, 2, 3, 4, 1, 2, 3, 4], [4, 4]),
        ("batch_of_run", [0, 1, 2, 3, 4, 5, 6, 7], [3, 7]),
        ("inside_epoch", [True, True, True, False] * 2, [False, False]),
        ("accumulates", [True, True, False, False] * 2, [False, False]),  # the last batch always steps
        ("may_stop_early", [False] * 4 + [True] * 4, [True, True]),
    ],
)
def test_progress_is_read_from_lightning(name: str, batches: list[Any], epochs: list[Any]) -> None:
    noted = fit(getattr(internals, name), accumulate_grad_batches=3, min_epochs=1)
    assert (noted.batches, noted.epochs) == (batches, epochs)


# ---------------------------------------------------------------------------------------- validation


def test_validations_are_known_in_advance_and_the_final_one_is_not_scheduled() -> None:
    def look(trainer: Trainer) -> tuple[bool, bool]:
        trainer.should_stop = trainer.global_step == 7
        return internals.validates_now(trainer), internals.validates_by_schedule(trainer)

    noted = fit(look, val_check_interval=2)
    assert noted.batches == [(False, False), (True, True)] * 3 + [(True, False)]
    assert noted.validated_after == [2, 4, 2, 3]


def test_lightning_asks_our_function_whether_to_validate() -> None:
    probe, net = Probe(lambda trainer: internals.validates_now(trainer)), Net()
    trainer = make_trainer(probe, max_epochs=1)
    internals.also_validate(trainer, lambda: trainer.global_step == 3)
    trainer.fit(net, net.loader, [torch.ones(1)])
    assert probe.validated_after == [3, 4]
    assert probe.batches == [False, False, True, True]


# ---------------------------------------------------------------------------------------- resuming

STEPS = {"max_epochs": -1, "max_steps": 2 * BATCHES}  # a run counted in steps


def counters(trainer: Trainer) -> str:
    return f"{trainer.current_epoch} {trainer.fit_loop.epoch_progress}"


def test_a_run_counted_in_steps_does_not_end_a_finished_epoch_again(tmp_path: Path) -> None:
    whole = fit(counters, save=tmp_path / "a.ckpt", **STEPS)
    resumed = fit(counters, path=tmp_path / "a.ckpt", **STEPS)
    assert (resumed.batches, resumed.epochs) == (whole.batches[BATCHES:], whole.epochs[1:])
    by_lightning = fit(counters, Net(complete=False), path=tmp_path / "a.ckpt", **STEPS)
    assert len(by_lightning.epochs) == 2


def test_the_epoch_number_follows_the_completed_epochs(tmp_path: Path) -> None:
    def lag(checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] -= 1

    fit(counters, save=tmp_path / "a.ckpt", at=BATCHES + 2, **STEPS)
    net = Net()
    net.edit = lag
    resumed = fit(lambda trainer: trainer.current_epoch, net, path=tmp_path / "a.ckpt", **STEPS)
    assert resumed.batches == [1, 1]


@pytest.mark.parametrize(("complete", "restored"), [(True, [0, 3]), (False, [0])])
def test_a_loader_created_before_the_checkpoint_was_read_is_repositioned(
    tmp_path: Path, complete: bool, restored: list[int]
) -> None:
    fit(lambda trainer: None, save=tmp_path / "a.ckpt", at=3)
    net = Net(complete)
    fit(lambda trainer: None, net, path=tmp_path / "a.ckpt")
    assert net.loader.restored == restored


@pytest.mark.parametrize(("corrected", "epochs"), [(True, 0), (False, 1)])
def test_a_run_that_ends_inside_an_epoch_has_not_completed_it(
    tmp_path: Path, corrected: bool, epochs: int
) -> None:
    fit(lambda trainer: None, Net(corrected=corrected), save=tmp_path / "a.ckpt", max_steps=3)
    assert internals.epochs_of(torch.load(tmp_path / "a.ckpt", weights_only=True)) == epochs
    resumed = fit(internals.batches_begun, path=tmp_path / "a.ckpt", max_epochs=1)
    assert resumed.batches == ([4] if corrected else [])  # the remaining batch of the epoch


@pytest.mark.parametrize("interval", [2, 4])
def test_a_batch_before_a_validation_at_the_end_is_not_counted_twice(tmp_path: Path, interval: int) -> None:
    def stepped(trainer: Trainer) -> int:
        return trainer.fit_loop.epoch_loop._batches_that_stepped

    fit(stepped, save=tmp_path / "a.ckpt", max_steps=2, val_check_interval=interval)
    resumed = fit(stepped, path=tmp_path / "a.ckpt", val_check_interval=interval)
    assert resumed.batches == fit(stepped, val_check_interval=interval).batches[2:]


def test_a_rewound_epoch_starts_with_its_first_batch(tmp_path: Path) -> None:
    fit(lambda trainer: None, save=tmp_path / "a.ckpt", at=2)
    net = Net()
    net.edit = internals.rewind_epoch
    resumed = fit(internals.batches_begun, net, path=tmp_path / "a.ckpt", max_epochs=1)
    assert resumed.batches == [1, 2, 3, 4]
    assert net.loader.restored == [0, 0]
    fit(lambda trainer: None, save=tmp_path / "b.ckpt")
    assert not internals.rewind_epoch(
        torch.load(tmp_path / "b.ckpt", weights_only=True)
    )  # saved at the end of an epoch


def test_restore_errors_are_distinguished_from_setting_errors(tmp_path: Path) -> None:
    def refuse(checkpoint: dict[str, Any]) -> None:
        raise ValueError("no")

    fit(lambda trainer: None, save=tmp_path / "a.ckpt", at=2)
    net = Net()
    net.edit = refuse
    with pytest.raises(ValueError, match="no") as error:
        fit(lambda trainer: None, net, path=tmp_path / "a.ckpt")
    frames = traceback.extract_tb(error.value.__traceback__)
    assert internals.is_restoring(frames) and not internals.is_of_a_setting(frames)
    for options in ({"val_check_interval": 99}, {"limit_train_batches": 0.01}):
        with pytest.raises((ValueError, MisconfigurationException)) as error:
            fit(lambda trainer: None, **options)
        frames = traceback.extract_tb(error.value.__traceback__)
        assert internals.is_of_a_setting(frames) and not internals.is_restoring(frames)


# ---------------------------------------------------------------------------------------- averaged weights


def test_the_average_is_created_on_the_given_device() -> None:
    callback, net = WeightAveraging(), Net()
    assert internals.average_of(callback) is None
    internals.average_on(callback, torch.device("meta"))
    callback.setup(SimpleNamespace(), net, "fit")
    average: Any = internals.average_of(callback)
    assert isinstance(average.module, Net) and average.module.weight.device.type == "meta"
    callback._average_model = average = SimpleNamespace(module=Net())
    average.module.weight.data += 1
    callback.on_validation_epoch_start(SimpleNamespace(), net)
    assert net.weight.item() == 2.0  # the average is validated
