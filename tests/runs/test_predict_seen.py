"""Which of the images to classify were trained on: silent, bounded, and never an error."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alexnet_exp.data import Folder
from alexnet_exp.data.identity import identify
from alexnet_exp.runs.predict import seen
from alexnet_exp.runs.predict.seen import trained_on
from tests.data.datasets.test_folder import touch

CAT = "photos/train/cat/0.jpg"


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(Path("photos"), *(f"{split}/{name}/0.jpg" for split in ("train", "val") for name in ("cat", "dog")))


def trained(**changes: Any) -> Any:
    """Return what a checkpoint of a network trained on photos records."""
    settings = {
        "root": "photos",
        "batch_size": 1,
        "image_size": 8,
        "mean": [0.5],
        "std": [0.5],
        "num_workers": 0,
    }
    data = Folder(**{**settings, "follow_links": changes.get("follow_links", False)})
    data.setup()
    config = {"data": {"_target_": "alexnet_exp.data.Folder", **settings, **changes}, "seed": 0}
    return SimpleNamespace(config=config, splits={"train": identify(data.sources["train"])})


def test_it_is_silent(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    touch(Path("photos"), "train/cat/film.mp4", "beside.jpg")
    classifier = trained()
    caplog.clear()
    capsys.readouterr()  # the run that was just recorded may have said something
    with caplog.at_level(logging.INFO):
        assert trained_on(classifier, [CAT, "photos/val/cat/0.jpg"]) == {CAT}
    assert (caplog.text, *capsys.readouterr()) == ("", "", "")


@pytest.mark.parametrize("changes", [{"no_such_key": 1}, {"mean": None}, {"root": 3}])
def test_odd_recorded_settings_are_no_error(changes: dict[str, Any]) -> None:
    assert not trained_on(trained(**changes), [CAT])


def test_settings_that_decode_or_select_images_list_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "build", lambda *_, **__: pytest.fail("listed"))
    for changes in ({"verify": True}, {"on_bad_image": "skip"}, {"train_subset": 1}, {"folds": 2}):
        assert trained_on(trained(**changes), [CAT]) is None


def test_a_folder_that_is_large_by_now_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = trained()
    assert trained_on(classifier, [CAT]) == {CAT}
    touch(Path("photos"), *(f"val/cat/more {i}.jpg" for i in range(20)))
    monkeypatch.setattr(seen, "_MAX_IMAGES", 20)
    monkeypatch.setattr(seen, "build", lambda *_, **__: pytest.fail("listed"))
    assert trained_on(classifier, [CAT]) is None


def test_images_behind_links_that_lead_out_of_the_folder_are_found() -> None:
    touch(Path("elsewhere"), "1.jpg", "2.jpg")
    Path("photos/train/emu").symlink_to(Path("elsewhere").absolute())
    emu = "photos/train/emu/1.jpg"
    assert trained_on(trained(follow_links=True), [emu, CAT, "photos/val/cat/0.jpg"]) == {emu, CAT}
