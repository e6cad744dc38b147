"""`alexnet-exp benchmark`: what it measures, writes and refuses; on maps so small that it takes a moment."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alexnet_exp import zoo
from alexnet_exp.cli import main
from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs import benchmark_lrn, timing

NARROW = {f"conv{i}": {"out_channels": 4} for i in range(1, 6)}
CPU = ["device=cpu", "compile=false", "repeats=1"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measure small maps and narrow networks, in a folder of the test's own."""

    def narrow(name: str, **overrides: Any) -> nn.Module:
        heads = {"fc6": {"out_features": 8}, "fc7": {"out_features": 8}}
        return zoo.create_model(name, features=NARROW, classifier=heads, **overrides)

    monkeypatch.setattr(benchmark_lrn, "MAPS", ((6, 5), (8, 3)))
    monkeypatch.setattr(benchmark_lrn, "create_model", narrow)
    monkeypatch.chdir(tmp_path)


def test_lrn_writes_a_row_for_every_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["lrn", *CPU, "batch_size=2", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(["benchmark", *arguments]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["command"].startswith("alexnet-exp benchmark lrn device=cpu")
    assert (result["settings"]["repeats"], result["settings"]["batch_size"]) == (1, 2)
    assert {"git", "versions", "hardware"} <= result.keys()
    rows = {(row["what"], row["case"]): row for row in result["rows"]}
    step = "training step, alexnet_lrn, batch 2"
    alone = [
        (f"LRN alone (2, {c}, {s}, {s})", case) for c, s in ((6, 5), (8, 3)) for case in ("ours", "torch")
    ]
    assert list(rows) == [*alone, *((step, case) for case in ("without LRN", "with ours", "with torch's"))]
    for row in rows.values():
        assert row["median_seconds"] == row["least_seconds"] > 0
        assert (row["sd_seconds"], row["n"]) == (0.0, 1)
    for what, case in alone:
        slow = rows[what, "torch"]["median_seconds"]
        assert rows[what, case]["ratio"] == pytest.approx(slow / rows[what, case]["median_seconds"])
    base = rows[step, "without LRN"]["median_seconds"]
    assert rows[step, "with ours"]["ratio"] == pytest.approx(rows[step, "with ours"]["median_seconds"] / base)
    output = capsys.readouterr().out
    assert output.count("without LRN") == 1
    assert output.rstrip().endswith("result.json")


def test_several_runs_of_the_command_have_directories_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        assert main(["benchmark", "lrn", *CPU, "batch_size=1"]) == 0
    assert len(list(tmp_path.rglob("result.json"))) == 2


def test_the_networks_compared_differ_in_their_lrn_alone() -> None:
    ours = benchmark_lrn.create_model("alexnet_lrn", num_classes=10)
    theirs = benchmark_lrn._with_torch_lrn(benchmark_lrn.create_model("alexnet_lrn", num_classes=10))
    theirs.load_state_dict(ours.state_dict())
    norms = [module for module in theirs.modules() if isinstance(module, nn.LocalResponseNorm)]
    assert len(norms) == 2
    assert not any(isinstance(module, LocalResponseNorm) for module in theirs.modules())
    images = torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def test_cases_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert times["a"] == {
        "median_seconds": 3,
        "sd_seconds": statistics.stdev([1, 5, 3]),
        "least_seconds": 1,
        "n": 3,
    }
    assert (times["b"]["median_seconds"], times["b"]["least_seconds"]) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lrrn"], r"what='lrrn' is not possible: it must be lrn"),
        (["device=gpu"], r"device='gpu' is not possible: it must be one of auto, cpu, cuda"),
        (["repeats=0"], r"repeats=0 is not possible: it must be a whole number, 1 or more"),
        (["repeats=x"], r"repeats='x' is not possible"),
        (["repeats=true"], r"repeats=True is not possible"),
        (["batch_size=0"], r"batch_size=0 is not possible"),
        (["threads=abc"], r"threads='abc' is not possible: it must be a whole number, 1 or more, or null"),
        (["compile=7"], r"compile=7 is not possible: it must be true or false"),
        (["lrn", "again"], r"'again' is no setting with a value"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert main(["benchmark", *arguments]) == 1
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.search(message, line)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_device_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["benchmark", "device=cuda"]) == 1
    assert "device=cuda is not here: say device=cpu." in capsys.readouterr().err


def test_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main(["benchmark", "lrn", *CPU, "batch_size=1", "threads=3"]) == 0
    assert asked == [3]
