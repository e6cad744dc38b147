"""What holds the parts of benchmarks/gpu.py together; `--rehearse` runs the parts themselves on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest


def python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Let a shell script take the place of Python."""
    (folder / "python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_all_parts_fit_into_nine_minutes() -> None:
    assert sum(gpu.LIMITS.values()) <= 540
    assert gpu.LIMITS.keys() == gpu.PARTS.keys()


def test_a_part_that_takes_too_long_keeps_what_it_has_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python(monkeypatch, tmp_path, "echo 'RESULT {\"runs\": []}'; echo 'RESULT {\"runs\": [1]}'; sleep 60")
    monkeypatch.setitem(gpu.LIMITS, "fast", 1)
    result = gpu.run_part("fast", rehearse=False)
    assert result["status"] == "stopped at its limit of 1 s"
    assert result["found"] == {"runs": [1]}
    assert result["seconds"] < 30


def test_a_part_that_fails_shows_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python(monkeypatch, tmp_path, "echo 'no such device' >&2; exit 3")
    result = gpu.run_part("ceilings", rehearse=True)
    assert (result["status"], result["found"]) == ("failed (3)", None)
    assert "no such device" in result["output"]


FOUND: dict[str, Any] = {
    "ceilings": {
        "device": "a GPU", "versions": {"torch": "2.15.0"}, "matmul_tflops": 712.0, "copy_gb_per_second": 3.9e3,
        "launch_microseconds": 2.5,
    },
    "tests": {"summary": "1 passed", "failed": [], "warnings": []},
    "kernels": {"forms": {"compile=lrn": {"milliseconds": 2.0, "kernels": [["a<b>", 3, 0.5]]}}, "lrn_share": 0.1},
    "rates": {"compile=lrn, batch 512": 40000.0},
    "overhead": {
        "rows": [{
            "what": "overhead", "case": "Trainer", "median_seconds": 0.001, "sd_seconds": 1e-4, "n": 5,
            "overhead": 0.04,
        }],
        "notes": ["a note"],
    },
    "fast": {"runs": [{"seed": 0, "test_accuracy": 0.9, "training_seconds": 14.0}]},
    "resnet18": None,
}  # fmt: skip


def test_parts_add_up_to_one_file_and_one_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_part(part: str, rehearse: bool) -> dict[str, Any]:
        lost = FOUND[part] is None
        more = {"output": "what it said"} if lost else {}
        status = "failed (1)" if lost else "done"
        return {"status": status, "seconds": 1.0, "limit": 60, "found": FOUND[part], **more}

    monkeypatch.setattr(gpu, "run_part", run_part)
    out = ["--out", str(tmp_path / "out"), "--rehearse"]
    assert gpu.main(["--parts", "ceilings", "tests", *out]) == 0
    assert gpu.main(["--parts", *list(FOUND)[2:], *out]) == 1
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {part: result["found"] for part, result in results.items()} == FOUND
    text = (tmp_path / "out" / "gpu.html").read_text(encoding="utf-8")
    assert "A rehearsal on CPU" in text
    for part in (
        "712 TFLOP/s",
        "<code>a&lt;b&gt;</code>",
        "1 passed",
        "a note",
        "what it said",
        "90.00% in 14.0 s (n = 1)",
    ):
        assert part in text, part


def test_goals_are_met_from_the_figure_on() -> None:
    goals = {
        what: (text, reached) for what, _, text, reached in gpu.goals({k: v or {} for k, v in FOUND.items()})
    }
    assert goals == {
        "alexnet_lrn at 227, images/s": ("40,000", True),
        "share of LRN in a step": ("10.0%", True),
        "Trainer over a hand-written loop": ("+4.0%", False),
        "cifar10_fast": ("90.00% in 14.0 s (n = 1)", True),
        "cifar10_fast_resnet18": ("–", None),
    }
    assert {reached for *_, reached in gpu.goals({})} == {None}
