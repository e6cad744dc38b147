"""Each script of benchmarks/ runs as a command, on very little work."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import baseline
import data
import overhead
import pytest
from script import run

from alexnet_exp.runs.benchmark import subject as benchmark_subject
from tests.runs.test_benchmark import NET, check_ratios, rows_of

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "from script import" in path.read_text()]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALEXNET_DATA_DIR", str(tmp_path / "no data"))
    monkeypatch.setattr("alexnet_exp.runs.benchmark.timing._LEAST", math.inf)  # other tests run beside


def measured(tmp_path: Path, measure: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    """Run a script and return its result."""
    settings = getattr(sys.modules[measure.__module__], "SETTINGS", None)
    assert run(measure, settings, [*arguments, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    return json.loads((tmp_path / "run" / "result.json").read_text())


def test_trainer_alternates_with_the_hand_written_loop(tmp_path: Path) -> None:
    result = measured(tmp_path, overhead.measure_overhead, *NET)
    ours, theirs = rows_of(result, "overhead: alexnet_cifar, digits")
    assert (ours["case"], theirs["case"]) == ("Trainer", "by hand")
    check_ratios([ours, theirs], theirs)
    difference = ours["median_seconds"] - theirs["median_seconds"]
    assert ours["overhead_microseconds"] == pytest.approx(1e6 * difference)
    assert ours["overhead"] == pytest.approx(difference / theirs["median_seconds"])
    assert len(rows_of(result, "overhead: alexnet_cifar, noise at 32, batch 8")) == 2
    assert any("CIFAR10 was not found in" in note and "noise" in note for note in result["notes"])


def test_the_run_is_compared_with_the_hand_written_pil_loop(tmp_path: Path) -> None:
    result = measured(tmp_path, baseline.measure_baseline, *NET, "workers=1", "augment=flip_crop")
    ours, theirs = result["rows"]
    assert ours["what"] == "baseline: alexnet_cifar, digits at 32, batch 8"
    assert ours["case"].startswith("ours")
    check_ratios([ours, theirs], theirs)
    assert theirs["case"] == "the hand-written PIL loop, 32-true"
    assert result["command"].startswith("python benchmarks/baseline.py model=alexnet_cifar")
    assert result["settings"]["workers"] == 1


def test_data_is_compared_with_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark_subject, "FILES_PER_CLASS", 16)
    monkeypatch.setattr(data, "_BATCH", 8)
    result = measured(tmp_path, data.measure_data, *NET, "workers=1", "repeats=1")
    whats = list(dict.fromkeys(row["what"] for row in result["rows"]))
    assert whats == [
        "load and augment: alexnet_cifar, digits at 32, batch 8",
        "crop, flip, normalise at 32 pixels, batch 8, one thread",
        "folder: alexnet_lrn, jpegs at 227, batch 64",
    ]
    for what in whats:
        rows = rows_of(result, what)
        assert rows[-1]["case"].startswith("torchvision") and rows[-1]["ratio"] == 1.0
        check_ratios(rows, rows[-1])
    assert {row["case"] for row in rows} >= {"ours, decoding", "ours, from the cache"}
    assert any("synthetic" in note for note in result["notes"])
    assert not list((tmp_path / "no data").rglob("*")), "a benchmark writes only into its directory"


def test_a_script_runs_from_any_folder_and_reports_errors_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "baseline.py"), "workers=0"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    message = "error: invalid workers=0: expected an integer >= 1.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_sets_its_process_up_before_torch_is_imported(path: Path) -> None:
    first = [node.module for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)][:2]
    assert first == ["__future__", "script"]


def test_help_of_a_script_is_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(baseline.measure_baseline, baseline.SETTINGS, ["--help"]) == 0
    assert "python benchmarks/baseline.py [settings of train] [workers=2" in capsys.readouterr().out


def test_the_documents_name_scripts_that_exist() -> None:
    root = FOLDER.parent
    pages = [root / "README.md", FOLDER / "README.md", *(root / "docs").glob("*.md")]
    named = {
        script for page in pages for script in re.findall(r"python (benchmarks/\w+\.py)", page.read_text())
    }
    assert {f"benchmarks/{path.name}" for path in SCRIPTS} <= named
    assert all((root / script).is_file() for script in named)
