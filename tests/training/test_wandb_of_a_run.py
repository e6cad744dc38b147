"""W&B has the same metrics and settings as the run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from small_runs import resume, run, train_until

from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import read_metrics
from tests.tracking.read_wandb import read_finished

OFFLINE = ["logger=wandb", "logger.wandb.mode=offline", "trainer.max_epochs=2", "trainer.log_every_n_steps=3"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    wandb.teardown()
    yield
    wandb.teardown()


def test_wandb_has_the_metrics_and_settings_of_the_run(tmp_path: Path) -> None:
    result = run(tmp_path / "run", *OFFLINE)
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    kept = read_finished(folder)
    assert kept.metric_rows() == read_metrics(tmp_path / "run" / "metrics.csv")
    config = RunDirectory(tmp_path / "run").config()
    told = {k: v for k, v in kept.config.items() if not k.startswith("_")}
    assert told.pop("names")["model"] == "alexnet_cifar"
    assert told == config
    assert kept.summary["splits"]["train"]["images"] == result["splits"]["train"]["images"] == 200
    assert (kept.run_id, kept.exit_code) == (result["wandb"]["id"], 0)


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path: Path) -> None:
    train_until(tmp_path / "run", 10, *OFFLINE, "test=false")
    resumed = resume(tmp_path / "run")
    assert resumed is not None
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    parts = [read_finished(folder) for folder in folders]
    assert [part.exit_code for part in parts] == [1, 0]
    assert {part.run_id for part in parts} == {resumed["wandb"]["id"]}
    # All files of the id together, with the last record of each step, equal metrics.csv.
    latest = {(row["step"], *sorted(row)): row for part in parts for row in part.metric_rows()}
    held = read_metrics(tmp_path / "run" / "metrics.csv")
    wanted = {(row["step"], *sorted(row)): row for row in held}
    assert len(wanted) == len(held)
    for key, row in wanted.items():
        assert {k: v for k, v in latest[key].items() if k != "images_per_second"} == {
            k: v for k, v in row.items() if k != "images_per_second"
        }


def test_records_lost_in_a_kill_are_logged_to_wandb_again(tmp_path: Path) -> None:
    train_until(tmp_path / "run", 10, *OFFLINE, "test=false", "callbacks.checkpoint.every_n_steps=4")
    (before,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    read_finished(before)
    (before / "ended").unlink()  # as if it had been killed
    resume(tmp_path / "run")
    (after,) = (f for f in (tmp_path / "run" / "wandb").glob("offline-run-*") if f != before)
    held = read_metrics(tmp_path / "run" / "metrics.csv")
    assert read_finished(after).metric_rows() == held and held[0]["step"] == 3
