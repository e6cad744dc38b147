"""`logger.NAME._target_`: any Lightning logger gets settings, rows and the best value, and never ends a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers.logger import Logger

from alexnet_exp.cli import main
from alexnet_exp.config import words
from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.config.overrides import prepare
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train import resume as resuming
from alexnet_exp.targets import check_trust
from alexnet_exp.tracking.loggers import open_tracker
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import read_metrics
from tests.training.small_runs import resume, run, settings, train_until

HERE = __name__
STEPS = ["trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_steps=4"]


class Memory(Logger):
    """Keeps everything in memory, by the name of its run."""

    runs: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    fails_in: str = ""

    def __init__(self, run_name: str, note: str = "", run_id: str | None = None) -> None:
        super().__init__()
        self.key = run_id or f"run-{len(self.runs)}"
        self.entry = self.runs.setdefault(
            self.key, {"name": run_name, "settings": [], "rows": [], "ended": []}
        )

    name = property(lambda self: "memory")
    version = property(lambda self: self.key)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.entry["settings"].append(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.fails_in == "log_metrics":
            raise ConnectionError("the server is gone\nand more")
        self.entry["rows"].append({**metrics, "step": step})

    def finalize(self, status: str) -> None:
        self.entry["ended"].append(status)


class Lacking(Memory):
    """A logger without its package."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("Requirement 'tracker>=1' not met.\n  HINT: pip install tracker")


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr(Memory, "runs", found := {})
    return found


def memory(*names: str, **arguments: str) -> list[str]:
    """Return the command line's settings of such loggers, as Hydra gets them."""
    typed = [f"logger.{name}._target_={HERE}.Memory" for name in names]
    return prepare(
        [*typed, *(f"logger.{name}.{key}={value}" for name in names for key, value in arguments.items())]
    )


def test_a_logger_gets_settings_rows_and_the_best_value(
    tmp_path: Path, runs: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRACKER_TOKEN", "a-very-secret-value")
    result = run(tmp_path / "run", *memory("memory", note="a-very-secret-value"))
    (entry,) = runs.values()
    (settings,) = entry["settings"]
    assert entry["name"] == "run"
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["optimizer"]["lr"] == recorded["optimizer"]["lr"]
    assert settings["names"]["model"] == "alexnet_cifar"
    assert settings["logger"]["memory"]["note"] == "[redacted]"
    *rows, last = entry["rows"]
    assert [row for row in rows if row] == read_metrics(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["test/top1"] == result["metrics"]["test/top1"]
    best = result["best"]
    assert last == {"epoch": best["epoch"], "best/val/top1": best["value"], "step": best["step"]}
    assert entry["ended"][-1] == "success"


SECRETS = ["api_key=XYZ", "access.token=XYZ", "password=123", "authToken=${oc.env:HOME}", "apikey='XYZ'"]


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize("typed", SECRETS)
def test_a_typed_api_key_is_refused_without_being_shown(typed: str, sweep: list[str]):
    key, _, value = typed.partition("=")
    with pytest.raises(UserError, match=rf"^logger\.mine\.{key} would be recorded .* environment") as refused:
        prepare([*sweep, f"logger.mine._target_={HERE}.Memory", f"logger.mine.{typed}"])
    assert value not in str(refused.value)


@pytest.mark.parametrize("value", ["XYZ", "${oc.env:TRACKER_TOKEN}"])
def test_an_api_key_in_a_file_of_settings_is_refused(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKER_TOKEN", "a-very-secret-value")
    (tmp_path / "logger").mkdir()
    mine = {"mine": {"_target_": f"{HERE}.Memory", "api_key": value}}
    (tmp_path / "logger" / "mine.yaml").write_text(yaml.safe_dump(mine))
    assert main(["train", "--config-dir", str(tmp_path), "logger=mine", "hydra.run.dir=run"]) == 1
    assert "logger.mine.api_key would be recorded in plain text" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*"))


def test_other_arguments_of_a_logger_may_have_any_name():
    harmless = {"experiment_key": "abc", "max_tokens": "5", "token_file": "here", "api_key": "null"}
    assert len(memory("mine", **harmless)) == 5


def test_a_resumed_run_can_drop_its_recorded_api_key(tmp_path: Path):
    config, typed = settings(*memory("mine", note="kept"))
    config["logger"]["mine"]["api_key"] = "XYZ"
    RunDirectory(tmp_path).write_settings(config, typed)

    def resumed(*words: str) -> dict[str, Any]:
        typed = resuming.resumed_arguments([f"resume={tmp_path}", f"trust=[{HERE}]", *words])
        found = resuming.resumed_settings(plain(compose("train", typed)), typed)
        assert found is not None
        check_config(found[0])
        return found[0]["logger"]["mine"]

    with pytest.raises(UserError, match=r"to resume a run that has it: logger\.mine\.api_key=null"):
        resumed()
    expected = {"_target_": f"{HERE}.Memory", "note": "kept", "api_key": None}
    assert resumed("logger.mine.api_key=null") == expected


def test_several_loggers_record_at_once(tmp_path: Path, runs: dict[str, dict[str, Any]]):
    run(tmp_path / "run", *memory("one", "two"), "test=false")
    one, two = runs.values()
    assert one["rows"] == two["rows"] != []


def test_a_resumed_run_continues_the_logger_s_run(tmp_path: Path, runs: dict[str, dict[str, Any]]):
    train_until(tmp_path / "run", 4, *memory("memory"), *STEPS)
    (entry,) = runs.values()
    assert entry["ended"][-1] == "failed"
    before = len(entry["rows"])
    resume(tmp_path / "run", f"trust=[{HERE.partition('.')[0]}]")
    assert list(runs) == ["run-0"]
    steps = [row["step"] for row in entry["rows"] if "train/loss_step" in row]
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    assert before < len(entry["rows"]) and len(entry["settings"]) == 1
    assert entry["ended"][-1] == "success"


def test_a_failing_logger_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(Memory, "fails_in", "log_metrics")
    tracker = open_tracker("mine", {"_target_": f"{HERE}.Memory"}, {}, tmp_path, False)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log_metrics({"loss": 1.0}, step)
        tracker.finish(0)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "logger.mine failed (ConnectionError: the server is gone) and records no more"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"_target_": "torch.nn.Linear"},
            r"logger\.mine\._target_=torch\.nn\.Linear is not a Lightning logger",
        ),
        ({"_target_": "no_such.Logger"}, r"logger\.mine\._target_: no_such\.Logger cannot be imported"),
        (
            {"_target_": f"{HERE}.Lacking"},
            r"logger\.mine needs a package that is not installed: .* HINT: pip install tracker",
        ),
        (
            {"_target_": f"{HERE}.Memory", "uri": 1},
            r"logger\.mine: .*Memory: got an unexpected keyword argument 'uri'",
        ),
    ],
)
def test_a_logger_that_cannot_begin_is_one_line(tmp_path: Path, settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said) as caught:
        open_tracker("mine", settings, {}, tmp_path, False)
    assert "\n" not in str(caught.value)


def test_a_run_whose_logger_cannot_begin_ends_the_others(tmp_path: Path, runs: dict[str, dict[str, Any]]):
    typed = [*memory("first"), *prepare([f"logger.second._target_={HERE}.Lacking"])]
    with pytest.raises(UserError, match=r"logger\.second needs a package"):
        run(tmp_path / "run", *typed)
    (entry,) = runs.values()
    assert entry["ended"] == ["failed"]


def test_files_of_a_required_save_dir_go_to_the_run_directory(tmp_path: Path):
    settings = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
    first = open_tracker("csv", settings, {"seed": 1}, tmp_path, False)
    first.log_metrics({"loss": 0.5}, 1)
    first.finish(0)
    again = open_tracker("csv", settings, {"seed": 1}, tmp_path, True)
    again.log_metrics({"loss": 0.25}, 2)
    again.finish(0)
    files = sorted(tmp_path.glob("lightning_logs/version_*/metrics.csv"))
    assert [file.read_text().splitlines()[-1] for file in files] == ["0.5,1", "0.25,2"]


# ------------------------------------------------------------------------------------------------ settings


def test_a_logger_of_one_s_own_needs_no_plus(tmp_path: Path):
    typed = prepare(["logger=none", *memory("mine", note="x"), "callbacks.mine._target_=a.B", "seed=3"])
    config = plain(compose("train", typed))
    assert config["logger"] == {"mine": {"_target_": f"{HERE}.Memory", "note": "x"}}
    assert config["callbacks"]["mine"] == {"_target_": "a.B"}
    check_config(config)


def test_the_name_of_a_tracker_suggests_lightnings_logger():
    expected = "logger.mlflow._target_=lightning.pytorch.loggers.MLFlowLogger"
    assert words.meant("logger", "mlflow") == [expected] == words.meant("logger", "MLFlowLogger")


@pytest.mark.parametrize("key", ["logger.wandb._target_", "callbacks.ema._target_"])
def test_a_class_for_a_key_of_ours_is_refused(key: str):
    config = plain(compose("train", prepare([f"{key}={HERE}.Memory"])))
    with pytest.raises(UserError, match=f"There is no setting {key}"):
        check_config(config)


def test_resuming_trusts_lightnings_loggers_and_no_others():
    def saved(target: str) -> dict[str, Any]:
        return resuming._to_be_trusted({"logger": {"mine": {"_target_": target}}})

    check_trust(saved("lightning.pytorch.loggers.MLFlowLogger"))
    for other in (
        f"{HERE}.Memory",
        "lightning.pytorch.loggers.os.system",
        "lightning.pytorch.loggers.utilities.x.Logger",
    ):
        with pytest.raises(UserError, match="not part of this package"):
            check_trust(saved(other))


# ------------------------------------------------------------------------------------------------ MLflow


@pytest.mark.filterwarnings("ignore")  # MLflow's own, about SQLAlchemy
def test_mlflow_reads_the_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    target = "lightning.pytorch.loggers.MLFlowLogger"
    typed = [
        f"logger.mlflow._target_={target}",
        f"logger.mlflow.tracking_uri={uri}",
        "logger.mlflow.experiment_name=alexnet",
    ]
    train_until(tmp_path / "run", 4, *prepare(typed), *STEPS)
    result = resume(tmp_path / "run")
    client = mlflow.tracking.MlflowClient(uri)
    (entry,) = client.search_runs([client.get_experiment_by_name("alexnet").experiment_id])
    assert (entry.info.run_name, entry.info.status) == ("run", "FINISHED")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert float(entry.data.params["optimizer/lr"]) == settings["optimizer"]["lr"]
    assert entry.data.params["names/model"] == "alexnet_cifar"
    assert result is not None
    assert entry.data.metrics["test/top1"] == pytest.approx(result["metrics"]["test/top1"])
    assert entry.data.metrics["best/val/top1"] == pytest.approx(result["best"]["value"])
    history = client.get_metric_history(entry.info.run_id, "train/loss_step")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "train/loss_step" in row]
    assert [(p.step, pytest.approx(p.value)) for p in history] == [
        (r["step"], r["train/loss_step"]) for r in rows
    ]
