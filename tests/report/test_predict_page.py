"""report.html of `predict`: every image with its bars, every error, and how many were left out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from alexnet_exp.runs.predict.output import GONE, Answer, write_predictions
from tests.report.test_report import ATTACK, QUOTES, Page


def answer(name: str = ATTACK, size: int = 300) -> Answer:
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Answer(name, [(ATTACK, 0.75), (QUOTES, 0.125)], image)


def predicted(folder: Path, answers: list[Answer] | None = None, errors: int = 1, images: int = 4) -> Path:
    """Write the page of images and classes with hostile names."""
    folder.mkdir()
    answers = answers or [answer(), answer(QUOTES, size=8), Answer("gone\udce9.jpg", [(QUOTES, 1.0)], None)]
    result = {"images": images, "errors": errors, "checkpoint": ATTACK, "command": f"alexnet-exp {ATTACK}"}
    failed = [(f"{ATTACK}{i}", f"is no image {QUOTES}") for i in range(errors)]
    write_predictions(folder / "report.html", answers, failed, result)
    return folder / "report.html"


def test_page_shows_every_image_and_error_and_escapes_names(tmp_path: Path):
    page = Page(predicted(tmp_path / "out"))
    assert len(page.all("script")) == 1
    assert not [key for _, attributes in page.attributes for key in attributes if key.startswith("on")]
    assert [str(a["src"])[:22] for a in page.all("img")] == [
        "data:image/jpeg;base64",
        "data:image/png;base64,",
    ]
    assert GONE in page.words and "gone?.jpg" in page.words
    assert f"{ATTACK} 75 %" in page.words
    assert [a["style"] for a in page.all("div") if "style" in a][:2] == ["--v:0.750", "--v:0.125"]
    assert [f"{ATTACK}0", f"is no image {QUOTES}"] in page.rows
    assert "1 of 4 could not be read." in page.words
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert "The first" not in page.words


def test_page_shows_at_most_a_hundred_of_each_and_the_total(tmp_path: Path):
    path = predicted(tmp_path / "out", [answer(size=256)] * 120, errors=130, images=2430)
    page = Page(path)
    assert len(page.all("img")) == 100
    assert "The first 100 of 2,300 images; predictions.csv has all." in page.words
    assert "The first 100 of 130 files; predictions.csv has all." in page.words
    assert path.stat().st_size < 1_000_000
