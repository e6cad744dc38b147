"""`alexnet-exp benchmark`: what it measures, writes and refuses, on tiny workloads."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.cli import main
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark import command as benchmark
from alexnet_exp.runs.benchmark import startup as benchmark_startup
from alexnet_exp.runs.benchmark import step as benchmark_step
from alexnet_exp.runs.benchmark import timing

NET = [
    "model=alexnet_cifar",
    *(f"model.features.conv{i}.out_channels=4" for i in range(1, 6)),
    "data=digits",
    "data.batch_size=8",
    "logger=none",
    "device=cpu",
    "repeats=2",
    "steps=2",
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(benchmark_step._MATRIX, "cpu", 64)
    monkeypatch.setenv("ALEXNET_DATA_DIR", str(tmp_path / "no data"))
    monkeypatch.setattr(
        "alexnet_exp.runs.benchmark.timing._LEAST", math.inf
    )  # other tests run at the same time


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run the command and return its result."""
    assert main(["benchmark", *arguments, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    return json.loads((tmp_path / "run" / "result.json").read_text())


def rows_of(result: dict[str, Any], start: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["what"].startswith(start)]


def check_ratios(rows: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    """Check that ratios are those of the medians."""
    for row in rows:
        assert row["median_seconds"] > 0
        assert row["ratio"] == pytest.approx(reference["median_seconds"] / row["median_seconds"])


def test_steps_are_compared_in_all_combinations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(tmp_path, "step", *NET, "step.precision=[32-true,bf16-mixed]", "step.batch_size=[4,8]")
    for size in (4, 8):
        rows = rows_of(result, f"step: alexnet_cifar, digits at 32, batch {size}")
        assert [row["case"] for row in rows] == [
            f"{precision} {layout}"
            for precision in ("32-true", "bf16-mixed")
            for layout in ("contiguous", "channels_last")
        ]
        check_ratios(rows, rows[0])
        for row in rows:
            assert row["n"] == 2
            assert row["images_per_second"] == pytest.approx(size / row["median_seconds"])
            assert row["peak_share"] == pytest.approx(row["flops_per_second"] / row["matmul_peak"])
    wait = rows_of(result, "wait for data")
    check_ratios(wait, wait[0])
    assert wait[1]["input_share"] == pytest.approx(max(0.0, 1 - wait[1]["ratio"]))
    assert (tmp_path / "run" / "figures" / "benchmark.png").stat().st_size > 1000
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 80


def test_flops_match_the_layer_table(tmp_path: Path) -> None:
    result = measured(tmp_path, "step", *NET, "step.precision=32-true", "step.layout=contiguous")
    (row,) = rows_of(result, "step:")
    # By hand, from conv1 (11x11x3 -> 4 channels at 8x8) on: positions, inputs x kernel, outputs.
    layers = [(64, 3 * 121, 4), (16, 4 * 25, 4), (4, 4 * 9, 4), (4, 4 * 9, 4), (4, 4 * 9, 4), (1, 4, 10)]
    multiply_adds = sum(positions * inputs * outputs for positions, inputs, outputs in layers)
    assert row["flops_per_second"] == pytest.approx(6 * multiply_adds * row["images_per_second"])


def test_startup_is_timed_in_new_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    def run(command: list[str]) -> None:
        started.append(command)
        for argument in command:
            if found := re.search(r"path: '([^']+)'", argument):
                Path(found[1]).write_text(str(benchmark_startup.time.time()))

    monkeypatch.setattr(benchmark_startup, "_run", run)
    result = measured(tmp_path, "startup", *NET)
    cases = {row["case"]: row for row in result["rows"]}
    assert {"train --help", "tab completion", "import alexnet_exp", "first step of train"} <= cases.keys()
    assert all(row["n"] == 2 for row in cases.values())
    first = [command for command in started if any("first_step" in argument for argument in command)]
    assert len(first) == 3, "one of them warms up"
    assert {"model=alexnet_cifar", "data=digits"} <= set(first[0])


def test_a_command_that_fails_is_an_error() -> None:
    code = "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"
    with pytest.raises(UserError, match="failed with exit code 3: no such thing"):
        benchmark_startup._run([sys.executable, "-c", code])


def test_several_measurements_run_in_one_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measuring(kind: str) -> Any:
        times = {"a": timing.summary([2.0, 4.0]), "b": timing.summary([1.0])}
        return lambda subject: timing.rows(kind, times, 6, "a")

    for kind in benchmark.MEASUREMENTS:
        monkeypatch.setitem(benchmark.MEASUREMENTS, kind, measuring(kind))
    for arguments, kinds in (
        (["startup,step"], ["step", "startup"]),
        (["what=[startup]"], ["startup"]),
        ([], ["step", "startup"]),
    ):
        result = measured(tmp_path, *arguments)
        assert list(dict.fromkeys(row["what"] for row in result["rows"])) == kinds
    assert {"git", "versions", "hardware", "command"} <= result.keys()
    (a, b) = result["rows"][:2]
    assert (a["median_seconds"], a["images_per_second"], a["ratio"], b["ratio"]) == (3.0, 2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        ("lrn lrn.batch_size=8 repeats=3", "python benchmarks/lrn.py lrn.batch_size=8 repeats=3"),
        ("what=overhead data=cifar10", "python benchmarks/overhead.py data=cifar10"),
        ("step,data model=alexnet", "python benchmarks/data.py model=alexnet"),
        ("[lrn,data]", "python benchmarks/data.py and python benchmarks/lrn.py"),
        ("baseline=readme workers=4", "python benchmarks/baseline.py workers=4"),
        ("lrn.compile=false", "python benchmarks/lrn.py lrn.compile=false"),
        ("step workers=4", "python benchmarks/data.py workers=4"),
    ],
)
def test_former_measurements_point_to_their_scripts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: str, commands: str
) -> None:
    assert main(["benchmark", *arguments.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.endswith(f": run {commands}")
    for script in re.findall(r"benchmarks/\w+\.py", commands):
        assert (Path(__file__).parents[2] / script).is_file()
    assert not list(tmp_path.iterdir())


def test_a_recorded_config_with_former_settings_still_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = timing.rows("step", {"a": timing.summary([1.0])})
    monkeypatch.setitem(benchmark.MEASUREMENTS, "step", lambda subject: rows)
    config = plain(compose("benchmark", ["what=step"]))
    former = {"baseline": "none", "workers": 2, "lrn": {"batch_size": 32, "compile": True}}
    assert benchmark.benchmark({**config, **former}, [], tmp_path / "run", "benchmark step")["rows"] == rows


def test_cases_alternate_and_the_median_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    durations = {"a": iter([9, 9, 1, 5, 3]), "b": iter([9, 9, 2, 2, 8])}  # two of each warm up

    def case(name: str) -> Any:
        def run() -> None:
            order.append(name)
            clock[0] += next(durations[name])

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    times = timing.alternate({"a": case("a"), "b": case("b")}, repeats=3, device="cpu")
    assert "".join(order) == "aabb" + "ababab"
    sd = statistics.stdev([1, 5, 3])
    assert times["a"] == {"median_seconds": 3, "sd_seconds": sd, "least_seconds": 1, "n": 3}
    assert (times["b"]["median_seconds"], times["b"]["least_seconds"]) == (2, 2)


def test_a_case_that_does_not_fit_in_memory_is_reported_and_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    fits = timing.rows("step", {"small": timing.summary([0.5])}, 4)
    rows = [*fits, {"what": "step", "case": "large", "error": "out of memory"}]
    benchmark.print_rows(rows, Console())
    assert re.search(r"large +out of memory", capsys.readouterr().out)
    benchmark.draw_rows(rows, tmp_path / "figures" / "b.png")
    assert (tmp_path / "figures" / "b.png").exists()


@pytest.mark.parametrize(("seconds", "said"), [([0.5], ""), ([0.5, 1.5], "71%")])
def test_a_single_repeat_has_no_spread(
    capsys: pytest.CaptureFixture[str], seconds: list[float], said: str
) -> None:
    from rich.console import Console

    benchmark.print_rows(timing.rows("step", {"case": timing.summary(seconds)}), Console())  # sd 0.707 of 1.0
    out = capsys.readouterr().out
    assert ("+-" in out) == ("%" in out) == bool(said)
    assert said in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lrrn"], r"invalid what='lrrn': expected one of all, step, startup"),
        (["step,lrrn"], r"invalid what=\['step', 'lrrn'\]: expected"),
        (["device=gpu"], r"invalid device='gpu': expected one of auto, cpu, cuda"),
        (["repeats=0"], r"invalid repeats=0: expected an integer >= 1"),
        (["repeats=x"], r"invalid repeats='x': expected"),
        (["repeats=true"], r"invalid repeats=True: expected"),
        (["threads=abc"], r"invalid threads='abc': expected an integer >= 1, or null"),
        (["step.compile=7"], r"invalid step.compile=7: expected true or false"),
        (["step.precision=[32-true,int4]"], r"invalid step.precision=\['32-true', 'int4'\]: expected"),
        (["step.batch_size=most"], r"invalid step.batch_size='most': expected .*or auto"),
        (["repeat=3"], r"repeat"),
        (["optimizer.lr=-1"], r"invalid optimizer.lr=-1: expected"),
        (["resume=somewhere"], r"leave out resume= and ckpt="),
        (["step", "again"], r"'again' is not KEY=VALUE"),
    ],
)
def test_an_error_in_settings_is_one_line_and_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert main(["benchmark", *arguments]) == 1
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.search(message, line)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unavailable_device_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["benchmark", "device=cuda"]) == 1
    assert "device=cuda: no GPU was found; set device=cpu." in capsys.readouterr().err
