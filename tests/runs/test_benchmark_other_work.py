"""CPU time that other processes take during a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from alexnet_exp.runs.benchmark import command as benchmark
from alexnet_exp.runs.benchmark import timing
from alexnet_exp.runs.benchmark.timing import OtherWork
from tests.runs.measured_runs import subject

TICKS = os.sysconf("SC_CLK_TCK")


def write(proc: Path, machine: int, processes: dict[int, tuple[int, int]]) -> None:
    """Write a fake /proc: the ticks of all cores, and for each process its parent and ticks."""
    proc.mkdir(exist_ok=True)
    half = machine // 2  # user and system; the rest are nice, idle, iowait, irq, softirq, steal
    (proc / "stat").write_text(
        f"cpu  {half} 0 {machine - half} 99999 9999 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    )
    for pid, (parent, ticks) in processes.items():
        (proc / str(pid)).mkdir(exist_ok=True)
        numbers = f"{ticks - 3} 1 1 1"  # utime, stime, and those of exited children
        (proc / str(pid) / "stat").write_text(f"{pid} (a) b (c) S {parent} 0 0 0 0 0 0 0 0 0 {numbers} 20 0")


def test_own_processes_are_not_counted_as_other_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    own, child, grandchild, stranger = os.getpid(), 10**7, 10**7 + 1, 10**7 + 2
    write(tmp_path / "p", 1000, {own: (1, 10), child: (own, 10), grandchild: (child, 10), stranger: (1, 500)})
    with OtherWork(tmp_path / "p") as other:
        clock[0] += 10
        spent = 10 * TICKS
        processes = {own: (1, 10 + spent), child: (own, 10 + spent), grandchild: (child, 10 + spent)}
        write(tmp_path / "p", 1000 + 3 * spent + spent // 2, processes)
    assert other.cores == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("cores", "threads", "disturbs"), [(0.5, 2, True), (0.05, 2, False), (1.5, 2, True), (0.5, 1, False)]
)
def test_other_work_disturbs_when_it_competes_for_cores(
    monkeypatch: pytest.MonkeyPatch, cores: float, threads: int, disturbs: bool
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    other = OtherWork()
    other.cores = cores
    assert other.disturbs(threads) is disturbs


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_a_busy_child_process_is_counted_as_our_own() -> None:
    burn = [sys.executable, "-c", "import time\nend = time.time() + 1.2\nwhile time.time() < end: pass"]
    with OtherWork() as other:
        spent = time.process_time() + sum(os.times()[2:4])
        subprocess.run(burn, check=True)
        spent = time.process_time() + sum(os.times()[2:4]) - spent
        everything = timing._ticks_of_tree(Path("/proc"), 1) / TICKS
    # Whatever other processes do, our own second is not counted as theirs.
    assert 0 <= other.cores <= (os.cpu_count() or 1) - spent / 1.5 + 0.2
    assert everything >= spent


def test_a_disturbed_measurement_is_repeated_and_the_quieter_one_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(others: list[float]) -> tuple[list[dict[str, object]], list[str]]:
        left, taken = iter(others), iter(range(9))
        monkeypatch.setattr(OtherWork, "__exit__", lambda self, *error: setattr(self, "cores", next(left)))
        monkeypatch.setattr(OtherWork, "disturbs", lambda self, threads: self.cores > 0.1)
        one = subject(tmp_path)
        measure = lambda subject: [{"what": "step", "case": str(next(taken)), "median_seconds": 1.0}]  # noqa: E731
        return benchmark._measure({"step": measure}, one, Console(quiet=True)), one.notes

    for others, case in (([0.9, 0.3], "1"), ([0.3, 0.9], "0")):
        rows, notes = measured(others)
        assert [row["case"] for row in rows] == [case]
        assert notes[0].startswith(f"The machine was busy: other processes used {others[0]} of ")
        assert "quieter one (0.3)" in notes[0]
    rows, notes = measured([0.0])
    assert (len(rows), notes) == (1, [])
