"""Settings and data that a benchmark cannot measure with: none of them costs the figures of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from alexnet_exp.errors import UserError
from alexnet_exp.runs import benchmark, benchmark_loop, benchmark_startup, timing
from alexnet_exp.runs.benchmark_loop import variant
from alexnet_exp.runs.benchmark_subject import Subject


def subject(tmp_path: Path, *overrides: str) -> Subject:
    settings = ["model=alexnet_cifar", "logger=none", *overrides]
    return Subject({"repeats": 2, "steps": 3}, settings, "cpu", tmp_path)


def test_a_kind_that_cannot_be_measured_leaves_the_others_their_figures(tmp_path: Path) -> None:
    def refused(subject: Subject) -> list[timing.Row]:
        raise UserError("Not here.")

    def measured(subject: Subject) -> list[timing.Row]:
        return timing.rows("startup", {"a": timing.summary([1.0])})

    one = subject(tmp_path)
    rows = benchmark._measure({"step": refused, "startup": measured}, one, Console(quiet=True))
    assert [row["what"] for row in rows] == ["startup"]
    assert one.notes == ["step is not measured: Not here."]
    with pytest.raises(UserError, match=r"Not here\."):
        benchmark._measure({"step": refused}, one, Console(quiet=True))


@pytest.mark.parametrize(
    ("settings", "here"),
    [
        (["data=digits"], True),
        (["data=cifar10", "paths.data_dir=nowhere"], False),
        (["data=folder", "data.root=synthetic"], False),
        (["data=folder", "data.root=photographs"], True),
    ],
)
def test_a_first_step_is_timed_only_on_images_that_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: list[str], here: bool
) -> None:
    started: list[list[str]] = []

    def run(command: list[str]) -> None:
        started.append(command)
        (tmp_path / "first_step").write_text(str(benchmark_startup.time.time()))

    monkeypatch.setattr(benchmark_startup, "_run", run)
    one = subject(tmp_path, *settings)
    cases = [row["case"] for row in benchmark_startup.measure_startup(one)]
    assert ("first step of train" in cases, one.notes == []) == (here, here)
    trained = [command for command in started if "test=false" in command]
    assert len(trained) == (3 if here else 0)
    assert all({"trainer.accelerator=cpu", *settings} <= set(command) for command in trained)


def test_relative_paths_of_a_first_step_start_where_the_user_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import pathlib; pathlib.Path('here').touch()"
    benchmark_startup._run([benchmark_startup.sys.executable, "-c", code])
    assert (tmp_path / "here").exists()


@pytest.mark.parametrize(("compiled", "resets"), [(True, 1), (False, 0)])
def test_kernels_are_made_for_the_size_that_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: bool, resets: int
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    monkeypatch.setattr(benchmark_loop, "compile_network", lambda model, how: calls.append("compile"))
    variant(subject(tmp_path, "data=digits", "compile=false").fit(), "32-true", "contiguous", compiled)
    assert calls[-1 - resets :] == ["reset"] * resets + ["compile"]
