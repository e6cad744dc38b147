"""docs/results.md and the headers of the experiments say what the records in results/ hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alexnet_exp.runs.reproduce.rows import CLAIMS, names
from tests.results.page import PAGE, RECORDS, headers, page

FOLDERS = sorted(RECORDS.glob("*/*seed-*"))


def test_the_page_is_what_the_records_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.results rewrites it"


def test_the_headers_are_what_the_records_give() -> None:
    for file, text in headers().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: python -m tests.results rewrites it"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_record_is_small_and_names_no_machine(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {"result.json", "metrics.csv"}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40_000
    text = (folder / "result.json").read_text(encoding="utf-8")
    result = json.loads(text)
    assert (result["status"], result["experiment"]) == ("finished", folder.parent.name)
    assert folder.name.endswith(f"seed-{result['seed']}") and folder.parent.name in {*names(), *CLAIMS}
    assert result["git"]["commit"] and result["versions"]["torch"] and result["hardware"]["processor"]
    assert not re.search(r'["= ]~?/\w', text), "a path"
    last = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")
    metric = "test/top1" if "test/top1" in result["metrics"] else "train/top1"  # some claims are not tested
    assert f"{result['metrics'][metric]}" in last
