"""Secrets that a run meets are in none of its files: planted where a user might have them, looked for everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from alexnet_exp.cli import main
from alexnet_exp.runs.train import train
from alexnet_exp.tracking.redact import REDACTED
from tests.training.small_runs import settings

FROM_ENVIRONMENT = "planted-value-of-the-variable"
WANDB_KEY = "0123456789abcdef" * 2 + "01234567"
TYPED = "hunter22-typed-password"
SECRETS = (FROM_ENVIRONMENT, WANDB_KEY, TYPED)


class Client(Callback):
    """A callback of the user's with a password, which it loses in an error."""

    def __init__(self, password: str, fail: bool = False) -> None:
        self.password, self.fail = password, fail

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self.password == TYPED  # what runs is not redacted
        if self.fail:
            raise RuntimeError(
                f"server said no to password={self.password} and {FROM_ENVIRONMENT} {WANDB_KEY}"
            )


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", FROM_ENVIRONMENT)


def start(run_dir: Path, fail: bool) -> None:
    config, typed = settings("test=false", f"paths.data_dir=/tmp/{FROM_ENVIRONMENT}")
    config["callbacks"]["client"] = {"_target_": f"{__name__}.Client", "password": TYPED, "fail": fail}
    config["logger"] |= {"notes": f"key {WANDB_KEY}", "api_key": TYPED} if "wandb" in config["logger"] else {}
    typed += [f"+callbacks.client.password={TYPED}", f"+notes={WANDB_KEY}"]
    command = (
        f"python train.py +callbacks.client.password={TYPED} +notes={WANDB_KEY} token={FROM_ENVIRONMENT}"
    )
    train(config, typed, run_dir, command)


def leaks(folder: Path) -> list[str]:
    """Return the files that hold one of the secrets."""
    return [
        f"{path.relative_to(folder)}: {secret}"
        for path in folder.rglob("*")
        if path.is_file()
        for secret in SECRETS
        if secret.encode() in path.read_bytes()
    ]


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path) -> None:
    start(tmp_path / "run", fail=False)
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert {"config.yaml", "overrides.yaml", "result.json", "train.log", "report.html", "last.ckpt"} <= names
    assert leaks(tmp_path) == []
    assert REDACTED in (tmp_path / "run" / "config.yaml").read_text()


def test_no_file_of_a_failed_run_holds_a_secret(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="said no"):
        start(tmp_path / "run", fail=True)
    assert "said no" in (tmp_path / "run" / "train.log").read_text()
    assert "said no" in (tmp_path / "run" / "result.json").read_text()
    assert "said no" in (tmp_path / "run" / "report.html").read_text()
    assert leaks(tmp_path) == []


def test_a_folder_named_for_a_commit_is_no_secret(tmp_path: Path) -> None:
    from alexnet_exp.tracking.run_directory import RunDirectory

    config = {"data": {"root": f"/data/{WANDB_KEY}/images"}, "weights": f"/data/{WANDB_KEY}"}
    RunDirectory(tmp_path).write_settings(config, [f"data.root=/data/{WANDB_KEY}/images"])
    assert RunDirectory(tmp_path).config() == config


def test_a_run_whose_secret_was_not_written_down_asks_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path / "run", fail=False)
    code = main(["train", f"resume={tmp_path / 'run'}", "trainer.max_epochs=2", f"trust=[{__name__}]"])
    assert code == 1
    assert "callbacks.client.password" in capsys.readouterr().err
