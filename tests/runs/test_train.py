"""One training run, from settings to report: its outputs, and how it ends."""

from __future__ import annotations

import datetime
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp import cli
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.command import train
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import read_metrics
from tests.training.small_runs import SMALL, checkpoint, rows, run, settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with everything on."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run(run_dir, "trainer.max_epochs=2", "trainer.log_every_n_steps=5")
    return run_dir


def result_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


# -------------------------------------------------------------------------------------------- what a run writes


def test_run_directory_contains_every_file(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    figures = {name for name in files if name.startswith("figures/")}
    assert files - figures == {
        "config.yaml", "overrides.yaml", "train.log", "metrics.csv", "result.json", "report.html",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/last-1.ckpt",
    }  # fmt: skip
    assert figures == {f"figures/{name}.png" for name in
                       ("curves", "confusion_matrix", "conv1_filters", "mistakes", "samples")}  # fmt: skip


def test_result_json_is_written_last(finished: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert max(times, key=lambda path: times[path]) == finished / "result.json"


def test_result_json_describes_the_run(finished: Path) -> None:
    result, config = result_of(finished), settings()[0]
    assert (result["status"], result["error"]) == ("finished", None)
    assert (result["epochs"], result["steps"], result["seed"], result["devices"]) == (
        2,
        14,
        config["seed"],
        1,
    )
    assert result["command"] == "python train.py"
    assert result["parameters"] == sum(v.numel() for v in checkpoint(finished)["state_dict"].values())
    assert result["multiply_adds"] > 100_000
    assert result["images"] == {"train": 200, "val": 50, "test": 60}
    assert result["images_per_second"] > 0 and 0 < result["training_seconds"] < result["seconds"] < 300
    assert {"python", "torch", "lightning", "alexnet_exp"} <= result["versions"].keys()
    assert {"platform", "processor", "cores"} <= result["hardware"].keys()
    assert result["deterministic"] is True
    assert result["classes"] == [str(i) for i in range(10)]


def test_result_json_has_the_final_metrics_of_every_split(finished: Path) -> None:
    latest: dict[str, float] = {}
    for row in read_metrics(finished / "metrics.csv"):
        latest |= row
    expected = {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "top1", "top5")}
    expected |= {f"{split}/{name}" for split in ("val", "test") for name in ("balanced_accuracy", "macro_f1")}
    assert result_of(finished)["metrics"] == {name: latest[name] for name in expected}


def test_metrics_csv_has_every_metric_in_its_column(finished: Path) -> None:
    held = read_metrics(finished / "metrics.csv")
    by_step = [row["step"] for row in held if "lr" in row]
    assert by_step == [5, 10]
    assert all({"train/loss_step", "images_per_second"} <= row.keys() for row in held if "lr" in row)
    for split, epochs in (("train", [1, 2]), ("val", [1, 2]), ("test", [2])):
        assert [row["epoch"] for row in held if f"{split}/top1" in row] == epochs
    assert all(0 <= value <= 1 for row in held for name, value in row.items() if "/top" in name)


def test_best_ckpt_is_the_best_by_the_monitor(tmp_path: Path) -> None:
    # The first epoch learns; after that the learning rate is absurd.
    result = run(tmp_path, "trainer.max_epochs=3", "optimizer=adam", "optimizer.lr=0.01", "scheduler=multistep",
                 "scheduler.epochs=[1]", "scheduler.gamma=1000", "trainer.gradient_clip_val=1",
                 "callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min")  # fmt: skip
    losses = [row["val/loss"] for row in rows(tmp_path) if "val/loss" in row]
    assert losses[0] == min(losses) < losses[-1]
    assert result["best"] == {"metric": "val/loss", "value": losses[0], "epoch": 1, "step": 7}
    assert checkpoint(tmp_path, "best")["global_step"] == 7
    assert checkpoint(tmp_path, "last")["global_step"] == 21
    assert result["metrics"]["test/loss"] < 3 < losses[-1]  # the best was tested, not the last


def test_config_yaml_composes_to_the_settings_of_the_run(finished: Path) -> None:
    directory = RunDirectory(finished)
    config, typed = settings("trainer.max_epochs=2", "trainer.log_every_n_steps=5")
    kept = directory.config()
    assert (kept["compile"], kept["channels_last"], kept["trainer"]["precision"]) == (False, False, "32-true")
    settled = {
        "compile": False,
        "channels_last": False,
        "paths": kept["paths"],
    }  # each test has its own cache folder
    trainer = {**config["trainer"], "precision": "32-true"}
    assert kept["init"] == "lsuv" and kept["scheduler"]["warmup_epochs"] == 0.1
    of_network = {key: kept[key] for key in ("init", "model", "optimizer", "scheduler")}
    assert kept == {**config, **settled, **of_network, "trainer": trainer}
    assert directory.overrides() == typed


def test_few_steps_have_no_throughput(tmp_path: Path) -> None:
    assert "images_per_second" not in run(tmp_path / "a", "trainer.limit_train_batches=3", "test=false")
    assert "images_per_second" in run(tmp_path / "b", "trainer.limit_train_batches=4", "test=false")


# -------------------------------------------------------------------------------------------- splits


def test_test_false_skips_the_test(tmp_path: Path) -> None:
    result = run(tmp_path, "test=false")
    assert not [name for name in result["metrics"] if name.startswith("test/")]
    assert not [name for row in rows(tmp_path) for name in row if name.startswith("test/")]


def test_without_validation_best_ckpt_is_the_last(tmp_path: Path) -> None:
    result = run(tmp_path, "data.val_size=0", "trainer.max_epochs=2")
    assert checkpoint(tmp_path, "best")["global_step"] == 14
    assert "best" not in result and "test/top1" in result["metrics"]
    assert not [name for name in result["metrics"] if name.startswith("val/")]


def test_without_a_test_split_the_test_is_skipped_with_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for label, colour in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), colour).save(tmp_path / "images" / split / label / f"{i}.png")
    typed = [o for o in SMALL if not o.startswith("data")] + ["data=folder", f"data.root={tmp_path / 'images'}",
             "data.num_workers=0", "data.batch_size=4"]  # fmt: skip
    result = train(plain(compose("train", typed)), typed, tmp_path / "run", "python train.py")
    said = "There are no test images: only validation metrics are reported. For a test, add the folder "
    assert capfd.readouterr().err.count(f"{said}{tmp_path / 'images' / 'test'}.") == 1
    assert result["status"] == "finished" and result["classes"] == ["cat", "dog"]
    assert not [name for name in result["metrics"] if name.startswith("test/")]
    assert {"train/top1", "val/top1"} <= result["metrics"].keys()
    assert "val/top5" not in result["metrics"]
    assert (tmp_path / "run" / "figures" / "confusion_matrix.png").exists()


# -------------------------------------------------------------------------------------------- one run per directory


def test_directory_of_another_run_is_refused(finished: Path) -> None:
    before = (finished / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match=r"holds a run already; continue it with resume="):
        run(finished)
    assert (finished / "metrics.csv").read_bytes() == before
    assert result_of(finished)["status"] == "finished"


def test_live_run_locks_its_directory(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path / "run").lock(),
        pytest.raises(UserError, match="is in use by a run that is still running"),
    ):
        run(tmp_path / "run")
    assert run(tmp_path / "run", "test=false")["status"] == "finished"


# -------------------------------------------------------------------------------------------- trackers


def test_a_missing_tracker_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install -e '.*\[tensorboard\]'"):
        run(tmp_path, "logger=tensorboard")
    assert result_of(tmp_path)["status"] == "failed"


# -------------------------------------------------------------------------------------------- how a run ends


def test_ctrl_c_writes_an_interrupted_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    code = cli.main(["train", *SMALL, f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_epochs=3",
                     "+callbacks.stop={_target_:tests.training.small_runs.StopAfter,steps:9}"])  # fmt: skip
    assert code == 130
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"
    result = result_of(tmp_path / "run")
    assert (result["status"], result["epochs"], result["steps"]) == ("interrupted", 1, 9)
    assert (tmp_path / "run" / "report.html").exists()
    assert checkpoint(tmp_path / "run")["global_step"] == 7


def test_run_that_fails_before_training_records_the_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"invalid model\.num_classes=3: expected at least"):
        run(tmp_path, "model.num_classes=3")
    result = result_of(tmp_path)
    assert result["status"] == "failed" and "expected at least 10, the classes of the data" in result["error"]
    assert result["metrics"] == {} and math.isfinite(result["seconds"])


def test_internal_error_is_logged_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexnet_exp.training.classifier import ImageClassifier

    def broken(*args: Any) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(ImageClassifier, "training_step", broken)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    assert result_of(tmp_path)["error"] == "ZeroDivisionError: a mistake of ours"
    assert "Traceback" in (tmp_path / "train.log").read_text()


def test_runs_started_in_the_same_second_get_separate_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Stopped:
            return cls(2012, 9, 30, 12, 0, 0)

    monkeypatch.setattr("hydra.core.utils.datetime", Stopped)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for _ in range(2):
        assert cli.main(["train", *SMALL, "test=false", f"paths.output_dir={tmp_path}"]) == 0
    directories = sorted((tmp_path / "runs").iterdir())
    assert len(directories) == 2
    assert all(directory.name.startswith("2012-09-30_12-00-00_") for directory in directories)
    assert all(result_of(directory)["status"] == "finished" for directory in directories)
