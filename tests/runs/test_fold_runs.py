"""Runs that differ in the fold: compared like seeds, their pooled out-of-fold predictions, and their ensemble."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_runs import make_run

from alexnet_exp.data.sources import ArraySource
from alexnet_exp.errors import UserError
from alexnet_exp.runs.compare.command import summarise
from alexnet_exp.runs.compare.table import to_json, to_markdown

LINES = [
    [("1", "cat", "cat"), ("2", "dog", "cat")],
    [("3", "cat", "cat"), ("4", "dog", "dog"), ("5", "dog", "dog")],
]


def fold_run(path: Path, fold: int, lines: list[tuple[str, str, str]], **options: Any) -> Path:
    data = {"folds": 2, "fold": fold}
    run = make_run(path, val=[0.5, sum(a == b for _, a, b in lines) / len(lines)], data=data, **options)
    rows = "".join(f"{image},{label},{said},0.9\n" for image, label, said in lines)
    (run / "predictions.csv").write_text(f"image,label,class_1,probability_1\n{rows}")
    return run


def test_folds_are_compared_like_seeds_and_predict_each_image_once(tmp_path: Path) -> None:
    for fold, lines in enumerate(LINES):
        fold_run(tmp_path / f"fold{fold}", fold, lines)
    comparison = summarise(tmp_path, "val/top1")
    (group,) = comparison.groups
    assert (group.n, group.mean, comparison.repeats) == (2, 0.75, "folds")
    (found,) = group.out_of_fold
    assert (found.evaluation.total, found.accuracy, found.missing, found.repeated) == (5, 4 / 5, [], 0)
    assert found.evaluation.confusion.tolist() == [[2, 0], [1, 2]]
    said = "Out of fold, seed=0: 80.00 % of 5 images, balanced accuracy 83.33 %."
    assert said in to_markdown(comparison) and said in (tmp_path / "compare.html").read_text()
    record = json.loads(to_json(comparison))["groups"][0]["out_of_fold"][0]
    assert record["accuracy"] == 0.8 and record["per_class"][1]["recall"] == pytest.approx(2 / 3)


def test_missing_folds_and_images_in_two_folds_are_reported(tmp_path: Path) -> None:
    fold_run(tmp_path / "fold0", 0, LINES[0])
    fold_run(tmp_path / "fold1", 1, LINES[1], status="failed")
    assert "without fold 1 of 2" in to_markdown(summarise(tmp_path, "val/top1"))
    fold_run(tmp_path / "again1", 1, LINES[0])
    assert "2 images are in several folds" in to_markdown(summarise(tmp_path, "val/top1"))


def test_a_run_older_than_these_settings_counts_as_another_seed(tmp_path: Path) -> None:
    new = {"balanced": False, "folds": None, "fold": 0, "groups": None, "fit": "crop"}
    make_run(tmp_path / "old", 0.9, data={"batch_size": 8})
    make_run(tmp_path / "new", 0.8, data={"batch_size": 8, **new}, class_weights="none", seed=1)
    comparison = summarise(tmp_path)
    assert [group.n for group in comparison.groups] == [2] and comparison.keys == ["seed"]
    assert comparison.repeats == "seeds"


def member(fold: int, split: str, folds: int | None = 2) -> Any:
    from alexnet_exp.runs.evaluate.members import Member

    def source(numbers: list[int], name: str) -> ArraySource:
        images = torch.zeros(len(numbers), 1, 1, 1, dtype=torch.uint8)
        return ArraySource(images, torch.zeros(len(numbers)), ("a",), name, torch.tensor(numbers))

    halves = [[0, 1], [2, 3]]
    sources = {"train": source(halves[1 - fold], "made train"), "val": source(halves[fold], "made train"),
               "test": source([0, 1], "made test")}  # fmt: skip
    data = SimpleNamespace(sources=sources, origins={"val": "cut from train: fold", "test": "made"})
    config = {"data": {"_target_": "alexnet_exp.data.Digits", "folds": folds, "fold": fold}}
    return Member(Path(f"fold{fold}"), {"config": config}, data, split)  # type: ignore[arg-type]


def test_an_ensemble_of_folds_is_only_scored_on_images_that_no_member_was_trained_on() -> None:
    from alexnet_exp.runs.evaluate.members import _check_unseen

    for split in ("val", "train"):
        with pytest.raises(UserError, match=r"fold\d was trained on some of these"):
            _check_unseen([member(0, split), member(1, split)], {})
    with pytest.raises(UserError, match=r"data\.folds=2 data\.fold=0"):
        _check_unseen([member(0, "val"), member(0, "val")], {"folds": None})
    _check_unseen([member(0, "test"), member(1, "test")], {})
    _check_unseen([member(0, "val"), member(0, "val")], {})  # two seeds of one fold
    _check_unseen([member(0, "val")], {})
    _check_unseen([member(0, "val", None), member(0, "val", None)], {})
