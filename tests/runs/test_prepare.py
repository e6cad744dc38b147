"""alexnet-exp prepare: what it writes, checks, refuses, and goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alexnet_exp.cli import main
from alexnet_exp.data import Folder
from tests.data.makers import write_folder

litdata = pytest.importorskip("litdata", reason="litdata is not installed (the extra 'streaming')")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder, {"train/cat": 5, "train/dog": 4, "val/dog": 2}, size=(60, 40))
    return folder


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "chunks"
    assert prepare(root, out, "size=20", "quality=80") == 0
    return out


def prepare(root: Path, out: Path, *settings: str) -> int:
    return main(["prepare", f"data.root={root}", f"out={out}", "num_workers=1", *settings])


def stored(folder: Path) -> list[dict]:
    return list(litdata.StreamingDataset(str(folder)))


def test_images_are_shrunk_to_the_shorter_side(out: Path):
    from io import BytesIO

    from PIL import Image

    items = stored(out / "train")
    assert len(items) == 9
    assert {Image.open(BytesIO(item["image"])).size for item in items} == {(30, 20)}


def test_the_manifest_counts_and_signs_what_was_written(out: Path):
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog"]
    assert (manifest["size"], manifest["quality"]) == (20, 80)
    assert {split: about["count"] for split, about in manifest["splits"].items()} == {"train": 9, "val": 2}
    for split, about in manifest["splits"].items():
        assert about["bytes"] == sum(len(item["image"]) for item in stored(out / split))
        assert len(about["sha256"]) == 64


def test_what_is_prepared_already_is_left(root: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare(root, out, "size=20", "quality=80") == 0
    assert "prepared already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_place_with_other_images_is_refused(root: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    assert prepare(root, out, "size=30") == 1
    assert "holds other images or another size" in capsys.readouterr().err


def test_an_image_that_was_changed_in_its_chunk_is_noticed(
    root: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "manifest.json").unlink()
    chunk = next((copy / "train").glob("*.bin"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    assert prepare(root, copy, "size=20", "quality=80") == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["quality=0"], "quality=0 is not possible: it must be a whole number from 1 to 100"),
        (["cache=true"], "one of them"),
        (["data.kind=other"], "one of folder, imagenet"),
    ],
)
def test_illegal_settings_are_one_line(
    settings: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert prepare(root, tmp_path, *settings) == 1
    assert message in capsys.readouterr().err


def test_the_cache_is_the_one_that_a_folder_reads(root: Path, tmp_path: Path):
    typed = ["data=folder", f"data.root={root}", "cache=true", "size=32", "num_workers=1"]
    assert main(["prepare", *typed, f"paths.cache_dir={tmp_path}"]) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("images.npy")}
    data = Folder(
        str(root), cache="disk", cache_dir=str(tmp_path), stored_size=32, batch_size=2, image_size=28,
        mean=[0.5] * 3, std=[0.25] * 3, num_workers=0,
    )  # fmt: skip
    data.setup()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("images.npy")} == before
    assert len(before) == len(data.sources) == 2
