"""hydra/sweeper=basic: every combination of values, in batches; stand-ins replace training."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.grid import run_batches
from alexnet_exp.sweeps.job import JobFailed
from tests.sweeps.searches import stand_ins

PASSWORD = "hunter22-typed"
BATCHES = [[["seed=0"], ["seed=1"]], [["seed=2"]], [["seed=3"]]]


class Launcher:
    """Records the jobs that it is asked to run; some fail."""

    def __init__(self, *failing: str, error: type[Exception] = JobFailed) -> None:
        self.failing, self.error = failing, error
        self.launched: list[tuple[int, list[str]]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.launched.append((initial_job_idx, [job for (job,) in job_overrides]))
        return [self._returned(job) for (job,) in job_overrides]

    def _returned(self, job: str) -> JobReturn:
        if job in self.failing:
            return JobReturn(status=JobStatus.FAILED, _return_value=self.error(f"{job} had no luck"))
        return JobReturn(status=JobStatus.COMPLETED)


def config(folder: Path, **launcher: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "optimizer": {"lr": 0.1},
            "logger": {"api_key": "kept", "url": f"s3://me:{PASSWORD}@host"},
            "hydra": {
                "launcher": launcher,
                "mode": RunMode.MULTIRUN,
                "sweep": {"dir": str(folder / "sweep"), "subdir": "${hydra.job.num}"},
                "overrides": {"task": [f"logger.url=s3://me:{PASSWORD}@host"]},
                "job": {"num": "???"},
            },
        }
    )


def run(folder: Path, launcher: Any, **settings: Any) -> list[JobReturn]:
    return run_batches(config(folder, **settings), BATCHES, launcher, lambda batch: None)


def test_batches_run_in_order_with_consecutive_job_numbers(tmp_path: Path):
    launcher = Launcher()
    assert len(run(tmp_path, launcher)) == 4
    assert launcher.launched == [(0, ["seed=0", "seed=1"]), (2, ["seed=2"]), (3, ["seed=3"])]


def test_a_failed_job_does_not_stop_later_batches_and_failures_are_counted_at_the_end(tmp_path: Path):
    launcher = Launcher("seed=1", "seed=2")
    with pytest.raises(UserError, match=r"^2 of 4 jobs did not finish; the first is seed=1 had no luck$"):
        run(tmp_path, launcher, on_failure="continue")
    assert len(launcher.launched) == 3


def test_on_failure_stop_starts_no_other_batch(tmp_path: Path):
    launcher = Launcher("seed=2")
    with pytest.raises(UserError, match=r"^1 of 3 jobs"):
        run(tmp_path, launcher, on_failure="stop")
    assert len(launcher.launched) == 2


def test_the_error_of_a_job_of_another_launcher_is_raised_unchanged(tmp_path: Path):
    with pytest.raises(ZeroDivisionError, match=r"^seed=3 had no luck$"):
        run(tmp_path, Launcher("seed=3", error=ZeroDivisionError))


def test_the_command_of_the_sweep_is_recorded_without_secrets(tmp_path: Path):
    run(tmp_path, Launcher())
    written = (tmp_path / "sweep" / "multirun.yaml").read_text()
    assert PASSWORD not in written
    settings = OmegaConf.create(written)
    assert settings.logger == {"api_key": "kept", "url": "s3://me:***@host"}
    assert settings.optimizer.lr == 0.1
    assert OmegaConf.to_container(settings.hydra.sweep)["subdir"] == "${hydra.job.num}"


# ------------------------------------------------------------------------------------------- the command line


@dataclass
class Swept:
    """A sweep of two batches, the first of which fails."""

    folder: Path
    typed: list[str]
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder, out, err = tmp_path_factory.mktemp("grid") / "sweep", io.StringIO(), io.StringIO()
    typed = [
        "-m",
        "+ends=nan,well",
        f"+storage=s3://me:{PASSWORD}@host",
        "trainer=cpu",
        "hydra.sweeper.max_batch_size=1",
    ]
    with stand_ins(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", *typed, f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=mine"])
    return Swept(folder, typed, code, out.getvalue(), err.getvalue())


def test_a_sweep_in_batches_continues_after_a_failed_one(swept: Swept):
    assert swept.code == 1
    assert "job 0 failed: The loss is not finite at step 4." in swept.out
    assert "job 1 finished" in swept.out
    said = (
        f"error: 1 of 2 jobs did not finish; the first is {swept.folder}/0: The loss is not finite at step 4."
    )
    assert swept.err.splitlines()[-1] == said


def test_a_setting_without_effect_is_reported_once(swept: Swept):
    assert swept.out.count("hydra.sweep.subdir has no effect: job directories are numbered") == 1
    assert (swept.folder / "0").is_dir()


def test_no_file_of_a_sweep_holds_a_secret(swept: Swept):
    files = [path for path in swept.folder.rglob("*") if path.is_file()]
    assert {"multirun.yaml", "sweep.json", "result.json"} <= {path.name for path in files}
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("more", [["--config-dir", "OWN"], ["hydra/sweeper=basic"]])
def test_resuming_a_sweep_needs_the_flags_that_determine_its_jobs(
    swept: Swept, capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str]
):
    more = [word.replace("OWN", str(tmp_path)) for word in more]
    before = (swept.folder / "multirun.yaml").read_text()
    assert main(["train", *swept.typed, *more, f"sweep.resume={swept.folder}"]) == 1
    assert f"same flags as before: missing nothing, new {' '.join(more)}." in capsys.readouterr().err
    assert (swept.folder / "multirun.yaml").read_text() == before


def test_sweeper_params_act_like_overrides_and_typed_overrides_win(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    params = "hydra.sweeper.params={seed: '1,2', optimizer.lr: 0.2, ckpt: null}"
    with stand_ins():
        assert main(["train", "-m", params, "optimizer.lr=0.3", f"hydra.sweep.dir={tmp_path}/s"]) == 0
    printed = capsys.readouterr().out
    for job, seed in enumerate((1, 2)):
        assert f"job {job} starts: alexnet-exp train seed={seed} optimizer.lr=0.3 ckpt=null hydra" in printed


def test_overriding_the_params_of_a_shipped_sweep_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    typed = ["-m", "sweep=lr_wd", "hydra.sweeper.params={seed: '1,2'}", f"hydra.sweep.dir={tmp_path}/s"]
    assert main(["train", *typed]) == 1
    said = "error: The chosen sweep sets hydra.sweeper.params itself: add others as KEY=VALUES.\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("more", [[], ["hydra/sweeper=optuna"]])
def test_a_missing_sweep_cannot_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
):
    folder = tmp_path / "swep"
    assert main(["train", "-m", "seed=1,2", *more, f"sweep.resume={folder}"]) == 1
    said = f"error: sweep.resume={folder}: there is no sweep there; hydra.sweep.dir={folder} starts one.\n"
    assert capsys.readouterr().err == said
    assert not folder.exists()


def test_resuming_a_run_as_a_sweep_leaves_it_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.yaml").write_text("seed: 0")
    assert main(["train", "-m", "seed=1,2", f"sweep.resume={tmp_path}"]) == 1
    assert f"is a run, not a sweep: resume it with resume={tmp_path}," in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_an_unwritable_sweep_names_its_own_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("mine")
    assert main(["train", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/file/s"]) == 1
    assert "(Not a directory): set hydra.sweep.dir=DIR or paths.output_dir=DIR." in capsys.readouterr().err


def test_a_sweep_without_jobs_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "hydra.sweeper.max_batch_size=0", f"hydra.sweep.dir={tmp_path}/s"]) == 1
    assert capsys.readouterr().err == (
        "error: invalid hydra.sweeper.max_batch_size=0: expected an integer >= 1, or null.\n"
    )
