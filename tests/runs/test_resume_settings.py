"""`resume=DIR`: a run keeps its settings, and only those that do not change the experiment may be overridden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.cli import main
from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.resume import resumed_arguments, resumed_settings
from alexnet_exp.tracking.run_directory import RunDirectory

TYPED = ["model=alexnet_lrn", "data=folder", "data.root='images'", "trainer.max_epochs=5"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An interrupted run; as in a real one, num_classes was set after composition."""
    return begun(tmp_path / "run", TYPED)


def begun(directory: Path, typed: list[str]) -> Path:
    directory.mkdir()
    config = plain(compose("train", typed))
    config["model"]["num_classes"] = 3
    RunDirectory(directory).write_settings(config, typed)
    return directory


def resumed(run: Path, *typed: str) -> tuple[dict[str, Any], list[str]] | None:
    """Resume as the command line does, up to training."""
    arguments = resumed_arguments([f"resume={run}", *typed])
    return resumed_settings(plain(compose("train", arguments)), arguments)


def settings(run: Path, *typed: str) -> dict[str, Any]:
    found = resumed(run, *typed)
    assert found is not None
    return found[0]


def test_resume_alone_keeps_every_setting_of_the_run(run: Path):
    before = RunDirectory(run).config()
    found = resumed(run)
    assert found == ({**before, "resume": str(run)}, TYPED)


def test_a_run_started_with_resume_is_resumed_by_the_same_command(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    started = [*TYPED, f"resume='{run.path}'"]  # quoted, as Hydra receives a path
    run.path.mkdir()
    run.write_settings(plain(compose("train", TYPED)) | {"resume": str(run.path)}, started)
    assert f"resume={run.path}" in resumed_arguments([f"resume={run.path}"])
    assert started[-1] in resumed_arguments(started)


def test_settings_stay_as_typed_without_resume():
    config = plain(compose("train", ["seed=4"]))
    assert resumed_settings(config, ["seed=4"]) == (config, ["seed=4"])


def test_a_directory_without_a_run_starts_as_typed(tmp_path: Path):
    config = settings(tmp_path / "new", "seed=4", "model=resnet18_cifar")
    assert (config["seed"], config["model"]["stem"]) == (4, "cifar")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("trainer.max_epochs=9", "trainer.max_epochs", 9),
        ("trainer.accelerator=cpu", "trainer.accelerator", "cpu"),
        ("data.root=/moved here", "data.root", "/moved here"),
        ("data.num_workers=1", "data.num_workers", 1),
        ("data.follow_links=true", "data.follow_links", True),
        ("test=false", "test", False),
        ("logger.wandb.mode=offline", "logger.wandb.mode", "offline"),
    ],
)
def test_settings_that_do_not_change_the_experiment_may_change(run: Path, typed: str, key: str, value: Any):
    before, after = RunDirectory(run).config(), settings(run, typed)
    inner = after
    for part in key.split("."):
        inner = inner[part]
    assert inner == value
    assert after["model"] == before["model"]  # num_classes is kept


def test_a_change_is_recorded_once(run: Path):
    found = resumed(run, "trainer.max_epochs=9", "test=false")
    assert found is not None
    assert found[1] == [*TYPED[:3], "trainer.max_epochs=9", "test=false"]


def test_the_logger_can_be_removed_or_replaced(run: Path):
    assert settings(run, "logger=none")["logger"] == {}
    assert set(settings(run, "logger=tensorboard")["logger"]) == {"tensorboard"}


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("model=alexnet", r"model\.features\.conv1\.then"),
        ("model.dropout=0.1", r"model\.dropout"),
        ("optimizer.lr=0.5", r"optimizer\.lr"),
        ("data.batch_size=7", r"data\.batch_size"),
        ("augment.flip=false", r"augment\.flip"),
        ("scheduler=none", r"scheduler\."),
        ("seed=1", "seed"),
        ("weights=other", "weights"),
        ("trainer.accumulate_grad_batches=2", r"trainer\.accumulate_grad_batches"),
        ("callbacks.ema.enabled=true", r"callbacks\.ema\.enabled"),
    ],
)
def test_a_change_of_the_experiment_is_refused(run: Path, typed: str, key: str):
    with pytest.raises(UserError, match=rf"same experiment, and {typed} would change {key}.*ckpt={run}"):
        resumed(run, typed)


def test_repeating_the_command_changes_nothing(run: Path):
    found = resumed(run, *TYPED)
    assert found is not None
    assert found[0]["model"] == RunDirectory(run).config()["model"]
    assert found[1] == TYPED


def test_a_run_started_from_a_checkpoint_can_be_resumed(tmp_path: Path):
    run = begun(tmp_path / "run", ["ckpt='some/old, run'"])
    assert settings(run, "test=false")["ckpt"] == "some/old, run"


def test_a_resumed_run_can_be_resumed_again(tmp_path: Path):
    run = begun(tmp_path / "run", ["seed=2"])
    config, overrides = resumed(run, "trainer.max_epochs=7") or ({}, [])
    RunDirectory(run).write_settings(config, overrides)
    again = settings(run, "trainer.max_epochs=8")
    assert (again["seed"], again["trainer"]["max_epochs"]) == (2, 8)
    assert settings(run)["trainer"]["max_epochs"] == 7


def test_a_sweep_cannot_be_resumed_as_a_run(tmp_path: Path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(
        UserError,
        match=r"is a sweep, not a run: .*sweep\.resume=.*, or resume one of its jobs with resume=.*0",
    ):
        resumed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_the_last_value_of_a_setting_typed_twice_counts(tmp_path: Path):
    run = begun(tmp_path / "run", ["trainer.max_epochs=1", "seed=3", "trainer.max_epochs=2"])
    assert (resumed(run) or ({}, []))[1] == ["trainer.max_epochs=2", "seed=3"]
    assert settings(run)["trainer"]["max_epochs"] == 2
    assert settings(run, "trainer.max_epochs=1")["trainer"]["max_epochs"] == 1


def finish(run: Path, epochs: int = 5, status: str = "finished") -> None:
    (run / "result.json").write_text(json.dumps({"status": status, "epochs": epochs}))


def test_a_finished_run_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    finish(run)
    assert resumed(run) is None
    assert capsys.readouterr().out == f"{run} has already finished; nothing to do.\n"


def test_a_finished_run_can_be_resumed_with_more_epochs(run: Path):
    finish(run)
    assert settings(run, "trainer.max_epochs=6")["trainer"]["max_epochs"] == 6
    assert resumed(run, "trainer.max_epochs=4") is None


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_an_unfinished_run_is_resumed(run: Path, status: str):
    finish(run, status=status)
    assert settings(run)["trainer"]["max_epochs"] == 5


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["resume=run", "ckpt=other"], "use only one of them"),
        (["resume=file.ckpt"], r"file\.ckpt is a file: ckpt=file\.ckpt starts from it"),
    ],
)
def test_conflicting_settings_are_refused(
    typed: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.ckpt").touch()
    with pytest.raises(UserError, match=message):
        resumed_arguments(typed)


def test_the_command_line_says_that_a_run_has_finished(run: Path, capsys: pytest.CaptureFixture[str]):
    finish(run)
    before = sorted(path.name for path in run.iterdir())
    assert main(["train", f"resume={run}"]) == 0
    assert "has already finished" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_command_line_refuses_another_learning_rate_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    before = (run / "config.yaml").read_text()
    assert main(["train", f"resume={run}", "optimizer.lr=0.5"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: resume= continues the same experiment, and optimizer.lr=0.5 would change")
    assert err.count("\n") == 1
    assert (run / "config.yaml").read_text() == before


def test_a_setting_that_looks_like_a_secret_is_kept_and_resumed(tmp_path: Path):
    typed = "+data.storage.password=hunter22-typed"
    run = begun(tmp_path / "run", [*TYPED, typed])
    for again in ([], [typed], ["trainer.max_epochs=9"]):
        assert settings(run, *again)["data"]["storage"] == {"password": "hunter22-typed"}


URL = "s3://me:{}@host/images"
STREAMED = ["data=streaming", "model=alexnet_lrn", "trainer.max_epochs=5"]


def test_the_password_of_a_url_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = begun(tmp_path / "run", [*STREAMED, f"data.url='{URL.format('hunter22')}'"])
    for again in ([], ["trainer.max_epochs=9"]):
        with pytest.raises(
            UserError, match=r"data\.url=s3://me:\*\*\*@host.*set ALEXNET_URL_PASSWORD in the env"
        ):
            settings(run, *again)
        assert settings(run, *again, f"data.url='{URL.format('hunter22')}'")["data"]["url"] == URL.format(
            "hunter22"
        )
    monkeypatch.setenv("ALEXNET_URL_PASSWORD", "another")
    for again in ([], ["trainer.max_epochs=9"]):
        assert settings(run, *again)["data"]["url"] == URL.format("another")


def test_a_typed_environment_variable_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINE", "first1")
    run = begun(tmp_path / "run", [*STREAMED, "data.url=s3://me:${oc.env:MINE}@host/images"])
    assert "first1" not in (run / "config.yaml").read_text() + (run / "overrides.yaml").read_text()
    monkeypatch.setenv("MINE", "second")
    for again in ([], ["trainer.max_epochs=9"]):
        assert settings(run, *again)["data"]["url"] == URL.format("second")
    monkeypatch.delenv("MINE")
    assert main(["train", f"resume={run}"]) == 1


@pytest.mark.parametrize("again", [[], ["trainer.max_epochs=9"]])
def test_a_setting_redacted_by_an_older_version_is_asked_for_in_one_line(tmp_path: Path, again: list[str]):
    run = begun(tmp_path / "run", [*TYPED, "+data.token='[redacted]'"])
    with pytest.raises(UserError, match=r"recorded data\.token as \[redacted\]; set data\.token=VALUE"):
        resumed(run, *again)
    assert settings(run, "data.token=abc", *again)["data"]["token"] == "abc"


def test_a_removed_setting_is_ignored_in_an_old_run(tmp_path: Path):
    run = begun(tmp_path / "run", TYPED)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("trainer:\n", "trainer:\n  limit_predict_batches: 1.0\n"))
    assert RunDirectory(run).config()["trainer"]["limit_predict_batches"] == 1.0
    (run / "overrides.yaml").write_text("- trainer.limit_predict_batches=2\n- trainer.max_epochs=5\n")
    for again in ([], ["trainer.max_epochs=9"]):
        found = resumed(run, *again)
        assert found is not None
        assert "limit_predict_batches" not in found[0]["trainer"]
        assert found[1] == (again or ["trainer.max_epochs=5"])
        check_config(found[0])


def test_another_config_of_a_group_changes_only_the_settings_that_differ(tmp_path: Path):
    run = begun(tmp_path / "run", [*TYPED, "trainer=cpu"])
    found = settings(run, "trainer=ddp_cpu")["trainer"]
    assert (found["devices"], found["strategy"], found["max_epochs"]) == (2, "ddp", 5)
    assert settings(run, "trainer=ddp_cpu", "trainer.max_epochs=30")["trainer"]["max_epochs"] == 30


def test_a_recorded_config_cannot_change_hydra_s_own_settings(tmp_path: Path):
    run = begun(tmp_path / "run", TYPED)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{text}hydra: {{job: {{name: evil}}}}\n")
    assert "hydra" not in plain(compose("train", resumed_arguments([f"resume={run}", "seed=0"])))
    (run / "config.yaml").write_text(
        text.replace("trainer:\n", "trainer:\n  defaults: [/hydra/launcher: basic]\n")
    )
    with pytest.raises(UserError, match="does not hold the settings of a run"):
        resumed_arguments([f"resume={run}"])


def test_another_experiment_is_refused(run: Path):
    with pytest.raises(UserError, match=r"same experiment, and experiment=lrn_folder would change"):
        resumed(run, "experiment=lrn_folder")


def test_a_run_with_a_custom_model_config_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import alexnet_exp.runs.train.command as module

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "train", lambda config, *_: calls.append(config))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("defaults: [alexnet_cifar, _self_]\ndropout: 0.3\n")
    assert main(["train", "model=mine", "--config-dir", "own", "hydra.run.dir=run"]) == 0
    (tmp_path / "run").mkdir()
    RunDirectory(tmp_path / "run").write_settings(calls[0], ["model=mine"])
    assert main(["train", "resume=run"]) == 0
    assert main(["train", "resume=run", "trainer.max_epochs=3", "--config-dir", "own"]) == 0
    (tmp_path / "own").rename(tmp_path / "elsewhere")  # the run's recorded config is enough
    assert main(["train", "resume=run", "trainer.max_epochs=4"]) == 0
    assert main(["train", "resume=run", "model=mine", "trainer.max_epochs=4"]) == 0
    assert [config["model"]["dropout"] for config in calls] == [0.3, 0.3, 0.3, 0.3, 0.3]
    assert [config["trainer"]["max_epochs"] for config in calls] == [30, 30, 3, 4, 4]
    assert {config["choices"]["model"] for config in calls} == {"mine"}


def test_a_resumed_directory_cannot_name_a_foreign_class(tmp_path: Path):
    run = RunDirectory(tmp_path)
    settings = plain(compose("train", []))
    settings["model"]["_target_"] = "os.system"
    run.write_settings(settings, ["trust=[os]"])
    with pytest.raises(UserError, match=r"names 'os.system'.*trust=\[os\]"):
        resumed_settings({**plain(compose("train", [])), "resume": str(tmp_path)}, [])


def test_a_run_older_than_a_setting_is_resumed_with_its_former_behaviour(run: Path):
    directory = RunDirectory(run)
    config = directory.config()
    del config["published"], config["augment"]["contrast"]
    directory.write_settings(config, TYPED)
    for typed in ([], ["trainer.max_epochs=9"]):
        found = settings(run, *typed)
        check_config(found)
        assert (found["published"], found["augment"]["contrast"]) == (None, None)


def test_the_published_value_is_not_part_of_the_experiment(tmp_path: Path):
    run = begun(tmp_path / "old", ["experiment=convnet_80sec"])
    config = RunDirectory(run).config()
    config["published"][0]["value"] = 0.7
    RunDirectory(run).write_settings(config, ["experiment=convnet_80sec"])
    assert settings(run, "experiment=convnet_80sec")["published"][0]["value"] == 0.7
