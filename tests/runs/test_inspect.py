"""`alexnet-exp inspect`: it finds the duplicates planted in a folder and no others."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_exp.runs.inspect.look import look
from alexnet_exp.runs.inspect.near import close_pairs, contrast, difference_hash, near_pairs, shrink
from tests.data.makers import write_cifar10, write_mnist
from tests.report.test_report import ATTACK, Page
from tests.runs.evaluated_runs import alexnet_exp

RNG = np.random.default_rng(0)
ODD = "[b]<i>x&.png"


def photo(width: int = 96, height: int = 72) -> Image.Image:
    """Return a smooth image of random colours with some grain, unlike any other."""
    small = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray((pixels + RNG.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8))


# Copies, in the order train, val, test, and the kind of their group.
PLANTED = {
    ("train/cat/0.jpg", "val/cat/leak.jpg"): ("exact", "leak"),
    ("train/cat/1.jpg", "test/cat/resaved.jpg"): ("near", "leak"),
    ("train/dog/0.jpg", "val/dog/small.png"): ("near", "leak"),
    ("train/cat/wrong.jpg", "train/dog/1.jpg"): ("exact", "labels"),
    ("train/cat/3.jpg", "train/cat/copy.jpg"): ("exact", ""),
    ("train/cat/4.jpg", "train/cat/5.webp", "train/cat/again.png"): ("near", ""),
}
BAD = {
    "train/dog/bad.jpg": "cannot be decoded",
    "train/dog/empty.png": "is empty",
    "val/dog/text.jpg": "is not",
}


def plant(root: Path) -> None:
    """Write photos, the copies of PLANTED, the files of BAD, and odd images that are not copies."""
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                photo().save(root / split / name / f"{i}.jpg", quality=95)
    cat, dog = root / "train" / "cat", root / "train" / "dog"
    shutil.copy(cat / "0.jpg", root / "val/cat/leak.jpg")
    with Image.open(cat / "1.jpg") as picture:
        picture.save(root / "test/cat/resaved.jpg", quality=60)
    with Image.open(dog / "0.jpg") as picture:
        picture.resize((48, 36)).save(root / "val/dog/small.png")
    shutil.copy(dog / "1.jpg", cat / "wrong.jpg")
    shutil.copy(cat / "3.jpg", cat / "copy.jpg")
    with Image.open(cat / "4.jpg") as picture:
        picture.save(cat / "again.png")
        picture.resize((200, 150)).save(cat / "5.webp", quality=80)
    for i, colour in enumerate(("white", "white", "grey", "black")):
        Image.new("RGB", (40 + i, 40), colour).save(root / "val/dog" / f"plain{i}.png")
        Image.new("RGB", (50 + i, 60), colour).save(dog / f"plain{i}.png")
    photo(300, 20).save(dog / "strip.jpg")
    photo(3, 90).save(dog / "thin.png")
    photo(1, 1).save(cat / "one.png")
    photo().convert("L").save(cat / "grey.png")
    photo().convert("RGBA").save(cat / ODD)
    exif = Image.Exif()
    exif[274] = 6
    photo(60, 80).save(cat / "turned.jpg", exif=exif)
    (dog / "bad.jpg").write_bytes((dog / "3.jpg").read_bytes()[:500])
    (dog / "empty.png").touch()
    (root / "val/dog/text.jpg").write_text("no image")
    (dog / "film.mp4").write_text("x")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Return the inspected folder, the output folder, and the exit code."""
    folder = tmp_path_factory.mktemp("planted")
    plant(folder / "photos")
    code = inspected(folder / "out", "data=folder", f"data.root={folder / 'photos'}", "data.num_workers=0")
    return folder / "photos", folder / "out", code


def inspected(out: Path, *arguments: object) -> int:
    return alexnet_exp("inspect", *arguments, f"hydra.run.dir={out}")


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def found_groups(out: Path) -> dict[tuple[str, ...], tuple[str, str]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows(out, "duplicates.csv"):
        groups.setdefault(row["group"], []).append(row)
    return {
        tuple(row["image"] for row in group): (
            group[0]["kind"],
            "leak" if group[0]["leak"] == "1" else "labels" if group[0]["labels_differ"] == "1" else "",
        )
        for group in groups.values()
    }


def test_every_planted_copy_is_found_and_nothing_else(planted: tuple[Path, Path, int]):
    _, out, code = planted
    assert found_groups(out) == PLANTED
    assert code == 3
    assert result(out)["leaks"] == {"val": 2, "test": 1}
    assert result(out)["duplicates"] == {"groups": 6, "exact": 3, "labels_differ": 1}


def test_every_file_has_a_row_with_its_upright_size_and_error(planted: tuple[Path, Path, int]):
    root, out, _ = planted
    found = {row["image"]: row for row in rows(out, "images.csv")}
    assert set(found) == {p.relative_to(root).as_posix() for p in root.rglob("*.*") if p.suffix != ".mp4"}
    turned, thin = found["train/cat/turned.jpg"], found["train/dog/thin.png"]
    assert [turned[key] for key in ("width", "height", "format", "mode", "orientation")] == [
        "80", "60", "JPEG", "RGB", "6",
    ]  # fmt: skip
    assert (thin["width"], thin["height"], thin["class"], thin["split"]) == ("3", "90", "dog", "train")
    assert {name for name, row in found.items() if row["error"]} == set(BAD)
    assert all(said in found[name]["error"] for name, said in BAD.items())


def test_mean_and_std_are_those_of_the_stored_training_images(planted: tuple[Path, Path, int]):
    from alexnet_exp.data.decode import read_stored

    root, out, _ = planted
    files = [p for p in (root / "train").rglob("*.*") if p.suffix != ".mp4"]
    good = [p for p in files if p.relative_to(root).as_posix() not in BAD]
    pixels = (
        torch.stack([read_stored(str(p), 3, 36) for p in good]).double() / 255
    )  # 36: 8/7 of an input of 32
    assert result(out)["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=2e-3)
    assert result(out)["std"] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=2e-3)


def test_excluding_the_listed_files_removes_leaks_and_keeps_val_and_test(
    planted: tuple[Path, Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root, out, _ = planted
    listed = (out / "exclude.txt").read_text().splitlines()
    assert listed == [
        "train/cat/0.jpg", "train/cat/1.jpg", "train/cat/5.webp", "train/cat/again.png", "train/cat/copy.jpg",
        "train/cat/wrong.jpg", "train/dog/0.jpg", "train/dog/1.jpg",
    ]  # fmt: skip
    exclude = f"data.exclude={out / 'exclude.txt'}"
    assert (
        inspected(tmp_path / "again", "data=folder", f"data.root={root}", "data.num_workers=0", exclude) == 0
    )
    assert found_groups(tmp_path / "again") == {}
    assert not (tmp_path / "again" / "exclude.txt").exists()
    assert "folder train without 8 of exclude.txt" in capsys.readouterr().out
    before, after = ({row["image"] for row in rows(o, "images.csv")} for o in (out, tmp_path / "again"))
    assert before - after == set(listed)


def test_the_page_shows_the_copies_and_names_every_problem(planted: tuple[Path, Path, int]):
    page = Page(planted[1] / "report.html")
    assert len(page.all("script")) == 1
    assert "Leak: 2 of 13 val and 1 of 7 test images are also in train" in page.words
    assert "3 files cannot be decoded" in page.words and "1 .mp4" in page.words
    num_copies = sum(map(len, PLANTED))
    augmented = (
        len([p for p in planted[0].glob("train/*/*") if p.suffix != ".mp4"]) - 2
    )  # two cannot be decoded
    assert len(page.all("img")) == num_copies + augmented
    assert all(str(a["src"]).startswith("data:image/") for a in page.all("img"))
    assert (planted[1] / "report.html").stat().st_size < 1_000_000


def test_images_in_memory_are_compared_by_their_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_cifar10(tmp_path / "data")
    batches = tmp_path / "data" / "cifar-10-batches-py"
    import pickle

    first, test = (pickle.loads((batches / name).read_bytes()) for name in ("data_batch_1", "test_batch"))
    test["data"][3] = first["data"][5]  # with another label, too
    (batches / "test_batch").write_bytes(pickle.dumps(test, protocol=4))
    arguments = (
        "data=cifar10",
        f"data.data_dir={tmp_path / 'data'}",
        "data.val_size=0",
        "data.download=false",
    )
    assert inspected(tmp_path / "out", *arguments) == 3
    assert found_groups(tmp_path / "out") == {("train image 5", "test image 3"): ("exact", "leak")}
    assert "1 of 20 test images are also in train" in capsys.readouterr().out
    assert not (tmp_path / "out" / "exclude.txt").exists()


def test_mnist_and_digits_can_be_inspected(tmp_path: Path):
    write_mnist(tmp_path / "data")
    of_mnist = ("data=mnist", f"data.data_dir={tmp_path / 'data'}", "data.val_size=5", "data.channels=1")
    assert inspected(tmp_path / "mnist", *of_mnist) == 0
    assert inspected(tmp_path / "digits", "data.train_subset=200", "data.test_subset=50") == 0
    assert found_groups(tmp_path / "mnist") == found_groups(tmp_path / "digits") == {}


def test_plain_class_folders_are_split_as_in_a_run_unless_val_fraction_is_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("cat", "dog"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for i in range(6):
            photo().save(tmp_path / "flat" / name / f"{i}.png")
    for i in range(1, 6):
        shutil.copy(tmp_path / "flat/cat/0.png", tmp_path / f"flat/cat/{i}.png")
    arguments = ("data=folder", f"data.root={tmp_path / 'flat'}", "data.num_workers=0")
    assert inspected(tmp_path / "whole", *arguments, "data.val_fraction=null") == 0
    assert "none: there is only one split" in capsys.readouterr().out
    assert inspected(tmp_path / "cut", *arguments) == 3
    said = capsys.readouterr().out
    assert "val    2 images" in said and "20 % of each of its 2 classes (2 of 12 images)" in said
    result = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert result["data"]["val_fraction"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data=streaming", "data.url=x"), "inspect does not read chunks"),
        (("resume=x",), "inspect looks at data, not at runs"),
        (("data=folder", "data.root=nowhere"), "nowhere does not exist"),
    ],
)
def test_unsupported_data_is_refused_in_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert inspected(tmp_path / "out", *arguments) == 1
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ parts


def test_close_hashes_match_a_brute_force_search():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 1 << 64, 60, dtype=np.uint64)
    for bits in (0, 1, 3, 4, 5, 6):  # near-duplicates of the first ten
        flips = sum(1 << int(b) for b in rng.permutation(64)[:bits])
        hashes = np.append(hashes, hashes[:10] ^ np.uint64(flips))
    slow = {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 4
    }
    pairs = [
        pair
        for left, right in close_pairs(hashes)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == slow
    assert len(slow) >= 40


def test_hash_bits_mark_values_above_their_right_neighbour():
    falling = torch.arange(255, 0, -255 / 32).clamp(0, 255).to(torch.uint8).expand(1, 3, 32, 32)
    assert difference_hash(falling).tolist() == [(1 << 64) - 1]
    assert difference_hash(falling.flip(3)).tolist() == [0]
    assert difference_hash(torch.full((1, 1, 32, 32), 200, dtype=torch.uint8)).tolist() == [0]


def test_similar_strokes_are_not_duplicates_when_many_images_are_similar():
    """Each of 196 different '1's is within 27 % of another's contrast; only the image saved twice is a pair."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    strokes = [
        255 * np.exp(-(((x - place - slant * (y - 16)) / 2) ** 2))
        for slant in np.linspace(-0.35, 0.35, 14)
        for place in np.linspace(12, 20, 14)
    ]
    images = np.stack([*strokes, strokes[7] + rng.normal(0, 3, (32, 32))]).clip(0, 255).astype(np.uint8)
    small = shrink(torch.from_numpy(images)[:, None])
    hashes = difference_hash(small)
    assert sum(len(left) for left, _ in close_pairs(hashes)) > 1000
    pairs = near_pairs(small.numpy(), hashes, contrast(small))
    assert list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == [(7, 196)]


def test_workers_give_the_same_result_as_one_process(tmp_path: Path):
    from alexnet_exp.data.datasets import folder

    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(20):
                photo(24, 20).save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "train/cat/3.png").write_text(ATTACK)
    here, there = (look(folder.scan(str(tmp_path)), 3, 16, num_workers) for num_workers in (0, 2))
    assert here.records == there.records
    assert [i for i, record in enumerate(here.records) if record.error] == [
        13
    ]  # sorted by name: 0 1 10 ... 19 2 3
    assert (here.small == there.small).all() and (here.hashes == there.hashes).all()
    assert (here.mean, here.std) == (there.mean, there.std)
