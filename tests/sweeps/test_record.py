from __future__ import annotations

import json
from pathlib import Path

import pytest

from alexnet_exp.config.overrides import prepare
from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import FINISHED, WAITING
from alexnet_exp.sweeps.record import SweepRecord, check_distinguishable

TYPED = ["model=a,b", "seed=1"]
JOBS = [["model=a", "seed=1"], ["model=b", "seed=1"]]
SECRET = "data.url=s3://me:hunter22-typed@host"


def begun(
    folder: Path, typed: list[str] = TYPED, go_on: bool = False, flags: tuple[str, ...] = ()
) -> SweepRecord:
    record = SweepRecord(folder)
    with record.lock():
        record.begin(typed, list(flags), go_on)
    return record


def finish(folder: Path, directory: str) -> None:
    (folder / directory).mkdir()
    (folder / directory / "result.json").write_text('{"status": "finished"}')


def test_jobs_are_numbered_directories(tmp_path: Path):
    jobs = begun(tmp_path).jobs(JOBS, 0, ["--config-dir", "my conf"])
    assert [job.directory for job in jobs] == [tmp_path / "0", tmp_path / "1"]
    assert jobs[0].arguments == [
        "--config-dir",
        "my conf",
        "model=a",
        "seed=1",
        f"hydra.run.dir={tmp_path}/0",
    ]


def test_a_job_is_identified_by_its_overrides_not_its_number(tmp_path: Path):
    begun(tmp_path).jobs(JOBS, 0, [])
    finish(tmp_path, "1")
    again = begun(tmp_path, go_on=True).jobs([JOBS[1][::-1], JOBS[0], ["model=c"]], 0, [])
    assert [(job.directory.name, job.state) for job in again] == [
        ("1", FINISHED),
        ("0", WAITING),
        ("2", WAITING),
    ]


def test_an_inserted_job_gets_its_own_directory(tmp_path: Path):
    a, b, c = ([f"model={name}"] for name in "abc")
    begun(tmp_path).jobs([a, c], 0, [])
    finish(tmp_path, "1")
    again = begun(tmp_path, go_on=True).jobs([a, b, c], 0, [])
    assert [(job.directory.name, job.state) for job in again] == [
        ("0", WAITING),
        ("2", WAITING),
        ("1", FINISHED),
    ]


def test_duplicate_jobs_run_once_before_and_after_resuming(tmp_path: Path):
    twice = [["seed=1", "model=a"], ["seed=2"], ["model=a", "seed=1"]]
    for go_on in (False, True):
        jobs = begun(tmp_path, go_on=go_on).jobs(twice, 0, [])
        assert [(job.number, job.directory.name) for job in jobs] == [(0, "0"), (1, "1")]


@pytest.mark.parametrize("go_on", [False, True])
def test_runs_without_a_record_are_not_taken_for_jobs(tmp_path: Path, go_on: bool):
    finish(tmp_path, "0")
    with pytest.raises(UserError, match=r"holds runs \(0\) but no sweep\.json"):
        begun(tmp_path, go_on=go_on)
    assert not (tmp_path / "sweep.json").exists()


def test_sweep_resume_is_not_part_of_a_job(tmp_path: Path):
    (job,) = begun(tmp_path).jobs([["sweep.resume='x'", "seed=1"]], 0, [])
    assert job.overrides == ["seed=1"]


def test_a_run_is_not_a_sweep(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(UserError, match="is a run, not a sweep: resume it with resume="):
        begun(tmp_path, go_on=True)
    assert not (tmp_path / "sweep.json").exists()


def test_a_directory_with_another_sweep_is_rejected(tmp_path: Path):
    begun(tmp_path)
    with pytest.raises(UserError, match=r"already holds a sweep: resume it with sweep\.resume="):
        begun(tmp_path)


def test_resuming_a_sweep_with_other_settings_names_them(tmp_path: Path):
    begun(tmp_path)
    with pytest.raises(UserError, match="missing seed=1, new seed=2"):
        begun(tmp_path, ["model=a,b", "seed=2"], go_on=True)


def test_a_sweep_recorded_without_marks_is_resumed_with_them(tmp_path: Path):
    setting = "optimizer.layers.fc8.weight_decay"
    begun(tmp_path, [f"{setting}=0,1"]).jobs([[f"{setting}=0"], [f"{setting}=1"]], 0, [])
    finish(tmp_path, "1")
    record = begun(tmp_path, prepare(["-m", f"{setting}=0,1"])[1:], go_on=True)
    again = record.jobs([[f"++{setting}=0"], [f"++{setting}=1"]], 0, [])
    assert [(job.directory.name, job.state) for job in again] == [("0", WAITING), ("1", FINISHED)]
    assert again[0].arguments[0] == f"++{setting}=0"
    with pytest.raises(UserError, match=rf"missing {setting}=0,1, new ~{setting}"):
        begun(tmp_path, [f"~{setting}"], go_on=True)


def test_resuming_a_sweep_with_other_flags_names_them(tmp_path: Path):
    before = ("--config-dir", "/mine", "hydra.job.chdir=true")
    begun(tmp_path, flags=before)
    begun(tmp_path, go_on=True, flags=("hydra.job.chdir=true", "--config-dir", "/mine"))
    with pytest.raises(UserError, match="same flags as before: missing --config-dir /mine, new nothing"):
        begun(tmp_path, go_on=True, flags=before[2:])


def test_an_old_record_without_flags_accepts_any(tmp_path: Path):
    begun(tmp_path)
    content = json.loads((tmp_path / "sweep.json").read_text())
    del content["flags"]
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    begun(tmp_path, go_on=True, flags=("--config-name", "mine"))


@pytest.mark.parametrize("with_secrets", [False, True], ids=["now", "an older record"])
def test_secrets_are_not_recorded_and_jobs_are_still_matched_and_started(tmp_path: Path, with_secrets: bool):
    typed, jobs = [*TYPED, SECRET], [[*job, SECRET] for job in JOBS]
    begun(tmp_path, typed, flags=(f"hydra.{SECRET}",)).jobs(jobs, 0, [])
    written = (tmp_path / "sweep.json").read_text()
    assert "hunter22" not in written and "data.url=s3://me:***@host" in written
    if with_secrets:
        (tmp_path / "sweep.json").write_text(written.replace("***", "hunter22-typed"))
    finish(tmp_path, "1")
    again = begun(tmp_path, typed, go_on=True, flags=(f"hydra.{SECRET}",)).jobs(jobs, 0, [])
    assert [(job.directory.name, job.state) for job in again] == [("0", WAITING), ("1", FINISHED)]
    assert again[0].arguments == [*jobs[0], f"hydra.run.dir={tmp_path}/0"]
    assert "hunter22" not in (tmp_path / "sweep.json").read_text()


def test_jobs_that_differ_only_in_a_secret_are_rejected():
    check_distinguishable([[SECRET], [SECRET]])  # equal ones run once
    with pytest.raises(UserError, match="differ only in the password of a URL"):
        check_distinguishable([[SECRET], ["data.url=s3://me:hunter23-typed@host"]])


@pytest.mark.parametrize(
    ("typed", "again"), [("lr.log", "/there/lr.log"), ("/other/lr.log", "/other/lr.log")]
)
def test_a_relative_storage_resolves_as_when_the_sweep_began(tmp_path: Path, typed: str, again: str):
    record = begun(tmp_path)
    record.place("lr.log", "/there/lr.log")
    record.keep("study", "lr.log ours")
    assert begun(tmp_path, go_on=True).place(typed, str(Path("/elsewhere") / typed)) == again


def test_only_one_process_runs_a_sweep(tmp_path: Path):
    first = SweepRecord(tmp_path)
    with first.lock(), pytest.raises(UserError, match="is still running"), SweepRecord(tmp_path).lock():
        pass


def test_an_unwritable_sweep_directory_is_a_one_line_error(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UserError, match=r"set hydra\.sweep\.dir=DIR or"),
        SweepRecord(tmp_path / "file" / "s").lock(),
    ):
        pass
    begun(tmp_path)
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match="make it writable"), SweepRecord(tmp_path).lock():
        pass


def test_the_record_is_plain_json(tmp_path: Path):
    begun(tmp_path).jobs(JOBS, 5, [])
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["overrides"] == TYPED
    assert [entry["directory"] for entry in content["jobs"]] == ["5", "6"]
