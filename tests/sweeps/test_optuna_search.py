"""Whole searches; stand-ins replace training."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import identity
from alexnet_exp.sweeps.optuna.pool import TrialTable
from tests.sweeps.searches import KILLED, STAND_IN, run

LR = "lr=tag(log,interval(1e-3,1))"


def trials(file: Path, name: str = "study") -> list[Any]:
    storage = JournalStorage(JournalFileBackend(str(file)))
    return optuna.load_study(study_name=name, storage=storage).trials


def states(file: Path, name: str = "study") -> list[str]:
    return [trial.state.name for trial in trials(file, name)]


def trained(folder: Path) -> dict[str, list[int]]:
    """Return the epochs that each trial has trained, in order."""
    files = folder.glob("*/trained")
    return {file.parent.name: [int(line) for line in file.read_text().split()] for file in files}


# ------------------------------------------------------------------------------------------------ one search


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search of six trials that all finish: its directory and output."""
    folder = tmp_path_factory.mktemp("found") / "sweep"
    return folder, run(folder, LR, "epochs=2", n_trials=6)


def test_every_trial_is_recorded_with_its_best_epoch_and_every_epoch(found: tuple[Path, str]):
    folder, _ = found
    for trial in trials(folder / "study.log"):
        rows = (folder / str(trial.number) / "metrics.csv").read_text().splitlines()[1:]
        values = [float(row.split(",")[2]) for row in rows]
        assert trial.state == TrialState.COMPLETE
        assert trial.value == max(values)
        assert trial.intermediate_values == dict(enumerate(values, start=1))


def test_the_printed_command_reproduces_the_best_value(found: tuple[Path, str], tmp_path: Path):
    folder, printed = found
    best = max(trials(folder / "study.log"), key=lambda trial: trial.value)
    command = re.search(r"command: +(.+)", printed)
    assert command is not None
    words = shlex.split(command[1])
    assert words[:2] == ["alexnet-exp", "train"]
    subprocess.run([*STAND_IN, "0", *words[2:], f"hydra.run.dir={tmp_path}"], check=True)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["metrics"]["val/top1"] == best.value
    assert f"best trial:      {best.number}, val/top1 {best.value:.4f}" in printed


def test_the_page_shows_history_importance_and_every_trial(found: tuple[Path, str]):
    folder, printed = found
    page = (folder / "sweep.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert len(re.findall(r'<span class="pill finished"', page)) == 6
    assert "To reproduce it:" in page
    assert not re.search(r'(src|href)="https?:', page)
    assert str(folder / "sweep.html") in printed
    assert len((folder / "summary.csv").read_text().splitlines()) >= 7


def test_a_new_search_rejects_a_directory_that_holds_one(found: tuple[Path, str]):
    folder, _ = found
    with pytest.raises(UserError, match=r"sweep\.resume="):
        run(folder, LR, "epochs=2", n_trials=6)


def test_a_finished_search_can_be_given_more_trials(found: tuple[Path, str], tmp_path: Path):
    folder = tmp_path / "more"
    shutil.copytree(found[0], folder)
    run(folder, LR, "epochs=2", n_trials=7, resume=True)
    assert states(folder / "study.log") == ["COMPLETE"] * 7
    assert all(epochs == [1, 2] for epochs in trained(folder).values())


def test_a_directory_rejects_a_second_study(found: tuple[Path, str]):
    with pytest.raises(UserError, match="holds trials of another study"):
        run(found[0], LR, "epochs=2", n_trials=7, resume=True, study_name="other")


# ------------------------------------------------------------------------------------------------ how trials end


def test_a_poor_trial_is_pruned_while_it_runs(tmp_path: Path):
    threshold = {"pruner": "threshold", "pruner_arguments": {"lower": 0.1}}
    printed = run(tmp_path, "lr=0.1,0.0001", "epochs=4", "seconds=0.5", sampler="grid", **threshold)
    ends = {trial.params["lr"]: trial for trial in trials(tmp_path / "study.log")}
    assert {lr: trial.state.name for lr, trial in ends.items()} == {"0.1": "COMPLETE", "0.0001": "PRUNED"}
    behind = ends["0.0001"].number
    assert len(trained(tmp_path)[str(behind)]) < 4
    assert f"job {behind} pruned: val/top1 0.0" in printed
    assert '<span class="pill pruned"' in (tmp_path / "sweep.html").read_text()


def test_failures_are_recorded_and_the_search_continues(tmp_path: Path):
    run(tmp_path, "ends=well,nan,raises,killed", "epochs=1", sampler="grid")
    reasons = {t.params["ends"]: t.user_attrs.get("failed") for t in trials(tmp_path / "study.log")}
    assert reasons == {
        "well": None,
        "nan": "The loss is not finite at step 4.",
        "raises": "ZeroDivisionError: by nothing",
        "killed": "killed by SIGKILL",
    }
    assert sorted(states(tmp_path / "study.log")) == ["COMPLETE", "FAIL", "FAIL", "FAIL"]


def test_a_search_without_any_result_is_an_error_that_says_why(tmp_path: Path):
    with pytest.raises(UserError, match=r"No trial finished \(1 fail\)\. The first failed: The loss"):
        run(tmp_path, LR, "ends=nan", "epochs=1", n_trials=1)


def test_a_search_can_stop_at_the_first_failure(tmp_path: Path):
    stop = {"on_failure": "stop", "max_parallel": 1}
    with pytest.raises(UserError, match=r"on_failure=stop: .*0 failed: The loss is not finite"):
        run(tmp_path, LR, "ends=nan", "epochs=1", launcher=stop, n_trials=3)
    assert states(tmp_path / "study.log") == ["FAIL"]


def test_a_killed_trial_is_retried(tmp_path: Path):
    run(tmp_path, LR, "ends=killed_once", "epochs=2", launcher={"retries": 1}, n_trials=1)
    assert states(tmp_path / "study.log") == ["COMPLETE"]
    assert trained(tmp_path) == {"0": [1, 2]}


def test_trials_need_the_processes_launcher(tmp_path: Path):
    with pytest.raises(UserError, match="needs hydra/launcher=processes"):
        run(tmp_path, LR, launcher={"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"})


# ------------------------------------------------------------------------------------------------ resuming


def test_an_interrupted_search_resumes_without_training_anything_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "sweep"

    def interrupt(self: Any) -> None:
        if (folder / "1" / "trained").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(TrialTable, "refresh", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(folder, LR, "epochs=3", "seconds=0.2", n_trials=3)
    monkeypatch.undo()
    assert "RUNNING" in states(folder / "study.log")
    run(folder, LR, "epochs=3", "seconds=0.2", n_trials=3, resume=True)
    assert states(folder / "study.log") == ["COMPLETE"] * 3
    assert trained(folder) == {"0": [1, 2, 3], "1": [1, 2, 3], "2": [1, 2, 3]}


def test_a_killed_search_resumes_after_its_orphans_have_ended(tmp_path: Path):
    folder = tmp_path / "sweep"
    root = Path(__file__).parents[2]
    sweep = subprocess.Popen([sys.executable, "-m", "tests.sweeps.searches", str(folder)], cwd=root)
    deadline = time.monotonic() + 60
    while not (folder / "1" / "trained").exists():
        assert time.monotonic() < deadline
        assert sweep.poll() is None
        time.sleep(0.02)
    sweep.send_signal(signal.SIGKILL)  # stand-ins do not die with it
    sweep.wait()
    assert set(states(folder / "study.log")) == {"RUNNING"}
    run(folder, *KILLED, n_trials=4, resume=True)
    assert states(folder / "study.log") == ["COMPLETE"] * 4
    assert trained(folder) == {str(number): [1, 2, 3, 4] for number in range(4)}


# ------------------------------------------------------------------------------------------------ shared studies


def test_a_search_resumes_from_another_folder_with_the_same_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    typed = (LR, "epochs=1", "storage=s3://me:hunter22-typed@host")
    shared = {"storage": "shared.log", "study_name": "ours"}
    for folder, count in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        printed = run(tmp_path / "sweep", *typed, n_trials=count, resume=count > 1, **shared)
        # Printed when the trial starts, and in the command at the end.
        assert printed.count("storage=s3://me:***@host") == 2
        assert "hunter22" not in printed
    assert states(tmp_path / "one" / "shared.log", "ours") == ["COMPLETE"] * 2
    assert list((tmp_path / "two").iterdir()) == []
    texts = [(tmp_path / "sweep" / name).read_text() for name in ("sweep.html", "sweep.json")]
    assert all("storage=s3://me:***@host" in text and "hunter22" not in text for text in texts)


def test_two_sweeps_share_a_study_by_its_name(tmp_path: Path):
    shared = {"storage": str(tmp_path / "shared.log"), "study_name": "ours"}
    run(tmp_path / "a", LR, "epochs=1", n_trials=2, **shared)
    run(tmp_path / "b", LR, "epochs=1", n_trials=4, **shared)
    assert states(tmp_path / "shared.log", "ours") == ["COMPLETE"] * 4
    assert sorted(trained(tmp_path / "a")) == ["0", "1"]
    assert sorted(trained(tmp_path / "b")) == ["2", "3"]


def test_a_study_rejects_another_metric_or_search_space(tmp_path: Path):
    shared = {"storage": f"sqlite:///{tmp_path / 'shared.db'}", "study_name": "ours"}
    run(tmp_path / "a", "lr=0.1,0.2", "epochs=1", n_trials=1, **shared)
    with pytest.raises(UserError, match="optimizes val/top1"):
        run(tmp_path / "b", "lr=0.1,0.2", "epochs=1", metric="val/loss", **shared)
    with pytest.raises(UserError, match="has other choices for lr"):
        run(tmp_path / "c", "lr=0.1,0.3", "epochs=1", **shared)


def test_a_trial_of_a_dead_sweep_does_not_run_forever(tmp_path: Path):
    file = tmp_path / "shared.log"
    study = optuna.create_study(
        study_name="ours", storage=JournalStorage(JournalFileBackend(str(file))), direction="maximize"
    )
    lost = study.ask()
    alive = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    lost.set_user_attr("owner", identity(alive.pid))
    alive.kill()
    alive.communicate()
    printed = run(tmp_path / "b", LR, "epochs=1", n_trials=2, storage=str(file), study_name="ours")
    assert states(file, "ours") == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "trial 0 is lost: its sweep has died" in printed
