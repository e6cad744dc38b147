"""report.html of `export`: what the file contains, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.runs.export.command import write_export
from tests.report.test_report import ATTACK, QUOTES, Page


def exported(folder: Path, **metadata: Any) -> Path:
    """Write the page of a file with hostile names."""
    folder.mkdir()
    result = {
        "file": ATTACK, "format": "onnx", "checkpoint": QUOTES, "bytes": 3 * 2**20, "command": ATTACK,
        "metadata": {"model": ATTACK, "classes": [ATTACK, QUOTES], "mean": [0.5], "whiten": False} | metadata,
        "parity": {"images": 32, "difference": 2.5e-08, "agreeing": 31, "allowed": 1e-4, "images_from": ATTACK},
    }  # fmt: skip
    write_export(folder / "report.html", result, f"load({ATTACK!r})")
    return folder / "report.html"


def test_page_shows_size_parity_and_how_to_load_the_file(tmp_path: Path):
    page = Page(exported(tmp_path / "out"))
    for said in ("size 3.0 MiB", "largest difference from PyTorch 2.5e-08", "31 of 32 images", "whiten false",
                 f"load('{ATTACK}')", f"{ATTACK}, {QUOTES}"):  # fmt: skip
        assert said in page.words
    assert len(page.all("script")) == 1
    assert not [key for _, attributes in page.attributes for key in attributes if key.startswith("on")]


@pytest.mark.parametrize("count", [20, 21])
def test_long_list_of_classes_is_collapsed(tmp_path: Path, count: int):
    page = Page(exported(tmp_path / "out", classes=[f"c{i}" for i in range(count)]))
    assert bool(page.all("details")) == (count > 20)
    assert f"c{count - 1}" in page.words
