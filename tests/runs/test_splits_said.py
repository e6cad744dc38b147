"""What a run prints and records about its images, and whether limited evaluations are representative."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train import fit as heavy
from alexnet_exp.runs.train.results import evaluation_of
from alexnet_exp.runs.train.resume import resumed_arguments, resumed_settings
from alexnet_exp.tracking.run_directory import RunDirectory
from tests.data.makers import write_folder
from tests.training.small_runs import NARROW, checkpoint, resume, settings
from tests.training.small_runs import SMALL as DIGITS

BASE = [
    "model=alexnet_cifar", *NARROW, "model.input_size=32", "data=folder", "data.batch_size=8", "data.num_workers=0",
    "data.cache=off", "augment=none", "trainer=cpu", "trainer.max_epochs=1", "logger=csv",
    "callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false",
]  # fmt: skip
COUNTS = {"train/ant": 9, "train/bee": 20, "train/cat": 20, "val/ant": 20, "val/bee": 20,
          "test/ant": 20, "test/bee": 20, "test/cat": 20}  # fmt: skip


def trained(root: Path, run_dir: Path, *overrides: str) -> tuple[dict[str, Any], heavy.Fit]:
    """Train on a folder; return result.json and the run's objects."""
    config, typed = settings(f"data.root={root}", *overrides, base=BASE)
    kept: list[heavy.Fit] = []
    with pytest.MonkeyPatch.context() as patch:
        from alexnet_exp.runs.train.command import train

        assemble = heavy.assemble
        patch.setattr(heavy, "assemble", lambda *a: (kept.append(assemble(*a)), kept[0])[1])
        train(config, typed, run_dir, "python train.py")
    return json.loads((run_dir / "result.json").read_text()), kept[0]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], heavy.Fit]:
    """A run limited to two batches of eight images per split, on a folder with three classes."""
    folder = tmp_path_factory.mktemp("limited")
    write_folder(folder / "pets", COUNTS, size=(12, 10), extension="png")
    limits = [f"trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    result, fit = trained(folder / "pets", folder / "run", *limits)
    return folder / "run", result, fit


def test_a_limited_evaluation_sees_every_class(limited: tuple[Path, dict[str, Any], heavy.Fit]) -> None:
    _, _, fit = limited
    assert fit.classifier.outcomes.confusion is not None
    seen = fit.classifier.outcomes.confusion.sum(1).tolist()
    assert sum(seen) == 16
    assert min(seen) >= 5
    fit.trainer.limit_val_batches = 1
    (first, *_) = fit.data.val_dataloader()
    assert set(first.labels.tolist()) == {0, 1}


def test_a_full_evaluation_keeps_file_order(
    limited: tuple[Path, dict[str, Any], heavy.Fit],
) -> None:
    _, _, fit = limited
    fit.trainer.limit_val_batches = 1.0
    indices = [i for batch in fit.data.val_dataloader() for i in batch.indices.tolist()]
    assert indices == list(range(40))


def test_the_sample_figure_shows_every_class(limited: tuple[Path, dict[str, Any], heavy.Fit]) -> None:
    run_dir, _, fit = limited
    evaluation = evaluation_of(fit)
    assert evaluation is not None
    shown = Counter(sample.label for sample in evaluation.samples)
    assert sum(shown.values()) == 16
    assert min(shown[label] for label in range(3)) >= 5
    assert (run_dir / "figures/samples.png").exists()


def test_a_run_logs_its_splits(
    limited: tuple[Path, dict[str, Any], heavy.Fit],
) -> None:
    run_dir, _, _ = limited
    log = (run_dir / "train.log").read_text()
    assert "train  49 images, 3 classes (ant 9 ... bee 20), folder train" in log
    assert "val    40 images, 2 classes (20 of each), folder val" in log
    assert "val has no images of 1 of 3 classes: cat" in log


def test_result_records_every_split(limited: tuple[Path, dict[str, Any], heavy.Fit]) -> None:
    _, result, _ = limited
    assert result["images"] == {"train": 49, "val": 40, "test": 60}
    assert result["splits"]["train"] == {
        "images": 49, "classes": 3, "smallest": {"class": "ant", "images": 9},
        "largest": {"class": "bee", "images": 20}, "origin": "folder train",
    }  # fmt: skip


def test_a_folder_of_classes_just_trains_and_records_how_it_was_split(tmp_path: Path) -> None:
    photos, run_dir = tmp_path / "photos", tmp_path / "run"
    write_folder(photos, {"cup": 20, "plate": 20}, size=(12, 10))
    result, _ = trained(photos, run_dir)
    assert result["images"] == {"train": 32, "val": 8}
    recorded = RunDirectory(run_dir).config()["data"]
    assert (recorded["val_fraction"], recorded["split_rule"]) == (0.2, "stratified")
    assert checkpoint(run_dir)["config"]["data"] == recorded
    before = checkpoint(run_dir)["splits"]
    resume(run_dir, "trainer.max_epochs=2")
    assert checkpoint(run_dir)["epoch"] == 1 and checkpoint(run_dir)["splits"] == before
    log = (run_dir / "train.log").read_text()
    assert log.count("has no val folder: 20 % of each of its 2 classes (8 of 40 images)") == 1
    folders = ", ".join(str(photos / split) for split in ("train", "val"))
    said = f"only validation metrics are reported. For a test, sort the classes into {folders} and {photos / 'test'}."
    assert log.count(said) == 2  # once for each session


@pytest.mark.parametrize("recorded", ["stratified", "by_name", "by_order", None])
def test_a_run_keeps_the_rule_that_it_records(tmp_path: Path, recorded: str | None) -> None:
    photos = tmp_path / "photos"
    write_folder(photos, {"cup": 30, "plate": 30}, size=(12, 10))
    typed = ["data.val_fraction=0.3", f"data.split_rule={recorded or 'by_order'}"]
    config, _ = settings(f"data.root={photos}", *typed, base=BASE)
    before = heavy.prepare_data(config).identity()
    (tmp_path / "run").mkdir()
    if recorded is None:  # from before the key existed
        del config["data"]["split_rule"]
    RunDirectory(tmp_path / "run").write_settings(config, typed[:1])
    arguments = resumed_arguments([f"resume={tmp_path / 'run'}"])
    resumed = resumed_settings(plain(compose("train", arguments)), arguments)
    assert resumed is not None
    assert heavy.prepare_data(resumed[0]).identity() == before
    other = heavy.prepare_data(settings(f"data.root={photos}", typed[0], base=BASE)[0]).identity()
    assert (other == before) == (recorded == "stratified")


def test_in_memory_splits_are_printed() -> None:
    config, _ = settings(base=DIGITS)
    data = heavy.prepare_data(config)
    said: list[str] = []
    data.tell(said.append)
    assert [line[:5] for line in said] == ["train", "val  ", "test "]
    assert said[0].startswith("train  200 images, 10 classes (")
    assert said[0].endswith("train_subset=200: the first")
    assert data.facts()["val"]["origin"] == "cut from train: val_size=50 at random, val_seed=0"


@pytest.mark.parametrize("watcher", ["callbacks.early_stopping.enabled=true", "scheduler=plateau"])
def test_missing_validation_error_says_how_to_get_it(tmp_path: Path, watcher: str) -> None:
    write_folder(tmp_path / "pets", {"train/cat": 3, "train/dog": 3}, size=(12, 10))
    config, typed = settings(f"data.root={tmp_path / 'pets'}", watcher, base=BASE)
    data = heavy.prepare_data(config)
    heavy.fit_to_data(config, data, typed)
    with pytest.raises(
        UserError, match=r"needs validation images .*: set data\.val_fraction=0\.1, or add"
    ) as caught:
        heavy.assemble(config, data, tmp_path, [], None)  # type: ignore[arg-type]
    assert "val_size" not in str(caught.value)


def test_classes_without_validation_images_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {f"{name}": 1 for name in "abcdefg"} | {"many": 30}, size=(12, 10))
    config, _ = settings(f"data.root={tmp_path}", "data.val_fraction=0.2", base=BASE)
    heavy.prepare_data(config).tell(str)
    assert "val has no images of 7 of 8 classes: a, b, c, d, e, ..." in caplog.text
