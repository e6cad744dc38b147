"""Outputs of `alexnet-exp evaluate`, on one device and on two, and in W&B."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexnet_exp.errors import UserError
from alexnet_exp.runs.evaluate.data import is_own_data
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.wandb.logger import find_run_id
from alexnet_exp.tracking.wandb.media import wandb_place
from tests.data.makers import CIFAR10_CLASSES, Arrays
from tests.runs.evaluated_runs import alexnet_exp, evaluated, make_runs, rows
from tests.tracking.read_wandb import read_finished
from tests.training.small_runs import run

Made = tuple[Path, Arrays, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    return folder, *make_runs(folder)


def test_directory_has_tables_pictures_report_and_result(made: Made, tmp_path: Path):
    folder, arrays, _ = made
    out = tmp_path / "out"
    found = evaluated(out, folder / "run0", "views=centre")
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == {
        "config.yaml", "overrides.yaml", "evaluate.log", "predictions.csv", "per_class.csv", "report.html",
        "result.json", "figures/confusion_matrix.png", "figures/mistakes.png", "figures/samples.png",
        "figures/conv1_filters.png",
    }  # fmt: skip
    assert found["status"] == "finished"
    assert found["calibration"]["bins"] == 15
    labels = arrays["test"][1]
    table = rows(out / "predictions.csv")
    assert [row["image"] for row in table] == [str(i) for i in range(20)]
    assert [row["label"] for row in table] == [CIFAR10_CLASSES[k] for k in labels]
    assert np.mean([row["label"] == row["class_1"] for row in table]) == found["metrics"]["test/top1"]
    for row in rows(out / "per_class.csv"):
        members = [r for r in table if r["label"] == row["class"]]
        hits = sum(r["class_1"] == row["class"] for r in members)
        said = sum(r["class_1"] == row["class"] for r in table)
        assert (int(row["images"]), float(row["recall"])) == (len(members), hits / len(members))
        assert row["precision"] == (str(hits / said) if said else "")


def test_directory_of_another_run_is_not_written_to(made: Made, capsys: pytest.CaptureFixture[str]):
    before = os.listdir(made[0] / "run1")
    assert alexnet_exp("evaluate", made[0] / "run0", f"hydra.run.dir={made[0] / 'run1'}") == 1
    assert "holds a run already" in capsys.readouterr().err
    assert os.listdir(made[0] / "run1") == before


def test_directory_is_restored_when_writing_the_outputs_fails(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "notes.txt").write_text("mine")

    def refuse(run: RunDirectory, result: dict[str, Any]) -> None:
        written = {str(path.relative_to(run.path)) for path in run.path.rglob("*.*")}
        assert {"predictions.csv", "per_class.csv", "report.html", "figures/samples.png"} <= written
        raise UserError("no room")

    monkeypatch.setattr(RunDirectory, "write_result", refuse)
    assert alexnet_exp("evaluate", made[0] / "run0", "device=cpu", f"hydra.run.dir={tmp_path}") == 1
    assert "no room" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_two_devices_count_every_image_once(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, _, _ = made
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    runs = [folder / "run0", folder / "run1"]
    one = evaluated(tmp_path / "one", *runs, "batch_size=7", "split=val")  # 30 images: the last batch has two
    two = evaluated(tmp_path / "two", *runs, "batch_size=7", "split=val", "devices=2")
    assert two["images"] == {"val": 30}
    assert two["metrics"] == {k: pytest.approx(v, rel=1e-5) for k, v in one["metrics"].items()}
    assert two["metrics"]["val/top1"] == one["metrics"]["val/top1"]
    first, second = (rows(tmp_path / name / "predictions.csv") for name in ("one", "two"))
    assert [(r["image"], r["label"], r["class_1"]) for r in second] == [
        (r["image"], r["label"], r["class_1"]) for r in first
    ]


# ----------------------------------------------------------------------------------------------------- W&B


def test_scores_tables_and_figures_go_to_the_wandb_run_of_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_dir = tmp_path / "run"
    run(run_dir, "logger=wandb", "logger.wandb.mode=offline")
    capsys.readouterr()
    found = evaluated(tmp_path / "out", run_dir)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert said.startswith("The figures go to the run's offline W&B files. To upload them later: wandb sync ")
    assert found["wandb"] == {"id": find_run_id(run_dir), "mode": "offline", "url": None}
    first, second = map(read_finished, sorted(run_dir.glob("wandb/offline-run-*")))
    assert (second.run_id, second.name, second.resumed) == (first.run_id, first.name, True)
    logged = {key: value for row in second.history for key, value in row.items()}
    panels = {key for key in logged if key.startswith("evaluate/")}
    where = "evaluate/test_centre"
    pictures = ("confusion_matrix", "mistakes", "samples", "predictions", "classes")
    scores = ("loss", "top1", "top5", "balanced_accuracy", "macro_f1", "ece")
    assert panels == {f"{where}/{name}" for name in (*pictures, *scores)}
    assert logged[f"{where}/top1"] == found["metrics"]["test/top1"]
    assert logged["step"] == 7
    assert not set(second.config) - {"_wandb"}  # settings and environment stay those of the training run
    assert "wandb" not in evaluated(tmp_path / "out2", run_dir, "logger=none")
    assert len(list(run_dir.glob("wandb/offline-run-*"))) == 2


def test_metrics_of_another_data_set_are_logged_separately_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("alexnet_exp.runs.evaluate.output.draw_all", lambda *_: [])
    run_dir = tmp_path / "run"
    run(run_dir, "logger=wandb", "logger.wandb.mode=offline")
    for label in range(10):
        (tmp_path / "other set" / str(label)).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "other set" / str(label) / "0.png")
    evaluated(
        tmp_path / "out", run_dir, "data=folder", f"data.root={tmp_path / 'other set'}", "data.num_workers=0"
    )
    (_, second) = map(read_finished, sorted(run_dir.glob("wandb/offline-run-*")))
    keys = {key for row in second.history for key in row if key.startswith("evaluate/")}
    assert {key.rpartition("/")[0] for key in keys} == {"evaluate/other_set_train_centre"}


@pytest.mark.parametrize(
    ("typed", "own"),
    [
        ({}, True),
        ({"root": "/elsewhere/hats"}, True),  # it has moved
        ({"root": "/data/shoes"}, False),
        ({"_target_": "alexnet_exp.data.Folder", "root": "/data/hats/"}, True),
        ({"_target_": "alexnet_exp.data.Folder", "root": "/elsewhere/hats"}, False),
        ({"_target_": "alexnet_exp.data.CIFAR10", "root": "/data/hats"}, False),
    ],
)
def test_own_data_set_is_recognised_by_its_class_and_location(typed: dict[str, str], own: bool):
    assert is_own_data({"_target_": "alexnet_exp.data.Folder", "root": "/data/hats"}, typed) == own


def test_wandb_prefix_is_a_single_key_part_for_any_data_set_name():
    assert wandb_place("val", "flip", "my hats/2") == "evaluate/my_hats_2_val_flip"
