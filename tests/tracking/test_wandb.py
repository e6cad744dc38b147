"""The W&B logger offline: what a run leaves on disk, and how one run follows another."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from read_wandb import finished, folder, read_finished, read_wandb

from alexnet_exp.tracking.metrics_csv import MetricsCSV
from alexnet_exp.tracking.wandb.logger import WandbTracker, find_run_id, new_run_id

Make = Callable[..., WandbTracker]


def exact(rows: list[dict[str, float]]) -> list[dict[str, str]]:
    """Return the rows in a form in which nan equals nan and nothing is rounded."""
    return [{name: float(value).hex() for name, value in row.items()} for row in rows]


def test_history_equals_metrics_csv_row_by_row(tmp_path: Path, tracker: Make) -> None:
    table, logger = MetricsCSV(tmp_path), tracker(tmp_path)
    draw = np.random.default_rng(0)
    rows = [
        {"train/loss_step": float(v), "lr": 0.1 / 3, "epoch": i // 9}
        for i, v in enumerate(draw.normal(size=40))
    ]
    rows += [{"val/loss": math.nan, "val/top1": 1, "epoch": 4}, {"test/loss": math.inf, "epoch": 5}]
    for step, row in enumerate(rows):
        table.log_metrics(row, step=step)
        logger.log_metrics(row, step=step)
    logger.log_images("conv1", [(np.zeros((4, 4, 3), np.uint8), "a picture is not a row")])
    recorded = finished(logger).metric_rows()
    assert len(recorded) == 42
    assert exact(recorded) == exact(table.rows())


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels: np.ndarray = np.array(image)
    return pixels


class _Line(LightningModule):
    """A single weight: as little training as possible."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss_step", loss, on_step=True)
        return loss

    def test_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("test/loss", self.layer(batch).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_fitting_and_testing_go_into_one_run(tmp_path: Path, tracker: Make) -> None:
    table, logger = MetricsCSV(tmp_path), tracker(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, logger=[table, logger], log_every_n_steps=2, **quiet)
    data = torch.utils.data.DataLoader(torch.linspace(0, 1, 8)[:, None], batch_size=2)
    model = _Line()
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    run = finished(logger)
    assert exact(run.metric_rows()) == exact(table.rows())
    assert [set(row) for row in run.metric_rows()][-2:] == [
        {"train/loss_step", "epoch", "step"},
        {"test/loss", "epoch", "step"},
    ]
    assert run.exit_code == 0


def test_the_whole_config_is_logged_without_secrets(
    tmp_path: Path, tracker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2-of-the-environment")
    config = {
        "model": {"then": ["relu", "lrn"], "lrn": {"alpha": 1e-4}},
        "seed": 42,
        "server": {
            "api_key": "hunter2-of-the-environment",
            "url": "s3://me:hunter2@host",
            "class_token": "c" * 40,
        },
    }
    run = finished(tracker(tmp_path, config=config))
    assert run.config["model"] == config["model"]
    assert run.config["seed"] == 42
    assert run.config["server"] == {
        "api_key": "[redacted]",
        "url": "s3://me:***@host",
        "class_token": "c" * 40,
    }
    assert run.config["_environment"]["python"] == sys.version.split()[0]
    assert run.config["_environment"]["torch"] == importlib.metadata.version("torch")
    assert b"hunter2" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_no_file_holds_the_password_of_a_url_in_the_command_line(
    tmp_path: Path, tracker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["train.py", "data.url=s3://me:hunter22-typed@host/bucket", "seed=7"]
    monkeypatch.setattr(sys, "argv", list(typed))
    finished(tracker(tmp_path))
    assert sys.argv == typed
    content = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"s3://me:***@host/bucket" in content and b"seed=7" in content
    assert b"hunter22-typed" not in content


def test_the_description_of_the_run_is_logged(tmp_path: Path, tracker: Make) -> None:
    about = {
        "project": "p",
        "group": "g",
        "tags": ["a", "b"],
        "notes": "n",
        "name": "first",
        "run_id": "abcd1234",
    }
    logger = tracker(tmp_path, **about)
    assert (logger.run_id, logger.mode, logger.url) == ("abcd1234", "offline", None)
    run = finished(logger)
    assert {key: getattr(run, key) for key in about} == about


def test_epoch_metrics_are_plotted_over_epochs_and_step_metrics_over_steps(
    tmp_path: Path, tracker: Make
) -> None:
    axes = finished(tracker(tmp_path)).x_axes
    assert {axes["train/*"], axes["val/*"], axes["test/*"]} == {"epoch"}
    assert {axes["train/loss_step"], axes["lr"], axes["images_per_second"]} == {"step"}


def test_images_are_logged_with_their_captions(tmp_path: Path, tracker: Make) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((3, 5, 3), 200, np.uint8)).save(picture)
    logger = tracker(tmp_path)
    logger.log_images("samples", [(picture, "from a file"), (np.zeros((3, 5), np.uint8), "from an array")])
    (row,) = finished(logger).history
    assert row["samples"]["captions"] == ["from a file", "from an array"]
    kept = [_pixels(folder(logger) / "files" / name) for name in row["samples"]["filenames"]]
    assert [pixels.shape[:2] for pixels in kept] == [(3, 5), (3, 5)]
    assert (kept[0] == 200).all()


def test_tables_are_logged(tmp_path: Path, tracker: Make) -> None:
    logger = tracker(tmp_path)
    logger.log_table("worst", ["class", "top1"], [["cat", 0.25], ["dog", 0.5]])
    (row,) = finished(logger).history
    kept = json.loads((folder(logger) / "files" / row["worst"]["path"]).read_text())
    assert (kept["columns"], kept["data"]) == (["class", "top1"], [["cat", 0.25], ["dog", 0.5]])


def test_a_confusion_matrix_is_logged_cell_by_cell(tmp_path: Path, tracker: Make) -> None:
    matrix = np.array([[5, 1], [2, 7]])
    logger = tracker(tmp_path)
    logger.log_confusion(matrix, ["cat", "dog"])
    (row,) = finished(logger).history
    (entry,) = [value for value in row.values() if isinstance(value, dict) and "path" in value]
    kept = json.loads((folder(logger) / "files" / entry["path"]).read_text())
    assert kept["data"] == [["cat", "cat", 5], ["cat", "dog", 1], ["dog", "cat", 2], ["dog", "dog", 7]]


def test_a_confusion_matrix_of_a_thousand_classes_is_logged_as_an_image_and_its_worst_mistakes(
    tmp_path: Path, tracker: Make
) -> None:
    matrix: np.ndarray = np.eye(1000, dtype=np.int64) * 50
    matrix[3, 700], matrix[999, 0] = 9, 11
    logger = tracker(tmp_path)
    logger.log_confusion(matrix, [f"class {i}" for i in range(1000)])
    (row,) = finished(logger).history
    pixels = _pixels(folder(logger) / "files" / row["confusion_matrix"]["filenames"][0])
    assert pixels.shape == (1000, 1000)
    assert pixels[3, 700] == round(255 * (1 - 9 / 59))
    kept = json.loads((folder(logger) / "files" / row["confusion_mistakes"]["path"]).read_text())
    assert kept["data"] == [["class 999", "class 0", 11], ["class 3", "class 700", 9]]


@pytest.mark.parametrize("log_model", [True, False])
def test_the_checkpoint_file_is_an_artifact_only_on_request(
    tmp_path: Path, log_model: bool, tracker: Make
) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    logger = tracker(tmp_path, log_model=log_model)
    logger.log_checkpoint(checkpoint, {"epoch": 3, "val/top1": 0.5, "url": "s3://me:pw@host"})
    run = finished(logger)
    told = {
        name.removeprefix("checkpoint/"): v
        for name, v in run.summary.items()
        if name.startswith("checkpoint")
    }
    told = told.get("checkpoint", told)
    assert told == {"file": "best.ckpt", "epoch": 3, "val/top1": 0.5, "url": "s3://me:***@host"}
    assert set(run.artifacts) == ({"best.ckpt"} if log_model else set())


def test_two_trackers_in_one_process_do_not_mix(tmp_path: Path, tracker: Make) -> None:
    first = tracker(tmp_path / "0", run_id="aaaaaaaa")
    first.log_metrics({"lr": 1.0}, step=0)
    second = tracker(tmp_path / "1", run_id="bbbbbbbb")  # the first is not finished
    second.log_metrics({"lr": 2.0}, step=0)
    run = finished(second)
    assert (run.run_id, run.metric_rows()) == ("bbbbbbbb", [{"lr": 2.0, "step": 0}])
    assert read_finished(folder(first)).metric_rows() == [{"lr": 1.0, "step": 0}]
    assert wandb.run is None


def test_a_resumed_run_keeps_its_wandb_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tracker: Make
) -> None:
    first = tracker(tmp_path)
    first.log_metrics({"lr": 1.0}, step=0)
    assert not finished(first, exit_code=1).resumed
    caplog.set_level(logging.INFO)
    second = tracker(tmp_path)
    second.log_metrics({"lr": 2.0}, step=1)
    run = finished(second)
    assert second.run_id == first.run_id == find_run_id(tmp_path)
    assert run.resumed
    assert run.metric_rows() == [{"lr": 2.0, "step": 1}]
    folders = {path.parent for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert len(folders) == 2
    assert all(str(folder) in caplog.text for folder in folders)  # the sync command names both


def test_finish_records_the_exit_code_and_can_be_called_twice(tmp_path: Path, tracker: Make) -> None:
    logger = tracker(tmp_path)
    logger.finalize("failed")
    logger.log_metrics({"lr": 1.0}, step=0)
    run = finished(logger, exit_code=3)
    logger.finish(0)
    logger.log_metrics({"lr": 2.0}, step=1)
    assert run == read_wandb(folder(logger))
    assert (run.exit_code, len(run.history)) == (3, 1)


def test_training_survives_the_loss_of_the_wandb_service(
    tmp_path: Path, tracker: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object) -> None:
        raise ConnectionResetError("Connection lost")  # what a killed wandb-core looks like

    logger = tracker(tmp_path)
    monkeypatch.setattr(wandb.Run, "log", gone)
    for step in range(3):
        logger.log_metrics({"lr": 0.1}, step=step)
    logger.finish(0)
    assert caplog.text.count("W&B stopped recording (Connection lost); metrics.csv continues") == 1


def test_a_failed_finish_is_logged_and_does_not_hide_a_training_error(
    tmp_path: Path, tracker: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ConnectionResetError("Connection lost")

    logger = tracker(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "finish", gone)
        logger.finish(1)
    assert f"wandb sync {logger.run_dir_sync}" in caplog.text


def test_disabled_mode_and_other_ranks_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Make
) -> None:
    disabled = tracker(tmp_path / "disabled", mode="disabled")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    for logger in (disabled, tracker(tmp_path / "rank", mode="offline")):
        logger.log_metrics({"lr": 0.1}, step=0)
        logger.log_images("a", [])
        logger.log_table("b", [], [])
        logger.log_confusion(np.eye(2), ["a", "b"])
        logger.log_checkpoint(tmp_path / "none.ckpt", {})
        logger.finish(0)
        assert (logger.mode, logger.run_dir_sync, logger.url) == ("disabled", None, None)
    assert list(tmp_path.iterdir()) == []


def test_run_ids_do_not_depend_on_the_seed() -> None:
    torch.manual_seed(0)
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch("[a-z0-9]{8}", run_id) for run_id in ids)
