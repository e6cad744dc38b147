"""Caching decoded images: the same batches, less work, and no harm when the disk is full."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.data import Batch, Folder, loaders
from alexnet_exp.data import cache as cache_module
from alexnet_exp.data.cache import Cache, DecodedSource, places
from alexnet_exp.data.datasets.folder import scan
from alexnet_exp.data.sources import FileSource
from alexnet_exp.errors import UserError
from tests.data.makers import write_folder

COMMON: dict[str, Any] = {"batch_size": 4, "image_size": 16, "mean": [0.5], "std": [0.25], "num_workers": 0}
COUNTS = {"train/cat": 6, "train/dog": 5, "val/cat": 2, "val/dog": 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "pets", COUNTS, size=(30, 22))
    return tmp_path / "pets"


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(loaders, "read_with_aspect", refuse)


def ready(root: Path, cache: str, **options: Any) -> Folder:
    data = Folder(str(root), cache=cache, cache_dir=str(root.parent / "kept"), **{**COMMON, **options})
    data.setup()
    return data


def batches(data: Folder) -> list[Batch]:
    """Return two epochs of training batches and one of validation."""
    train, found = data.train_dataloader(), []
    for epoch in (0, 1):
        train.sampler.set_epoch(epoch)
        found += list(train)
    found += list(data.val_dataloader())
    data.teardown()
    return found


def keep(source: FileSource, mode: str, folder: Path | None) -> FileSource | DecodedSource:
    return Cache(mode, str(folder) if folder else None, 3, 8, 0).keep({"train": source})["train"]


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Make the system refuse to write more than `num_bytes` to any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ------------------------------------------------------------------------------------------- the same images


@pytest.mark.parametrize("mode", ["auto", "disk", "ram"])
@pytest.mark.parametrize(
    "options",
    [
        {"channels": 1},
        {"num_workers": 2},
        {"augment": {"crop": True, "flip": True, "mean_image": "aligned"}, "train_subset": 9},
    ],
    ids=["grey", "workers", "augmented"],
)
def test_a_cache_does_not_change_the_batches(root: Path, mode: str, options: dict[str, Any]):
    plain_run, cached, again = (ready(root, m, **options) for m in ("off", mode, mode))
    expected = batches(plain_run)
    assert len(expected) == 2 * -(-len(plain_run.sources["train"]) // 4) + 2
    for data in (cached, again):
        found = batches(data)
        for batch, other in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch[:3], other[:3], strict=True))
            assert batch[3:] == other[3:]
        for split in ("train", "val"):
            source, names = data.sources[split], plain_run.sources[split]
            assert [source.image_name(i) for i in range(len(source))] == [
                names.image_name(i) for i in range(len(names))
            ]
            assert torch.equal(data.stored_image(split, 2), plain_run.stored_image(split, 2))
    if plain_run.pipeline.mean_image is not None:
        assert torch.equal(cached.pipeline.mean_image, plain_run.pipeline.mean_image)


def test_images_keep_their_names_in_a_subset_of_a_decoded_split(root: Path, tmp_path: Path):
    source = scan(str(root))["train"]
    decoded = keep(source, "disk", tmp_path / "kept")
    part, expected = decoded.subset(torch.tensor([7, 2])), source.subset(torch.tensor([7, 2]))
    assert [part.image_name(i) for i in (0, 1)] == [expected.image_name(i) for i in (0, 1)]
    assert decoded.first(3).image_name(2) == source.image_name(2)


@pytest.mark.parametrize(
    ("cache", "resident", "said"),
    [("off", "device", True), ("off", "host", True), ("ram", "device", False), ("off", "auto", False)],
)
def test_data_resident_without_a_cache_warns(
    root: Path, caplog: pytest.LogCaptureFixture, cache: str, resident: str, said: bool
):
    ready(root, cache, resident=resident).train_dataloader()
    assert (f"data.resident={resident} has no effect without a cache" in caplog.text) is said


def test_the_second_run_decodes_nothing(root: Path, request: pytest.FixtureRequest):
    expected = ready(root, "disk").sources["train"].images.clone()
    request.getfixturevalue("no_decoding")
    for mode in ("disk", "auto"):
        assert torch.equal(ready(root, mode).sources["train"].images, expected)


def test_a_file_that_cannot_be_decoded_is_named_and_nothing_is_cached(root: Path):
    (root / "train/dog/3.jpg").write_bytes(b"not an image")
    for mode in ("auto", "disk", "ram"):
        with pytest.raises(UserError, match=r"train/dog/3\.jpg is not an image"):
            ready(root, mode)
    kept = [path.name for path in (root.parent / "kept").rglob("*") if path.is_file()]
    assert set(kept) == {"lock"}


def test_a_missing_file_is_named(root: Path, tmp_path: Path):
    source = scan(str(root))["train"]
    os.remove(source.paths[1])
    with pytest.raises(UserError, match=f"{source.paths[1]} cannot be read: No such file"):
        keep(source, "disk", tmp_path / "kept")


# ------------------------------------------------------------------------------------------- no space


def test_a_full_disk_fails_disk_but_not_auto(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = scan(str(root))["train"]
    with file_size_limit(1000):
        with pytest.raises(
            UserError, match=r"File too large\): set data\.cache=off, or paths\.cache_dir=DIR"
        ):
            keep(source, "disk", tmp_path / "kept")
        assert keep(source, "auto", tmp_path / "kept") is source
    assert "Cannot cache the decoded images (File too large): decoding them in every epoch" in caplog.text
    assert not list((tmp_path / "kept").rglob("images*"))
    assert isinstance(keep(source, "auto", tmp_path / "kept"), DecodedSource)


@pytest.mark.parametrize("limit", ["disk", "most"])
def test_auto_decodes_every_epoch_what_would_take_too_much_space(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
):
    caplog.set_level(logging.INFO)
    needed = 11 * 3 * 8 * 8
    if limit == "disk":
        usage = type("Usage", (), {"free": 2 * needed - 1})
        monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setattr(cache_module, "AUTO_BYTES", needed - 1)
    source = scan(str(root))["train"]
    assert keep(source, "auto", tmp_path / "kept") is source
    assert "Decoding the images in every epoch" in caplog.text
    assert not (tmp_path / "kept").exists()
    assert isinstance(keep(source, "disk", tmp_path / "kept"), DecodedSource)
    assert isinstance(keep(source, "auto", tmp_path / "kept"), DecodedSource)  # exists now: nothing to write


def test_disk_says_how_much_space_it_needs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"data\.cache=disk needs 0 MB in .*kept, but 0 MB are free"):
        keep(scan(str(root))["train"], "disk", tmp_path / "kept")


def test_ram_says_how_much_memory_it_needs(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "free_memory", lambda: 10)
    with pytest.raises(UserError, match=r"data\.cache=ram needs 0 MB of memory, but 0 MB are free"):
        keep(scan(str(root))["train"], "ram", None)


def test_files_are_fingerprinted_once_and_only_if_they_can_be_cached(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    looks: list[str] = []
    taken = cache_module.fingerprint

    def counted(paths: Sequence[str], *rest: Any) -> str:
        looks.append(os.path.dirname(paths[0]))
        return taken(paths, *rest)

    monkeypatch.setattr(cache_module, "fingerprint", counted)
    monkeypatch.setattr(cache_module, "AUTO_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))  # the fallback folder
    source = scan(str(root))["train"]
    assert keep(source, "auto", tmp_path / "kept") is source
    assert looks == []
    assert isinstance(keep(source, "disk", tmp_path / "kept"), DecodedSource)
    assert len(looks) == 1
    assert isinstance(
        keep(source, "auto", tmp_path / "kept"), DecodedSource
    )  # exists, whatever auto may write
    assert len(looks) == 2


# ------------------------------------------------------------------------------------------- where


def test_the_environment_sets_the_cache_folder(monkeypatch: pytest.MonkeyPatch):
    def chosen() -> str | None:
        return plain(compose("train", ["data=folder", "data.root=images"]))["data"]["cache_dir"]

    monkeypatch.setenv("ALEXNET_CACHE_DIR", "/some where")
    assert chosen() == "/some where"
    monkeypatch.delenv("ALEXNET_CACHE_DIR")
    monkeypatch.setenv("ALEXNET_DATA_DIR", "/sets")
    assert chosen() is None  # the user's cache folder, never the data folder


def test_nothing_is_written_into_the_data_set(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    (tmp_path / "link").symlink_to(root)
    for inside in (root, root / "cache", tmp_path / "link" / "cache"):
        assert places(str(inside), str(root)) == [home / "alexnet_exp"]
    before = sorted(root.rglob("*"))
    assert isinstance(keep(scan(str(root))["train"], "disk", root / "cache"), DecodedSource)
    assert sorted(root.rglob("*")) == before
    assert len(list(home.rglob("images.npy"))) == 1


def test_an_unusable_cache_dir_falls_back_to_the_user_s_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "fixed").mkdir(mode=0o555)
    (tmp_path / "file").write_text("no folder")
    splits = scan(str(root))
    for split, folder in (("train", tmp_path / "fixed" / "kept"), ("val", tmp_path / "file")):
        assert isinstance(keep(splits[split], "disk", folder), DecodedSource)
        assert len(list((tmp_path / "home").rglob(f"pets-{split}-*/images.npy"))) == 1


def test_images_cached_in_a_read_only_folder_are_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    source, folder = scan(str(root))["train"], tmp_path / "kept"
    keep(source, "disk", folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555)
    request.getfixturevalue("no_decoding")
    assert isinstance(keep(source, "disk", folder), DecodedSource)
    assert not (tmp_path / "home").exists()
