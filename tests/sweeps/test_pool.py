from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alexnet_exp import cli
from alexnet_exp.errors import UserError
from alexnet_exp.sweeps import job as job_module
from alexnet_exp.sweeps.job import FAILED, FINISHED, WAITING, Job
from alexnet_exp.sweeps.launch import Launcher, Pool
from alexnet_exp.sweeps.resources import Resources
from alexnet_exp.sweeps.table import Table
from alexnet_exp.training.launch import ranks as devices
from tests.processes import catches

LAUNCHER = Launcher(max_parallel="auto", threads=2, retries=0, on_failure="continue")
STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "PROGRAM", [sys.executable, str(STAND_IN)])


def made(folder: Path, *overrides: list[str]) -> list[Job]:
    return [Job(i, own, folder / str(i)) for i, own in enumerate(overrides)]


def run(jobs: list[Job], slots: int = 1, groups: list[tuple[str, ...]] | None = None, **settings: Any) -> str:
    """Run the jobs, and return what was printed."""
    printed = io.StringIO()
    table = Table(jobs, Console(file=printed, width=200, soft_wrap=True))
    Pool(jobs, replace(LAUNCHER, **settings), Resources(slots, 2, groups or [], "sweep"), table).run()
    return printed.getvalue()


def starts(job: Job) -> list[tuple[str, float]]:
    lines = (job.directory / "starts").read_text().splitlines()
    return [(kind, float(at)) for kind, at in map(str.split, lines)]


def test_all_jobs_run_and_their_commands_are_shown(tmp_path: Path):
    jobs = made(tmp_path, ["seed=1"], ["seed=2"])
    printed = run(jobs)
    assert [job.state for job in jobs] == [FINISHED, FINISHED]
    assert f"job 1 starts: alexnet-exp train seed=2 hydra.run.dir={tmp_path}/1" in printed
    assert "job 0 finished" in printed


def test_the_output_about_jobs_is_redacted(tmp_path: Path):
    secrets = [
        ["storage=s3://me:one-of-two@host", "seed=1"],
        ["storage=s3://me:two-of-two@host", "seed=2"],
    ]
    jobs = made(tmp_path, *secrets)
    printed = run(jobs)
    assert "seed=2" in printed and "s3://me:***@host" in printed
    assert "of-two" not in printed
    assert starts(jobs[0]) and "of-two" in jobs[0].command  # the command itself is not redacted
    table = Console(file=io.StringIO(), record=True, width=200)
    table.print(Table(jobs, table)._render())
    assert "seed=2" in (shown := table.export_text()) and "of-two" not in shown


def test_the_last_output_of_a_job_is_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "by nothing")
    jobs = made(tmp_path, ["ends=raises"])
    printed = run(jobs)
    assert jobs[0].why == "ZeroDivisionError: [redacted]"  # what the sweep's own error quotes
    assert "job 0 failed: ZeroDivisionError: [redacted]" in printed and "by nothing" not in printed


def test_a_multiline_key_is_redacted_from_a_jobs_last_output(tmp_path: Path):
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----"
    (tmp_path / "output.log").write_text(f"before\n{key}\n\nafter\n")
    assert Job(0, [], tmp_path).last_lines(3) == ["before", "[redacted]", "after"]


def test_jobs_wait_for_a_free_slot(tmp_path: Path):
    jobs = made(tmp_path, *[["seconds=0.6", f"seed={i}"] for i in range(4)])
    run(jobs, slots=2)
    began = sorted(starts(job)[0][1] for job in jobs)
    assert began[1] - began[0] < 0.5
    assert began[2] - began[0] > 0.5


def test_each_kind_of_failure_is_reported_and_other_jobs_continue(tmp_path: Path):
    jobs = made(tmp_path, ["ends=raises"], ["ends=nan"], ["ends=killed"], ["ends=well"])
    printed = run(jobs, slots=4)
    assert [job.state for job in jobs] == [FAILED, FAILED, FAILED, FINISHED]
    assert [job.why for job in jobs[:3]] == [
        "ZeroDivisionError: by nothing", "The loss is not finite at step 4.", "killed by SIGKILL",
    ]  # fmt: skip
    assert 'raise ZeroDivisionError("by nothing")' in printed  # the last lines of its output


def test_a_sweep_can_stop_at_the_first_failure(tmp_path: Path):
    jobs = made(tmp_path, ["ends=nan"], ["ends=well"])
    run(jobs, on_failure="stop")
    assert [job.state for job in jobs] == [FAILED, WAITING]
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize(
    ("retries", "state", "kinds"), [(1, FINISHED, ["first", "resume"]), (0, FAILED, ["first"])]
)
def test_a_killed_job_is_resumed_up_to_retries_times(
    tmp_path: Path, retries: int, state: str, kinds: list[str]
):
    (job,) = made(tmp_path, ["ends=killed_once"])
    run([job], retries=retries)
    assert job.state == state
    assert [kind for kind, _ in starts(job)] == kinds


def test_a_job_that_fails_on_its_own_is_not_retried(tmp_path: Path):
    (job,) = made(tmp_path, ["ends=nan"])
    run([job], retries=3)
    assert len(starts(job)) == 1


def test_jobs_get_their_threads_and_a_group_of_gpus_each(tmp_path: Path):
    jobs = made(tmp_path, *[["seconds=0.3", f"seed={i}"] for i in range(3)])
    run(jobs, slots=2, groups=[("0", "1"), ("2", "3")])
    environments = [json.loads((job.directory / "environment.json").read_text()) for job in jobs]
    assert {e["OMP_NUM_THREADS"] for e in environments} == {"2"}
    visible = [e["CUDA_VISIBLE_DEVICES"] for e in environments]
    assert sorted(visible[:2]) == ["0,1", "2,3"]
    assert visible[2] in visible[:2]
    assert {e["WANDB_RUN_GROUP"] for e in environments} == {"sweep"}


def test_finished_jobs_are_not_run_again(tmp_path: Path):
    jobs = made(tmp_path, ["seed=1"], ["seed=2"])
    jobs[0].state = FINISHED
    run(jobs)
    assert not (tmp_path / "0").exists()
    assert jobs[1].state == FINISHED


def test_ctrl_c_ends_all_jobs_within_five_seconds(tmp_path: Path):
    jobs = made(tmp_path, ["seconds=60"], ["seconds=60"])
    table = Table(jobs, Console(file=io.StringIO()))
    pool = Pool(jobs, LAUNCHER, Resources(2, 1, [], "sweep"), table)

    def interrupt() -> None:
        if all(job.process is not None for job in jobs):
            raise KeyboardInterrupt

    pool.table.refresh = interrupt  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.run()
    assert time.monotonic() - began < 5
    assert all(job.process is not None and job.process.poll() is not None for job in jobs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_started_in_the_background_by_a_script_can_be_interrupted(tmp_path: Path, number: int):
    (job,) = jobs = made(tmp_path, ["seconds=3"])
    table = Table(jobs, Console(file=io.StringIO()))
    pool = Pool(jobs, LAUNCHER, Resources(1, 1, [], "sweep"), table)
    table.refresh = lambda: os.kill(os.getpid(), number)  # type: ignore[method-assign]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does there
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert job.process is not None and job.process.returncode == -signal.SIGINT


def test_jobs_save_when_the_sweep_itself_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise UserError("No space left")

    monkeypatch.setattr(job_module, "remember", full)
    (job,) = jobs = made(tmp_path, ["seconds=60"])
    with pytest.raises(UserError, match="No space left"):
        run(jobs)
    assert job.process is not None and job.process.returncode == -signal.SIGINT  # not SIGKILL


def test_a_job_whose_process_could_not_be_started_does_not_count_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_module, "PROGRAM", [str(tmp_path / "missing")])
    (job,) = jobs = made(tmp_path, ["seed=1"])
    with pytest.raises(FileNotFoundError):
        run(jobs)
    assert job.state == WAITING


def test_the_error_of_an_earlier_start_is_not_reported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (job,) = jobs = made(tmp_path, ["seed=1"])
    job.directory.mkdir()
    (job.directory / "result.json").write_text('{"status": "failed", "error": "of the first start"}')
    program = [sys.executable, "-S", "-c", "raise SystemExit('The data is gone.')"]
    monkeypatch.setattr(job_module, "PROGRAM", program)
    assert "    The data is gone." in run(jobs)
    assert job.why == "The data is gone."


def test_a_job_that_inherits_an_ignored_sigterm_can_still_be_stopped(monkeypatch: pytest.MonkeyPatch):
    found: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["job", "1", "seed=1"])
    monkeypatch.setattr(devices, "die_with_parent", lambda parent, number: None)
    monkeypatch.setattr(cli, "main", lambda words: found.append(signal.getsignal(signal.SIGTERM)) or 0)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert job_module.main() == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIG_DFL]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_job_dies_with_the_sweep(tmp_path: Path):
    # The real program: it composes settings for a second or more before anything else.
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom alexnet_exp.sweeps.job import Job\n"
        "job = Job(0, ['data=digits', 'trainer=cpu'], Path(sys.argv[1]))\njob.start(os.environ)\n"
        "print(job.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    sweep = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "0")], stdout=subprocess.PIPE, text=True
    )
    assert sweep.stdout is not None
    child = int(sweep.stdout.readline())
    sweep.stdout.close()
    # The handler is set right after the job has asked to die with its parent.
    _wait_until(lambda: catches(child, signal.SIGUSR1))
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    _wait_until(lambda: not _is_alive(child))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_until(true: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
