"""Training that starts from something: ckpt= goes on in a new directory, weights= takes the network alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from small_runs import checkpoint, resume, rows, run, same

from alexnet_exp.errors import UserError
from alexnet_exp.tracking.run_directory import RunDirectory

STAY = [
    "optimizer.lr=1e-30",
    "scheduler=none",
    "optimizer.weight_decay=0",
    "test=false",
]  # weights stay as they start


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of a small run on digits."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    run(run_dir, "scheduler=none", "test=false")
    return run_dir


def network(run_dir: Path) -> dict[str, torch.Tensor]:
    return {k.removeprefix("model."): v for k, v in checkpoint(run_dir)["state_dict"].items()}


def plain_file(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(run_dir: Path, *overrides: str) -> str:
    """Return what the user reads when a run is refused, after a look at what it leaves."""
    with pytest.raises(UserError) as caught:
        run(run_dir, *overrides)
    if run_dir.exists():  # a path that is not there is refused before anything is made
        result = RunDirectory(run_dir).result()
        assert result is not None and result["status"] == "failed" and result["error"] == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------- what a checkpoint holds


def test_a_checkpoint_has_everything_needed_to_use_it(first: Path) -> None:
    held = checkpoint(first)  # read with weights_only=True
    assert held["config"]["model"]["features"]["conv1"]["out_channels"] == 8
    assert held["config"] == RunDirectory(first).config()
    assert held["classes"] == [str(i) for i in range(10)]
    assert held["preprocessing"]["image_size"] == 32 and len(held["preprocessing"]["mean"]) == 3
    assert (held["epoch"], held["global_step"]) == (0, 7)


# -------------------------------------------------------------------------------------------- ckpt=


@pytest.mark.parametrize("what", ["", "checkpoints/last.ckpt"], ids=["run directory", "file"])
def test_ckpt_continues_in_a_new_directory(first: Path, tmp_path: Path, what: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    settings = ["scheduler=none", "test=false", "trainer.max_epochs=2"]
    run(tmp_path / "whole", *settings)
    result = run(tmp_path / "new", *settings, f"ckpt='{first / what}'")
    assert (result["epochs"], result["steps"]) == (2, 14)
    a, b = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "new")
    assert all(same(a[key], b[key]) for key in ("state_dict", "optimizer_states", "lr_schedulers"))
    assert rows(tmp_path / "new") == [row for row in rows(tmp_path / "whole") if row["step"] > 7]
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert checkpoint(tmp_path / "new", "best")["global_step"] == 14  # the only one this directory knows


ON = (
    "test=false",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "callbacks.lr_monitor.enabled=true",
)


def rates(run_dir: Path) -> list[float]:
    """Return what each step leaves behind: the rate of the next."""
    return [row["lr"] for row in rows(run_dir) if "lr" in row]


def test_ckpt_takes_rates_momentum_and_decay_from_the_settings(first: Path, tmp_path: Path) -> None:
    own = ("optimizer.lr=0.002", "optimizer.momentum=0.5", "optimizer.weight_decay=0.25")
    run(tmp_path / "new", *ON, *own, "scheduler=none", f"ckpt={first}")
    [group] = checkpoint(tmp_path / "new")["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.002, 0.5, 0.25)
    assert set(rates(tmp_path / "new")) == {0.002}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (["scheduler=none"], [0.5] * 7),
        (["scheduler=step", "scheduler.every_epochs=1", "scheduler.gamma=0.1"], [*[0.05] * 6, 0.005]),
        (["scheduler=multistep", "scheduler.epochs=[1]", "scheduler.gamma=0.2"], [0.1] * 7),
        (["scheduler=poly"], [0.5 * (14 - k) / 14 for k in range(8, 15)]),
        (["scheduler=plateau"], [0.5] * 7),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_a_new_kind_of_schedule_starts_at_the_step_of_the_checkpoint(
    first: Path, tmp_path: Path, schedule: list[str], expected: list[float]
) -> None:
    run(tmp_path / "new", *ON, *schedule, "optimizer.lr=0.5", f"ckpt={first}")
    assert rates(tmp_path / "new") == pytest.approx(expected)


@pytest.mark.parametrize("name", ["cosine", "onecycle", "poly"])
def test_more_epochs_stretch_the_schedule(tmp_path: Path, name: str) -> None:
    schedule = [f"scheduler={name}", "optimizer.lr=0.1", "test=false", "trainer.log_every_n_steps=1"]
    if name == "cosine":
        schedule.append("scheduler.warmup_epochs=0")  # auto is a share of the length that the run began with
    run(tmp_path / "whole", *schedule, "trainer.max_epochs=2")
    run(tmp_path / "short", *schedule)
    resume(tmp_path / "short", "trainer.max_epochs=2")
    assert rates(tmp_path / "short")[7:] == rates(tmp_path / "whole")[7:]


def test_plateau_keeps_its_reduction_relative_to_the_rate_of_the_settings(tmp_path: Path) -> None:
    falling = ["scheduler=plateau", "scheduler.patience=0", "scheduler.mode=max", "scheduler.factor=0.5"]
    settings = [
        *ON,
        *falling,
        "scheduler.monitor=val/loss",
    ]  # which falls: every epoch but the first is worse
    run(tmp_path / "old", *settings, "trainer.max_epochs=2", "optimizer.lr=1e-3")
    assert rates(tmp_path / "old")[-1] == 1e-3
    run(tmp_path / "new", *settings, "trainer.max_epochs=3", "optimizer.lr=4e-3", f"ckpt={tmp_path / 'old'}")
    assert rates(tmp_path / "new") == pytest.approx([2e-3] * 7)


class SlowsDown(Callback):
    """Changes the rate by itself, as a user's callback may."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= 0.5


def test_a_rate_that_a_callback_has_changed_is_kept_in_place(tmp_path: Path) -> None:
    callback = {"slows": {"_target_": f"{__name__}.SlowsDown"}}
    run(tmp_path / "run", "test=false", "scheduler=none", "optimizer.lr=0.4", callbacks=callback)
    resume(tmp_path / "run", "trainer.max_epochs=2")  # without the callback
    [group] = checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"]
    assert group["lr"] == 0.2


class SlowsDownOnce(Callback):
    """Halves the rate after the third step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.optimizers[0].param_groups[0]["lr"] *= 0.5


def test_a_rate_that_a_callback_has_changed_is_kept_under_a_schedule_by_epochs(tmp_path: Path) -> None:
    settings = [*ON, "scheduler=step", "scheduler.every_epochs=1", "scheduler.gamma=0.1", "optimizer.lr=0.4",
                "callbacks.checkpoint.every_n_steps=4"]  # fmt: skip
    callbacks = {"slows": {"_target_": f"{__name__}.SlowsDownOnce"},
                 "stop": {"_target_": "tests.training.small_runs.StopAfter", "steps": 5}}  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *settings, callbacks=callbacks)
    run(tmp_path / "new", *settings, f"ckpt={tmp_path / 'run'}")
    resume(tmp_path / "run")  # without the callbacks
    before = [0.4, 0.4, 0.4, 0.2]  # as it is logged: ahead of the callback
    after = [0.2, 0.2, 0.04, *[0.04] * 6, 0.004]
    assert rates(tmp_path / "new") == pytest.approx(after)
    assert rates(tmp_path / "run") == pytest.approx([*before, *after])


def test_a_frozen_layer_may_be_unfrozen_under_plateau(tmp_path: Path) -> None:
    settings = [*ON, "scheduler=plateau", "optimizer.lr=0.25"]
    frozen = ["+optimizer.layers.conv1.lr_factor=0.0", "trainer.max_epochs=1"]
    run(tmp_path / "old", *settings, *frozen)
    run(tmp_path / "new", *settings, "+optimizer.layers.conv1.lr_factor=0.5", f"ckpt={tmp_path / 'old'}")
    groups = checkpoint(tmp_path / "new")["optimizer_states"][0]["param_groups"]
    assert {group["name"]: group["lr"] for group in groups if "weights" in group["name"]} == {
        "weights of conv1": 0.125, "weights": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("optimizer=adam", "SGD there, Adam here"),
        ("optimizer.bias_lr_factor=2", "its parameter groups do not match"),
    ],
)
def test_ckpt_of_another_optimizer_says_what_to_do(
    first: Path, tmp_path: Path, other: str, said: str
) -> None:
    message = refusal(tmp_path / "new", *ON, other, f"ckpt={first}")
    assert said in message and f"set weights={first / 'checkpoints' / 'last.ckpt'}" in message


def test_ckpt_of_another_network_names_the_parameter(first: Path, tmp_path: Path) -> None:
    said = refusal(tmp_path, f"ckpt={first}", "model.features.conv2.out_channels=16")
    assert "model.features.conv2.weight is (8, 8, 5, 5) there and (16, 8, 5, 5) here" in said


def test_ckpt_refuses_foreign_files(first: Path, tmp_path: Path) -> None:
    weights = plain_file(tmp_path / "weights.pt", network(first))
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((first / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    said = {name: refusal(tmp_path / f"run {name}", f"ckpt='{tmp_path / name}'")
            for name in ("nowhere.ckpt", "weights.pt", "damaged.ckpt", "empty")}  # fmt: skip
    assert "there is no such file" in said["nowhere.ckpt"]
    assert "use weights= for a plain state dict" in said[weights.name]
    assert "damaged" in said["damaged.ckpt"]
    assert "has no checkpoints/last.ckpt" in said["empty"]


class Attack:
    """What a hostile file makes the reader call."""

    def __reduce__(self) -> Any:
        return open, ("the file that must not be made", "w")


@pytest.mark.parametrize("key", ["ckpt", "weights"])
def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = plain_file(tmp_path / "hostile.ckpt", {"state_dict": Attack(), "config": {}})
    assert "cannot be read" in refusal(tmp_path / "run", f"{key}={file}")
    assert not (tmp_path / "the file that must not be made").exists()


# -------------------------------------------------------------------------------------------- weights=


def test_weights_of_a_run_start_a_new_training(first: Path, tmp_path: Path) -> None:
    result = run(tmp_path, *STAY, f"weights={first}")
    assert same(network(tmp_path), network(first))
    assert (result["epochs"], result["steps"]) == (1, 7)


def test_weights_can_be_a_plain_state_dict(first: Path, tmp_path: Path) -> None:
    file = plain_file(tmp_path / "weights.pt", network(first))
    run(tmp_path / "run", *STAY, f"weights={file}")
    assert same(network(tmp_path / "run"), network(first))
    assert "without class names" in (tmp_path / "run" / "train.log").read_text()


def test_a_plain_state_dict_of_another_number_of_classes_gets_a_new_last_layer(
    first: Path, tmp_path: Path
) -> None:
    file = plain_file(tmp_path / "weights.pt", network(first))
    run(tmp_path / "run", *STAY, f"weights={file}", "model.num_classes=12")
    said = (tmp_path / "run" / "train.log").read_text()
    assert "classifier.fc8 is reinitialised: it has 12 classes, the weights 10" in said


def test_weights_for_more_classes_keep_the_rows_of_those_they_know_and_say_so(
    first: Path, tmp_path: Path
) -> None:
    run(tmp_path, *STAY, f"weights={first}", "model.num_classes=12")
    old, new = network(first), network(tmp_path)
    assert all(same(old[name], new[name][: len(old[name])]) for name in old)
    assert new["classifier.fc8.weight"].shape[0] == 12
    said = (tmp_path / "train.log").read_text()
    assert "9; new unused 10, unused 11)" in said


def test_weights_of_another_network_name_the_parameter(first: Path, tmp_path: Path) -> None:
    said = refusal(tmp_path / "a", f"weights={first}", "model.features.conv1.kernel_size=9")
    assert "features.conv1.weight is (8, 3, 11, 11) there and (8, 3, 9, 9) here" in said
    some = {name: value for name, value in network(first).items() if name != "features.conv3.bias"}
    said = refusal(tmp_path / "b", f"weights={plain_file(tmp_path / 'some.pt', some)}")
    assert "it has no features.conv3.bias" in said
    more = {**network(first), "features.conv6.bias": torch.zeros(3)}
    said = refusal(tmp_path / "c", f"weights={plain_file(tmp_path / 'more.pt', more)}")
    assert "features.conv6.bias is not in this network" in said


def test_weights_refuses_files_without_weights(tmp_path: Path) -> None:
    plain_file(tmp_path / "text.pt", {"weight": "none"})
    (tmp_path / "note.txt").write_text("no weights here")
    assert "holds no weights" in refusal(tmp_path / "run1", f"weights={tmp_path / 'text.pt'}")
    assert "cannot be read" in refusal(tmp_path / "run2", f"weights={tmp_path / 'note.txt'}")
    assert "there is no such file" in refusal(tmp_path / "run3", f"weights={tmp_path / 'nowhere.pt'}")


def test_a_resumed_run_does_not_load_its_initial_weights_again(first: Path, tmp_path: Path) -> None:
    settings = ["scheduler=none", "test=false", f"weights={first}"]
    run(tmp_path / "whole", *settings, "trainer.max_epochs=2")
    run(tmp_path / "parts", *settings)
    resume(tmp_path / "parts", "trainer.max_epochs=2")
    assert same(network(tmp_path / "parts"), network(tmp_path / "whole"))
