"""Verifying every file before training: errors, skipped files, and that the rest is unchanged."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.data import Folder
from alexnet_exp.data import verify as verifying
from alexnet_exp.errors import UserError
from tests.data.makers import write_folder

COMMON: dict[str, Any] = {
    "batch_size": 4, "image_size": 16, "mean": [0.5], "std": [0.25], "channels": 1, "num_workers": 0,
}  # fmt: skip
BAD = ("train/cat/2.jpg", "train/dog/0.jpg", "val/dog/1.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, two splits; three of the files cannot be decoded."""
    root = tmp_path / "pets"
    write_folder(root, {"train/cat": 5, "train/dog": 5, "val/cat": 2, "val/dog": 2})
    (root / BAD[0]).write_bytes((root / BAD[0]).read_bytes()[:200])
    (root / BAD[1]).write_bytes(b"")
    (root / BAD[2]).write_text("no image")
    return root


def opened(root: Path, **options: Any) -> Folder:
    folder = Folder(str(root), **{**COMMON, "cache_dir": str(root.parent / "kept"), **options})
    folder.setup()
    return folder


def batches(data: Folder, split: str, shuffle: bool = False) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch.images, batch.labels) for batch in data.loader(split, shuffle)]


def test_the_first_bad_file_is_named_before_training(root: Path):
    with pytest.raises(UserError) as caught:
        opened(root, verify=True)
    said = str(caught.value)
    assert f"{root / BAD[0]} cannot be decoded (" in said
    assert "truncated" in said.lower()
    assert "2 more cannot be decoded either" in said
    assert "data.on_bad_image=skip" in said


def test_without_verify_a_bad_file_is_named_when_it_is_read(root: Path):
    data = opened(root)
    assert data.bad_images is None
    with pytest.raises(UserError, match=r"cannot be decoded|is empty"):
        batches(data, "train", shuffle=True)


@pytest.mark.parametrize("cache", ["off", "ram", "disk"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipping_is_the_same_as_deleting_the_bad_files(root: Path, cache: str, num_workers: int):
    clean = root.parent / "clean"
    shutil.copytree(root, clean)
    for name in BAD:
        (clean / name).unlink()
    data = opened(root, on_bad_image="skip", cache=cache, num_workers=num_workers)
    reference = opened(clean)
    try:
        assert data.bad_images == 3
        for split in ("train", "val"):
            found, expected = batches(data, split, shuffle=True), batches(reference, split, shuffle=True)
            assert len(found) == len(expected)
            for (images, labels), (images_too, labels_too) in zip(found, expected, strict=True):
                assert torch.equal(images, images_too) and torch.equal(labels, labels_too)
    finally:
        data.teardown()


def test_the_validation_set_is_split_off_after_skipping_bad_files(root: Path):
    flat, clean = root / "train", root.parent / "clean"
    shutil.copytree(flat, clean)
    for name in BAD[:2]:
        (clean / Path(name).relative_to("train")).unlink()
    found = opened(flat, val_fraction=0.5, on_bad_image="skip").sources
    expected = opened(clean, val_fraction=0.5).sources
    for split in ("train", "val"):
        names = [
            [source.image_name(i) for i in range(len(source))] for source in (found[split], expected[split])
        ]
        assert names[0] == names[1]


def test_skipped_files_are_reported(root: Path, caplog: pytest.LogCaptureFixture):
    (root / "train/cat/\x1b[31mred.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        opened(root, on_bad_image="skip")
    assert "4 of 15 images" in caplog.text
    assert r"train/cat/\x1b[31mred.jpg" in caplog.text
    assert "\x1b" not in caplog.text


def test_files_are_verified_once_for_all_runs(root: Path, monkeypatch: pytest.MonkeyPatch):
    assert opened(root, on_bad_image="skip").bad_images == 3
    monkeypatch.setattr(verifying, "read_stored", None)  # decoding again would fail
    assert opened(root, on_bad_image="skip").bad_images == 3
    with pytest.raises(UserError, match="2 more"):
        opened(root, verify=True)
    monkeypatch.undo()
    write_folder(root, {"train/dog": 1})  # repairs train/dog/0.jpg
    assert opened(root, on_bad_image="skip").bad_images == 2


@pytest.mark.parametrize("kept", ["", "{", "[]", "3", '{"99": "x"}', '{"a": "b"}'])
def test_a_damaged_record_is_ignored(root: Path, kept: str):
    opened(root, on_bad_image="skip")
    (record,) = (root.parent / "kept").glob("verified-*.json")
    assert set(json.loads(record.read_text())) == {"2", "5", "13"}
    record.write_text(kept)
    assert opened(root, on_bad_image="skip").bad_images == 3


def test_with_an_unwritable_cache_folder_files_are_verified_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    (root.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "file"))
    assert opened(root, on_bad_image="skip", cache_dir=str(root.parent / "file")).bad_images == 3


def test_a_class_without_a_valid_image_is_named(root: Path):
    for path in (root / "val/cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"val/cat: none of its images can be decoded"):
        opened(root, on_bad_image="skip")


def test_a_folder_without_bad_files_counts_zero(tmp_path: Path):
    write_folder(tmp_path / "a", {"train/x": 2, "train/y": 2})
    assert opened(tmp_path / "a", verify=True).bad_images == 0
