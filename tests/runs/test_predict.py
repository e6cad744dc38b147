"""`alexnet-exp predict`: a row for every file, whatever its content."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet_exp as package
from alexnet_exp.errors import UserError
from alexnet_exp.runs.predict import output
from alexnet_exp.runs.predict.command import find_images
from alexnet_exp.runs.predict.output import Row, print_rows
from alexnet_exp.runs.train.command import train
from tests.data.makers import write_folder
from tests.report.test_report import Page
from tests.runs.evaluated_runs import alexnet_exp
from tests.training.small_runs import NARROW, run, settings

AWKWARD = "[red]a, 'b' \x1b[31m.png"
GOOD = ("grey.png", "palette.gif", "alpha.png", "cmyk.jpg", "deep.png", "one.png", "turned.jpg", AWKWARD)
BAD = {"cut.jpg": "cannot be decoded", "text.jpg": "is not an image", "empty.png": "is empty"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    run(directory, "test=false")
    return directory


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images in every mode, and files that only look like images."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    colour.convert("L").save(folder / "grey.png")
    colour.convert("P").save(folder / "palette.gif")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    exif = Image.Exif()
    exif[274] = 6
    colour.rotate(90, expand=True).save(folder / "turned.jpg", exif=exif, quality=95)
    colour.save(folder / AWKWARD)
    buffer = io.BytesIO()
    colour.save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("not asked for")
    colour.save(folder / ".hidden" / "x.png")
    return folder


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_a_folder_gives_a_row_per_image_and_errors_for_the_others(
    run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert alexnet_exp("predict", run_dir, photos, "device=cpu", f"hydra.run.dir={out}") == 2
    found = rows(out)
    assert set(found) == {str(photos / name) for name in (*GOOD, *BAD)}
    for name, said in BAD.items():
        assert said in found[str(photos / name)]["error"]
        assert found[str(photos / name)]["class_1"] == ""
    classifier = package.load_classifier(run_dir, device="cpu")
    for name in GOOD:
        (expected,) = classifier.predict(photos / name)
        row = found[str(photos / name)]
        assert row["error"] == ""
        assert tuple(row[f"class_{i}"] for i in range(1, 6)) == expected.classes
        for i, p in enumerate(expected.probabilities, start=1):
            assert float(row[f"probability_{i}"]) == pytest.approx(p, rel=1e-5)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == list(found)
    assert sum("error" in line for line in lines) == len(BAD)
    assert json.loads((out / "result.json").read_text())["errors"] == len(BAD)
    with Image.open(out / "predictions.png") as page:
        assert min(page.size) > 100
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert "[red]a" in printed
    assert "3 of 11 could not be read." in printed
    assert printed.count("text.jpg") == 1  # and not once more in the error
    assert {path.name for path in out.iterdir()} == {
        "predictions.csv", "predictions.jsonl", "predictions.png", "report.html", "result.json",
    }  # fmt: skip


def test_exif_orientation_is_applied(run_dir: Path, photos: Path):
    classifier = package.load_classifier(run_dir, device="cpu")
    upright = classifier.preprocess.stored(photos / AWKWARD).float()
    turned = classifier.preprocess.stored(photos / "turned.jpg").float()
    assert (turned - upright).abs().mean() < 10  # JPEG
    assert (turned.rot90(1, (1, 2)) - upright).abs().mean() > 10


def test_positional_arguments_are_a_checkpoint_and_images(
    run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [photos / "one.png", photos / AWKWARD]
    assert alexnet_exp("predict", run_dir, *words, "top_k=2", f"hydra.run.dir={tmp_path / 'out'}") == 0
    found = rows(tmp_path / "out")
    assert list(found) == [str(word) for word in words]
    assert "class_3" not in found[str(words[0])]


def test_paths_are_read_from_stdin(
    run_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / 'one.png'}\n\n{photos / 'nowhere.png'}\n"))
    assert alexnet_exp("predict", run_dir, "-", f"hydra.run.dir={tmp_path / 'out'}") == 2
    found = rows(tmp_path / "out")
    assert "No such file" in found[str(photos / "nowhere.png")]["error"]
    assert found[str(photos / "one.png")]["error"] == ""


@pytest.mark.parametrize("wanted", ["nowhere", "photos/*.webp", "photos/deeper", "images=[]"])
def test_no_images_is_one_line(
    run_dir: Path, photos: Path, wanted: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    capsys.readouterr()
    assert alexnet_exp("predict", run_dir, wanted, f"hydra.run.dir={tmp_path / 'out'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: No image found in ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("top_k=0", "invalid top_k=0: expected an integer >= 1."),
        ("device=tpu", "device=tpu is not available"),
        ("topk=3", "There is no setting topk. Did you mean top_k=3?"),
        (
            "views=five_crop",
            "invalid views='five_crop': expected one of centre, flip, flip_translate, ten_crop",
        ),
        ("embed=conv9", "embed=conv9: the network has no such layer. Did you mean conv5, conv4, conv3?"),
    ],
)
def test_an_error_in_settings_is_one_line(
    run_dir: Path, photos: Path, typed: str, said: str, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert alexnet_exp("predict", run_dir, photos, typed) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(Path("outputs").glob("predict/*"))


def test_a_network_with_non_finite_output_is_refused(
    run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).fill_(float("nan"))
    torch.save(checkpoint, "broken.ckpt")
    capsys.readouterr()
    assert alexnet_exp("predict", "broken.ckpt", photos / "grey.png", "device=cpu") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.ckpt: the network's output is not finite" in line
    assert not list(Path("outputs").glob("predict/*/predictions*"))


# ----------------------------------------------------------------------------------------- views, embeddings


@pytest.fixture
def sorted_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images of noise, in folders named after the digits."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    for i in range(12):
        path = tmp_path / "sorted" / "val" / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return tmp_path / "sorted"


@pytest.mark.parametrize("views", ["flip", "flip_translate"])
def test_views_give_the_probabilities_of_evaluate(run_dir: Path, sorted_photos: Path, views: str):
    data = ["data=folder", f"data.root={sorted_photos}", "split=val"]
    assert alexnet_exp("evaluate", run_dir, *data, f"views={views}", "hydra.run.dir=evaluated") == 0
    assert alexnet_exp("predict", run_dir, sorted_photos, f"views={views}", "hydra.run.dir=predicted") == 0
    assert alexnet_exp("predict", run_dir, sorted_photos, "hydra.run.dir=centre") == 0
    expected, found, centre = (rows(Path(out)) for out in ("evaluated", "predicted", "centre"))
    assert len(found) == 12
    for path, row in found.items():
        for i in range(1, 6):
            assert row[f"class_{i}"] == expected[path][f"class_{i}"]
            assert float(row[f"probability_{i}"]) == pytest.approx(
                float(expected[path][f"probability_{i}"]), rel=1e-4
            )
    assert found != centre
    classifier = package.load_classifier(run_dir, device="cpu")
    (prediction,) = classifier.predict(next(iter(found)), views=views)
    assert prediction.probabilities[0] == pytest.approx(
        float(next(iter(found.values()))["probability_1"]), rel=1e-5
    )


def test_ten_crops_of_images_smaller_than_the_input_are_refused(
    run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert alexnet_exp("predict", run_dir, photos, "views=ten_crop") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "views=ten_crop needs images of at least the network's 32 pixels, but these have 8" in line


def test_embeddings_are_the_activations_of_the_layer(run_dir: Path, photos: Path, tmp_path: Path):
    assert (
        alexnet_exp(
            "predict", run_dir, photos, "embed=conv5", "batch_size=3", f"hydra.run.dir={tmp_path / 'out'}"
        )
        == 2
    )
    classifier = package.load_classifier(run_dir, device="cpu")
    with np.load(tmp_path / "out" / "embeddings.npz") as found:
        embeddings, paths, labels, classes = (
            found[key] for key in ("embeddings", "paths", "labels", "classes")
        )
    predicted = rows(tmp_path / "out")
    assert list(paths) == [path for path, row in predicted.items() if not row["error"]]
    assert [classes[i] for i in labels] == [predicted[path]["class_1"] for path in paths]
    assert tuple(classes) == classifier.classes
    x = classifier.preprocess([str(path) for path in paths])
    with torch.no_grad():
        for name, module in classifier.model.features.named_children():
            x = module(x)
            if name == "conv5":
                expected = x.relu().flatten(1)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_embeddings_are_labelled_by_position_where_two_classes_share_a_name(run_dir: Path, tmp_path: Path):
    classes = ("crane", "owl", "crane")
    classifier = replace(package.load_classifier(run_dir, device="cpu"), classes=classes)
    found = classifier.top(torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]))
    written = [Row(f"{i}.png", prediction) for i, prediction in enumerate(found)]
    output.write_embeddings(tmp_path / "e.npz", np.zeros((2, 1), np.float32), written, classes)
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["labels"].tolist() == [2, 0]


def test_embeddings_beyond_free_memory_are_refused_with_their_size(
    run_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(output, "free_memory", lambda: 11 * 10 * 4)  # 11 files, 10 values of four bytes each
    assert alexnet_exp("predict", run_dir, photos, "embed=fc8", "hydra.run.dir=fits") == 2
    monkeypatch.setattr(output, "free_memory", lambda: 11 * 10 * 4 - 1)
    capsys.readouterr()
    assert alexnet_exp("predict", run_dir, photos, "embed=fc8", "hydra.run.dir=refused") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "error: embed=fc8 needs 0.0 GB of memory (11 images of 10 values), but 0.0 GB are free"
    )


def test_python_embeds_with_any_module_and_averages_over_views(run_dir: Path, photos: Path):
    classifier = package.load_classifier(run_dir, device="cpu")
    image = photos / "grey.png"
    logits = classifier.embed(image, "fc8")
    torch.testing.assert_close(logits, classifier.embed(image, "classifier.fc8"))
    x = classifier.preprocess(image)
    with torch.no_grad():
        torch.testing.assert_close(logits, classifier.model(x))
        both = classifier.model(torch.cat([x, x.flip(3)])).mean(0, keepdim=True)
    torch.testing.assert_close(classifier.embed([image], "fc8", views="flip"), both)


class Pair(torch.nn.Module):
    """A layer with two outputs."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class First(torch.nn.Module):
    """The first of two outputs."""

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return pair[0]


def test_a_layer_with_several_outputs_cannot_be_embedded(run_dir: Path, photos: Path):
    classifier = package.load_classifier(run_dir, device="cpu")
    parts = {"network": classifier.model, "pair": Pair(), "first": First()}
    classifier.model = torch.nn.Sequential(OrderedDict(parts))
    with pytest.raises(
        UserError, match=r"^embed=pair: its output is not one tensor, .*; choose another layer\.$"
    ):
        classifier.embed(photos / "grey.png", "pair")
    assert classifier.embed(photos / "grey.png", "first").shape == (1, 10)


@pytest.mark.parametrize("views", ["centre", "flip"])
def test_no_images_give_no_embeddings_of_the_layer_s_width(run_dir: Path, views: str):
    found = package.load_classifier(run_dir, device="cpu").embed([], "fc8", views=views)
    assert (found.shape, found.dtype) == ((0, 10), torch.float32)


# --------------------------------------------------------------------------------------------------- files


def test_patterns_and_folders_find_images_by_extension(photos: Path):
    (photos / "deeper" / "B.JPG").touch()
    (photos / "deeper" / "a.tiff").touch()
    assert find_images("photos/deeper") == ["photos/deeper/B.JPG", "photos/deeper/a.tiff"]
    assert find_images("photos/**/*.JPG") == ["photos/deeper/B.JPG"]
    assert "photos/notes.txt" not in find_images("photos/*")


def test_an_explicitly_named_file_may_have_any_extension(photos: Path):
    assert find_images("photos/notes.txt") == ["photos/notes.txt"]
    (photos / "[1].png").touch()  # not the pattern
    (photos / "1.png").touch()
    assert find_images("photos/[1].png") == ["photos/[1].png"]


def test_a_file_named_twice_is_listed_once(photos: Path):
    assert find_images(["photos/one.png", "photos/o*.png", "photos/one.png"]) == ["photos/one.png"]


def closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder unreadable; for root, file modes do not."""
    is_allowed, scandir, exists = os.access, os.scandir, os.path.exists

    def refuse(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and is_allowed(path, mode))
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os.path, "exists", lambda path: folder not in Path(path).parents and exists(path))


@pytest.mark.parametrize("wanted", ["photos", "photos/*.png", "photos/one.png", "photos/deeper/[ab].png"])
def test_an_unreadable_folder_is_not_reported_as_empty(
    photos: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
):
    folder = photos / "deeper" if "deeper" in wanted else photos
    closed(folder, monkeypatch)
    with pytest.raises(UserError, match=rf"^{folder} is not readable: "):
        find_images(str(photos.parent / wanted))


def test_an_unreadable_subfolder_is_a_warning(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    closed(photos / "deeper", monkeypatch)
    assert len(find_images(str(photos))) == len(GOOD) + len(BAD)
    said = capsys.readouterr().err
    assert said == f"warning: skipping {photos / 'deeper'}: permission denied.\n"


def test_a_list_of_missing_files_is_refused(photos: Path):
    with pytest.raises(UserError, match=r"No image found in a\.png, b\.png"):
        find_images(["a.png", "b.png"])


# ----------------------------------------------------------------------------------------------- terminal


def test_the_table_fits_a_narrow_terminal():
    from rich.console import Console

    prediction: Any = package.inference.Prediction(("a class", "another"), (0.75, 0.25))
    screen = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    print_rows([Row("a/rather/long/path/to/some/image.png", prediction)] * 2, screen)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 40
    assert "75.0%" in "".join(lines)


def test_a_long_table_is_truncated_with_a_note(capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    print_rows([Row(f"{i}.png", error="damaged") for i in range(103)], Console())
    printed = capsys.readouterr().out
    assert "99.png" in printed
    assert "100.png" not in printed
    assert "... and 3 more in predictions.csv" in printed


def test_the_figure_shows_24_images_and_counts_the_others(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    monkeypatch.setattr(
        output, "draw_predictions", lambda answers, path, left_out: calls.append((len(answers), left_out))
    )
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(26):
        Image.new("RGB", (4, 4)).save(folder / f"{i:02d}.png")
    assert alexnet_exp("predict", run_dir, folder, f"hydra.run.dir={tmp_path / 'out'}") == 0
    assert calls == [(24, 2)]
    assert os.path.exists(tmp_path / "out" / "predictions.csv")


# ------------------------------------------------------------------------------------------- awkward files


def test_a_name_that_is_not_utf8_is_written_and_read_back(run_dir: Path, photos: Path, tmp_path: Path):
    path = os.path.join(os.fsencode(photos), b"caf\xe9.png")
    os.rename(photos / "one.png", path)
    out = tmp_path / "out"
    assert alexnet_exp("predict", run_dir, os.fsdecode(path), f"hydra.run.dir={out}") == 0
    (line,) = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert os.fsencode(json.loads(line)["image"]) == path
    assert list(rows(out)) == [str(photos / r"caf\udce9.png")]
    settings = json.loads((out / "result.json").read_text(encoding="utf-8"))["settings"]
    assert os.fsencode(settings["images"][0]) == path


def test_a_path_may_contain_an_equals_sign(run_dir: Path, photos: Path, tmp_path: Path):
    (tmp_path / "seed=0").symlink_to(run_dir)
    (photos / "one.png").rename("lr=0.1.png")
    assert alexnet_exp("predict", "seed=0", "lr=0.1.png", f"hydra.run.dir={tmp_path / 'out'}") == 0
    assert list(rows(tmp_path / "out")) == ["lr=0.1.png"]


def test_a_file_that_vanishes_before_it_is_drawn_loses_only_its_thumbnail(
    run_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(output, "print_rows", lambda *_: (photos / "one.png").unlink())
    words = [photos / "one.png", photos / "grey.png"]
    assert alexnet_exp("predict", run_dir, *words, f"hydra.run.dir={tmp_path / 'out'}") == 0
    assert rows(tmp_path / "out")[str(words[0])]["error"] == ""
    with Image.open(tmp_path / "out" / "predictions.png") as drawn:
        assert min(drawn.size) > 100
    page = Page(tmp_path / "out" / "report.html")
    assert page.words.count("no longer available") == 1
    assert len(page.all("img")) == 1


def test_the_page_shows_every_image_and_error_and_escapes_names(run_dir: Path, photos: Path, tmp_path: Path):
    hostile = '"><img src=x onerror=alert(1)>.png'
    (photos / "one.png").rename(photos / hostile)
    assert alexnet_exp("predict", run_dir, photos, f"hydra.run.dir={tmp_path / 'out'}") == 2
    page = Page(tmp_path / "out" / "report.html")
    assert len(page.all("img")) == len(GOOD)
    assert str(photos / hostile) in page.words
    assert not [a for _, a in page.attributes if any(key.startswith("on") for key in a)]
    assert all(said in page.words for said in BAD.values())


def test_images_that_the_network_was_trained_on_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(
        Path("photos"), {f"{split}/{name}": 3 for split in ("train", "val") for name in ("cat", "dog")}
    )
    shutil.copytree("photos/train", "copies")
    data = ["data=folder", "data.root=photos", "data.cache=off", "data.num_workers=0", "data.batch_size=4"]
    quiet = ["callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false", "logger=csv"]
    short = ["model=alexnet_cifar", *NARROW, "trainer=cpu", "trainer.max_epochs=1", "test=false"]
    train(*settings(base=[*data, *quiet, *short]), Path("run"), "python train.py")

    def said(out: str, *images: str) -> str:
        capsys.readouterr()
        assert alexnet_exp("predict", "run", *images, "device=cpu", f"hydra.run.dir={out}") == 0
        return capsys.readouterr().err

    assert "trained on 6 of these 18 images" in said("all", "photos", "copies")
    assert json.loads(Path("all/result.json").read_text())["training_images"] == 6
    assert "trained on 6 of these 18 images" in Page(Path("all/report.html")).words
    assert "trained on" not in said("val", "photos/val", "copies")
    # With another image in the folder nobody knows which ones were there.
    shutil.copy("photos/val/cat/0.jpg", "photos/train/cat/9.jpg")
    assert "trained on" not in said("changed", "photos")
