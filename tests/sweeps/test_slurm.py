"""The launcher of job arrays, with fakes for SLURM commands."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from alexnet_exp import cli
from alexnet_exp.config.compose import compose
from alexnet_exp.errors import UserError
from alexnet_exp.sweeps import job, slurm
from alexnet_exp.sweeps import slurm as slurm_queue
from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, WAITING, Job
from alexnet_exp.sweeps.slurm import Shape, Watch, _submit, check_settings, common_shape, launch, script
from alexnet_exp.sweeps.table import Table
from hydra_plugins.alexnet_exp_plugins import SlurmConfig

SETTINGS: dict[str, Any] = {
    "max_parallel": None, "time": None, "partition": None, "gpus_per_node": None, "cpus_per_task": 2,
    "signal_seconds": 90, "sbatch": [], "setup": [], "wait": False,
}  # fmt: skip


def composed(overrides: list[str]) -> DictConfig:
    return compose("train", overrides)


def made(folder: Path, count: int) -> list[Job]:
    return [Job(i, [f"seed={i}"], folder / str(i)) for i in range(count)]


def options(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    split = (line.partition("=") for line in lines)
    return {name: shlex.split(value)[0] if value else "" for name, _, value in split}


def finish(job: Job, status: str = "finished", error: str | None = None) -> None:
    job.directory.mkdir(parents=True, exist_ok=True)
    (job.directory / "result.json").write_text(json.dumps({"status": status, "error": error, "metrics": {}}))


def test_tasks_per_node_follow_the_devices_of_the_trainer():
    typed = ["trainer=ddp_cpu", "trainer.num_nodes=3"]
    assert common_shape([[*typed, "seed=1"], [*typed, "seed=2"]], composed) == Shape(3, 2, False)
    assert common_shape([["trainer=gpu", "trainer.devices=4"]], composed) == Shape(1, 4, True)


@pytest.mark.parametrize(
    "swept", [("trainer.devices=1", "trainer.devices=2"), ("trainer=cpu", "trainer=ddp_cpu")]
)
def test_swept_devices_are_refused(swept: tuple[str, str]):
    with pytest.raises(UserError, match=r"cannot sweep over trainer\.devices or trainer\.num_nodes"):
        common_shape([["trainer=cpu", each] for each in swept], composed)


def test_slurm_rejects_devices_auto():
    with pytest.raises(UserError, match=r"needs a number of devices, not trainer\.devices=auto"):
        common_shape([["trainer=ddp"]], composed)


def test_the_script_requests_what_was_set(tmp_path: Path):
    settings = {
        **SETTINGS, "max_parallel": 2, "time": "1-00:00:00", "partition": "a100", "signal_seconds": 120,
        "sbatch": ["--account=lab", "#SBATCH --mem=64G"], "setup": ["module load cuda"],
    }  # fmt: skip
    text = script(
        [*made(tmp_path, 3), Job(7, [], tmp_path / "7")],
        check_settings(settings),
        Shape(2, 4, True),
        tmp_path,
    )
    asked = options(text)
    assert asked == {
        "job-name": f"alexnet_exp_{tmp_path.name}", "array": "0-2,7%2", "nodes": "2", "ntasks-per-node": "4",
        "cpus-per-task": "2", "gpus-per-node": "4", "time": "1-00:00:00", "partition": "a100",
        "signal": "USR1@120", "open-mode": "append", "output": f"{tmp_path}/%a/output.log", "requeue": "",
        "account": "lab", "mem": "64G",
    }  # fmt: skip
    assert text.index("module load cuda") < text.index("\nsrun ")


@pytest.mark.parametrize(
    ("gpus", "on_gpus", "asked"), [(None, False, None), (0, True, None), ("a100:4", True, "a100:4")]
)
def test_gpus_are_requested_unless_on_cpu(tmp_path: Path, gpus: Any, on_gpus: bool, asked: str | None):
    text = script(
        made(tmp_path, 1), check_settings({**SETTINGS, "gpus_per_node": gpus}), Shape(1, 4, on_gpus), tmp_path
    )
    assert options(text).get("gpus-per-node") == asked


def test_each_task_runs_or_resumes_its_own_job(tmp_path: Path):
    jobs = made(tmp_path, 2)
    jobs[1].overrides = ["model.features.conv2.then=[relu, lrn]", "logger.wandb.notes='a $b'"]
    jobs[1].flags = ["--config-dir", "my conf"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    text = script(jobs, check_settings(SETTINGS), Shape(1, 1, False), tmp_path)
    ran = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": path, "SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = ran.stdout.splitlines()
    assert words[words.index("train") + 1 :] == [
        "--config-dir", "my conf", *jobs[1].overrides, f"resume={tmp_path / '1'}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (cli.__file__, ["alexnet-exp", "train"]),  # python -m
        (job.__file__, ["alexnet-exp", "train"]),
        ("/bin/alexnet-exp", ["alexnet-exp", "train"]),
        ("elsewhere/train.py", ["python", "train.py"]),
    ],
)
def test_the_recorded_command_is_what_a_user_would_type(
    monkeypatch: pytest.MonkeyPatch, program: str, command: list[str]
):
    monkeypatch.setattr("sys.argv", [program])
    assert cli._program() == command


def test_the_page_names_every_setting_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    settings = {field.name for field in dataclasses.fields(SlurmConfig)} - {"_target_"}
    assert set(re.findall(r"hydra\.launcher\.(\w+)", page)) == settings == set(SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_parallel": 0}, "max_parallel=0: expected"),
        ({"cpus_per_task": "many"}, "cpus_per_task='many': expected"),
        ({"sbatch": ["account=lab"]}, "sbatch='account=lab': expected an option"),
    ],
)
def test_invalid_settings_are_rejected(wrong: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        check_settings({**SETTINGS, **wrong})


class Slurm:
    """A fake sbatch and squeue: ids for scripts, states for tasks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scripts: list[str] = []
        self.rows: list[str] | None = []
        self.refuses = ""
        monkeypatch.setattr(slurm_queue, "_call", self.asked)

    def asked(self, *command: str, **_: Any) -> subprocess.CompletedProcess[str]:
        if command[0] == "sbatch":
            self.scripts.append(Path(command[-1]).read_text())
            return subprocess.CompletedProcess(
                command, bool(self.refuses), f"{100 + len(self.scripts)};cluster\n", self.refuses
            )
        if self.rows is None:
            return subprocess.CompletedProcess(
                command, 1, "", "slurm_load_jobs error: Invalid job id specified"
            )
        return subprocess.CompletedProcess(command, 0, "\n".join(self.rows), "")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


def start(folder: Path, *seeds: int, resume: bool = False, **settings: Any) -> Any:
    config = OmegaConf.create(
        {
            "sweep": {"resume": str(folder) if resume else None},
            "hydra": {
                "sweep": {"dir": str(folder)}, "overrides": {"task": ["trainer=cpu", "seed=0,1,2"], "hydra": []},
                "runtime": {"config_sources": []}, "job": {"config_name": "train"},
            },
        }
    )  # fmt: skip
    jobs = [["trainer=cpu", f"seed={seed}"] for seed in seeds]
    return launch(config, {**SETTINGS, **settings}, jobs, 0, composed)


def test_wait_false_prints_how_to_follow_the_sweep(
    tmp_path: Path, answers: Slurm, capsys: pytest.CaptureFixture[str]
):
    assert len(start(tmp_path, 0, 1, 2)) == 3
    printed = capsys.readouterr().out
    assert "SLURM job array 101: 3 jobs" in printed and f"sweep.resume={tmp_path}" in printed
    assert (tmp_path / "array-1.sh").read_text() == answers.scripts[0]
    assert (tmp_path / "array-1.sh").stat().st_mode & 0o077 == 0  # it holds the settings as typed


def test_a_url_password_reaches_the_jobs_only_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    environments: list[dict[str, str]] = []

    def asked(*command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environments.append(environment)
        return subprocess.CompletedProcess(command, 0, "101", "")

    monkeypatch.setattr(slurm_queue, "_call", asked)
    urls = [f"data.url=s3://me:{password}@host/x" for password in ("hunter22", "hunter23")]
    jobs = [[f"seed={i}", url] for i, url in enumerate(urls)]
    with pytest.raises(UserError, match="several URL passwords"):
        _submit(
            [Job(i, job, tmp_path / str(i)) for i, job in enumerate(jobs)],
            check_settings(SETTINGS),
            Shape(1, 1, False),
            tmp_path,
            1,
        )
    _submit([Job(0, jobs[0], tmp_path / "0")], check_settings(SETTINGS), Shape(1, 1, False), tmp_path, 1)
    text = (tmp_path / "array-1.sh").read_text()
    assert "data.url=s3://me:***@host/x" in text and "hunter" not in text
    assert environments[0]["ALEXNET_URL_PASSWORD"] == "hunter22"


def test_a_resumed_sweep_submits_only_jobs_that_are_neither_finished_nor_queued(
    tmp_path: Path, answers: Slurm
):
    start(tmp_path, 0, 1, 2)
    finish(Job(0, [], tmp_path / "0"))
    answers.rows = ["101 1 PENDING", "101 2 TIMEOUT"]
    start(tmp_path, 2, 1, 0, resume=True)  # also in another order
    assert [options(text)["array"] for text in answers.scripts] == ["0-2", "2"]
    assert "seed=2" in answers.scripts[1] and "seed=0" not in answers.scripts[1]
    answers.rows = ["101 1 RUNNING", "101 2 TIMEOUT", "102 2 RUNNING"]
    start(tmp_path, 0, 1, 2, resume=True)
    assert len(answers.scripts) == 2


def test_a_rejection_by_slurm_is_a_one_line_error(tmp_path: Path, answers: Slurm):
    answers.refuses = (
        "sbatch: error: invalid partition specified: a100\nsbatch: error: Batch job submission failed\n"
    )
    with pytest.raises(
        UserError, match=r"SLURM rejected .* invalid partition specified: a100 Batch job"
    ) as caught:
        start(tmp_path, 0)
    assert "\n" not in str(caught.value)


def test_a_machine_without_slurm_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs sbatch"):
        start(tmp_path / "sweep", 0)


def test_duplicate_jobs_are_submitted_once_with_a_message(
    tmp_path: Path, answers: Slurm, capsys: pytest.CaptureFixture[str]
):
    assert len(start(tmp_path, 1, 1, 2)) == 2
    assert options(answers.scripts[0])["array"] == "0-1"
    assert "1 jobs have the same settings as another" in capsys.readouterr().out


def test_a_purged_array_has_ended(answers: Slurm):
    answers.rows = None
    assert slurm_queue.states(["101"]) == {}


def watched(folder: Path, count: int) -> tuple[list[Job], Watch, io.StringIO]:
    jobs, printed = made(folder, count), io.StringIO()
    return jobs, Watch(jobs, ["101"], Table(jobs, Console(file=printed, width=200, soft_wrap=True))), printed


def test_jobs_are_tracked_from_the_queue_to_their_end(tmp_path: Path, answers: Slurm):
    jobs, watch, printed = watched(tmp_path, 2)
    answers.rows = ["101 0 RUNNING", "101 1 PENDING"]
    assert watch.look()
    assert [job.state for job in jobs] == [RUNNING, WAITING]
    finish(jobs[0])
    finish(jobs[1], "failed", "The loss is not finite at step 4.")
    answers.rows = ["101 0 COMPLETED", "101 1 FAILED"]
    assert watch.look()
    assert not watch.look()
    assert [job.state for job in jobs] == [FINISHED, FAILED]
    assert "job 1 failed: The loss is not finite at step 4. (SLURM: FAILED)" in printed.getvalue()


def test_a_requeued_job_is_waited_for(tmp_path: Path, answers: Slurm):
    (job,), watch, printed = watched(tmp_path, 1)
    for rows in (["101 0 RUNNING"], ["101 0 PREEMPTED"], ["101 0 PENDING"], ["101 0 RUNNING"]):
        answers.rows = rows
        assert watch.look()
    assert (job.state, job.tries) == (RUNNING, 2)
    assert "job 0 starts again" in printed.getvalue()


def test_a_job_without_a_result_is_reported_with_its_last_output(tmp_path: Path, answers: Slurm):
    (job,), watch, _ = watched(tmp_path, 1)
    job.directory.mkdir()
    (job.directory / "output.log").write_text(
        "error: no such model\nsrun: error: node1: task 0: Exited with exit code 1\n"
    )
    answers.rows = None
    watch.look()
    watch.look()
    assert (job.state, job.why) == (FAILED, "error: no such model")


def test_ctrl_c_leaves_slurm_jobs_running(
    tmp_path: Path, answers: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answers.rows = ["101 0 RUNNING"]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, 0, wait=True)
    assert "scancel 101 cancels them" in capsys.readouterr().out
