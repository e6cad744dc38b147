"""`alexnet-exp prepare`: what it writes, verifies, refuses and continues."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import litdata
import pytest

from alexnet_exp import files
from alexnet_exp.cli import main
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.data import Folder, Streaming
from alexnet_exp.errors import UserError
from alexnet_exp.runs.prepare import chunks as prepare_chunks
from alexnet_exp.runs.prepare.chunks import _begin, _lock, _shuffle
from alexnet_exp.sweeps.job import identity, is_gone
from tests.data.makers import write_folder

ON_INTERRUPT = signal.getsignal(signal.SIGINT)  # ignored, where a shell has put the tests into the background


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The system's temporary folder, as far as this module goes; LitData would empty data and chunks in it."""
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def root(temporary: Path) -> Path:
    folder = temporary / "data"
    write_folder(folder, {"train/cat": 5, "train/dog": 4, "val/dog": 2}, size=(60, 40))
    first = min((folder / "val" / "dog").iterdir())
    first.rename(first.with_name("tab\t line\n \u2028.jpg"))
    return folder


@pytest.fixture(scope="module")
def out(root: Path, temporary: Path) -> Path:
    out = temporary / "chunks"
    assert prepare(root, out, "size=20", "quality=80") == 0
    return out


def test_folders_with_names_that_litdata_uses_are_untouched(root: Path, out: Path):
    assert len(list(root.rglob("*.jpg"))) == 11
    assert {path.parent.name for path in out.rglob("*.bin")} == {"train", "val"}


def test_unusual_names_are_read_back(root: Path, out: Path):
    data = Streaming(url=str(out), batch_size=2, image_size=8, mean=[0.5], std=[0.5])
    names = [path for source in data.load().values() for path in source.paths]
    assert sorted(names) == sorted(str(out / path.relative_to(root)) for path in root.rglob("*.jpg"))


def test_chunks_contain_all_classes_although_folders_are_listed_class_by_class():
    tasks = [[f"{label}/{i}.jpg", label] for label in range(10) for i in range(100)]
    mixed = _shuffle(tasks)
    assert sorted(mixed) == sorted(tasks)
    assert all(len({label for _, label in mixed[start : start + 100]}) == 10 for start in range(0, 1000, 100))
    assert _shuffle(tasks) == mixed  # an interrupted run continues with the same order


def test_a_name_that_is_not_utf8_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_folder(tmp_path / "data", {"train/cat": 1, "train/dog": 1, "val/dog": 1}, size=(8, 8))
    file = next((tmp_path / "data" / "val" / "dog").iterdir())
    file.rename(file.with_name("caf\udce9.jpg"))
    assert prepare(tmp_path / "data", tmp_path / "out") == 1
    assert capsys.readouterr().err == (
        "error: val/dog/caf\\udce9.jpg: the name is not valid UTF-8, which chunks require; rename the file.\n"
    )
    assert not (tmp_path / "out").exists()


def test_litdatas_output_is_hidden_and_need_not_be_utf8(capsys: pytest.CaptureFixture[str]):
    with prepare_chunks._only_the_bar():
        print("Storing the files under \udce9")  # bytes of a folder's name
    assert capsys.readouterr().out == ""


def test_litdata_leaves_no_trace_in_the_process(out: Path):
    assert not [name for name in os.environ if name.startswith("DATA_OPTIMIZER")]
    assert signal.getsignal(signal.SIGINT) is ON_INTERRUPT
    assert multiprocessing.get_start_method(allow_none=True) != "spawn"


def prepare(root: Path, out: Path, *settings: str) -> int:
    return main(["prepare", f"data.root={root}", f"out={out}", "num_workers=1", *settings])


def stored(folder: Path) -> list[dict]:
    return list(litdata.StreamingDataset(str(folder)))


def test_the_shorter_side_of_images_is_resized(out: Path):
    from io import BytesIO

    from PIL import Image

    items = stored(out / "train")
    assert len(items) == 9
    assert {Image.open(BytesIO(item["image"])).size for item in items} == {(30, 20)}


def test_the_manifest_has_counts_and_checksums(out: Path):
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog"]
    assert (manifest["size"], manifest["quality"]) == (20, 80)
    assert {split: about["count"] for split, about in manifest["splits"].items()} == {"train": 9, "val": 2}
    for split, about in manifest["splits"].items():
        assert about["bytes"] == sum(len(item["image"]) for item in stored(out / split))
        assert len(about["sha256"]) == 64


def test_a_complete_folder_is_not_written_again(root: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare(root, out, "size=20", "quality=80") == 0
    assert "prepared already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_folder_with_other_images_is_refused(root: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    assert prepare(root, out, "size=30") == 1
    assert "contains other images or another size" in capsys.readouterr().err


def test_a_moved_source_folder_counts_as_the_same_images(
    root: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    assert prepare(moved, out, "size=20", "quality=80") == 0
    assert "prepared already" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["another name", "another size"])
def test_the_same_number_of_other_images_is_refused(
    change: str, root: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = min((Path(shutil.copytree(root, tmp_path / "changed")) / "train" / "cat").iterdir())
    if change == "another name":
        file.rename(file.with_name("other.jpg"))
    else:
        file.write_bytes(file.read_bytes() + b"\0")
    assert prepare(tmp_path / "changed", out, "size=20", "quality=80") == 1
    assert "contains other images" in capsys.readouterr().err


def test_an_image_that_was_changed_in_its_chunk_is_detected(
    root: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
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
        (["quality=0"], "invalid quality=0: expected an integer in [1, 100]"),
        (["cache=true"], "or cache=true for the cache"),
        (["data.kind=other"], "one of folder, imagenet"),
        (["data.fit=pad"], "data.fit is for cache=true"),
        (["data.exclude=nowhere.txt"], "data.exclude=nowhere.txt cannot be read"),
    ],
)
def test_illegal_settings_are_one_line(
    settings: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert prepare(root, tmp_path, *settings) == 1
    assert message in capsys.readouterr().err


def excluding(root: Path, tmp_path: Path) -> str:
    """Write a list of the first training image of each class."""
    listed = tmp_path / "exclude.txt"
    firsts = [min((root / "train" / name).iterdir()) for name in ("cat", "dog")]
    listed.write_text("".join(f"{path.relative_to(root)}\n" for path in firsts))
    return str(listed)


def test_chunks_of_a_folder_without_its_excluded_images_are_other_chunks(
    root: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = ["size=20", "quality=80", f"data.exclude={excluding(root, tmp_path)}"]
    assert prepare(root, out, *settings) == 1
    assert "contains other images" in capsys.readouterr().err
    assert prepare(root, tmp_path / "rest", *settings) == 0
    assert "train: 7 images, checked" in capsys.readouterr().out


RESIZED_CROP = plain(compose("train", ["augment=resized_crop"]))["augment"]


@pytest.mark.parametrize("fit", ["crop", "squash", "whole"])
@pytest.mark.parametrize("excluded", [False, True])
def test_data_folder_reads_the_prepared_cache(root: Path, tmp_path: Path, excluded: bool, fit: str):
    exclude = excluding(root, tmp_path) if excluded else None
    typed = ["data=folder", f"data.root={root}", "cache=true", "size=32", "num_workers=1", f"data.fit={fit}"]
    typed += [f"data.exclude={exclude}"] if excluded else []
    assert main(["prepare", *typed, f"paths.cache_dir={tmp_path}"]) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("images.npy")}
    data = Folder(
        str(root), cache="disk", cache_dir=str(tmp_path), stored_size=32, batch_size=2, image_size=28,
        mean=[0.5] * 3, std=[0.25] * 3, num_workers=0, exclude=exclude,
        **({"augment": RESIZED_CROP} if fit == "whole" else {"fit": fit}),
    )  # fmt: skip
    data.setup()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("images.npy")} == before
    assert len(before) == len(data.sources) == 2


def test_a_folder_of_classes_is_split_as_a_run_would_split_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_folder(tmp_path / "photos", {"cup": 10, "plate": 5}, size=(12, 10))
    typed = ["data=folder", f"data.root={tmp_path / 'photos'}", "cache=true", "size=8", "num_workers=1"]
    assert main(["prepare", *typed, f"paths.cache_dir={tmp_path / 'cache'}"]) == 0
    printed = capsys.readouterr().out
    assert "has no val folder: 20 % of each of its 2 classes (3 of 15 images)" in printed
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("images.npy")}
    data = Folder(
        str(tmp_path / "photos"), val_fraction="auto", split_rule="stratified", cache="disk",
        cache_dir=str(tmp_path / "cache"), stored_size=8, batch_size=2, image_size=8, mean=[0.5] * 3, std=[0.25] * 3,
        num_workers=0,
    )  # fmt: skip
    data.setup()
    assert {split: len(source) for split, source in data.sources.items()} == {"train": 12, "val": 3}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("images.npy")} == before


# ------------------------------------------------------------------------------------------------ going on

SETTINGS = {"size": 20, "quality": 80, "chunk_mb": 64, "num_workers": None}
IMAGES = {"images": "names", "sizes": "1"}


def test_an_interrupted_run_continues_with_the_same_number_of_workers(tmp_path: Path):
    assert _begin(str(tmp_path), {**SETTINGS, "num_workers": 3}, IMAGES) == 3
    assert _begin(str(tmp_path), SETTINGS, IMAGES) == 3


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({"size": None}, IMAGES, "was started with size=20: use the same"),
        ({"quality": 90, "chunk_mb": 1}, IMAGES, "was started with quality=80 chunk_mb=64: use the same"),
        ({"num_workers": 4}, IMAGES, "was started with num_workers=3"),
        ({}, {"images": "others", "sizes": "1"}, "was started with other images: .* data.split_rule=by_name"),
    ],
)
def test_a_folder_started_with_other_settings_is_refused(
    tmp_path: Path, changes: dict, images: dict, message: str
):
    _begin(str(tmp_path), {**SETTINGS, "num_workers": 3}, IMAGES)
    with pytest.raises(UserError, match=message):
        _begin(str(tmp_path), {**SETTINGS, **changes}, images)


def test_an_image_that_was_repaired_meanwhile_is_accepted(tmp_path: Path):
    _begin(str(tmp_path), {**SETTINGS, "num_workers": 3}, IMAGES)
    assert _begin(str(tmp_path), SETTINGS, IMAGES | {"sizes": "2"}) == 3
    assert json.loads((tmp_path / "prepare.json").read_text())["sizes"] == "2"


def test_a_folder_of_an_older_version_is_not_reported_as_damaged(tmp_path: Path):
    (tmp_path / "prepare.json").write_text(json.dumps({**SETTINGS, "num_workers": 3, "images": "names"}))
    with pytest.raises(UserError, match="written by an older version"):
        _begin(str(tmp_path), SETTINGS, IMAGES)


def test_prepare_works_on_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(lock: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with _lock(str(tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_second_prepare_into_the_same_folder_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with _lock(str(tmp_path)):
        assert prepare(root, tmp_path) == 1
        assert capsys.readouterr().err == (
            f"error: {tmp_path} is being written by another prepare: wait for it, or choose another out.\n"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_damaged_image_is_one_line_and_once_repaired_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root, out = tmp_path / "images", tmp_path / "out"
    write_folder(root, {"train/cat": 3, "train/dog": 1, "val/cat": 1})
    broken = root / "train" / "cat" / "1.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    assert prepare(root, out, "size=20") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(broken) in line
    broken.write_bytes(whole)
    root = root.rename(tmp_path / "moved")  # and continues all the same
    assert prepare(root, out, "size=20") == 0
    assert len(stored(out / "train")) == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_a_run_interrupted_twice_equals_an_uninterrupted_one(tmp_path: Path):
    root, settings = tmp_path / "images", ["size=299", "quality=95", "chunk_mb=1"]
    write_folder(root, {"train/cat": 40, "train/dog": 40, "val/cat": 2}, size=(400, 300))
    assert interrupted(signal.SIGINT, 1, root, tmp_path / "parts", *settings) == 130
    assert interrupted(signal.SIGKILL, 3, root, tmp_path / "parts", *settings) == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("parts/train/chunk-0-[012].bin")}
    assert len(kept) == 3
    assert not (tmp_path / "parts" / "train" / "index.json").exists()
    for name in ("parts", "whole"):
        assert prepare(root, tmp_path / name, *settings) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def interrupted(number: int, chunks: int, root: Path, out: Path, *settings: str) -> int:
    """Prepare until so many chunks are there, and send the command a signal; its workers must end, too."""
    command = ["prepare", f"data.root={root}", f"out={out}", "num_workers=1", *settings]
    running = subprocess.Popen(
        [sys.executable, "-m", "alexnet_exp.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    checkpoint = out / "train" / ".checkpoints" / "checkpoint-0.json"
    while not checkpoint.exists() or len(json.loads(checkpoint.read_text())["chunks"]) < chunks:
        assert running.poll() is None
        time.sleep(0.002)
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True, text=True, check=True
    )
    workers = [worker for pid in listed.stdout.split() if (worker := identity(int(pid)))]
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert b"Traceback" not in said
    deadline = time.monotonic() + 10
    while not all(map(is_gone, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return running.returncode


def contents(folder: Path) -> dict[str, object]:
    """Return every file below a folder, less the time of day that LitData writes down."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {n: {**json.loads(b), "updated_at": None} if n.endswith(".json") else b for n, b in files.items()}
