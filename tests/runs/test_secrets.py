"""Settings are stored exactly; secrets are hidden in output, and passwords of URLs are not written to any file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from alexnet_exp.runs.train.command import train
from alexnet_exp.tracking.run_directory import RunDirectory
from tests.training.small_runs import checkpoint, settings

FROM_ENVIRONMENT = "planted-value-of-the-variable"
WANDB_KEY = "0123456789abcdef" * 2 + "01234567"
TYPED = "hunter22-typed-password"
URL = f"s3://me:{TYPED}@host/bucket"
EXACT = (
    "config.yaml",
    "overrides.yaml",
    "last.ckpt",
    "last-1.ckpt",
    "best.ckpt",
)  # these hold the exact settings
COMMIT = "89abcdef01234567" * 2 + "89abcdef"


class Client(Callback):
    """A user's callback with a storage client, which leaks its password in an error."""

    def __init__(self, url: str, key: str = "", token: str = "", fail: bool = False) -> None:
        self.url, self.fail = url, fail

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self.url == URL  # the running object has the password
        if self.fail:
            raise RuntimeError(f"server said no to {self.url} and {FROM_ENVIRONMENT} {WANDB_KEY}")


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", FROM_ENVIRONMENT)
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)


def start(run_dir: Path, fail: bool) -> None:
    config, typed = settings("test=false", f"paths.data_dir=/tmp/{FROM_ENVIRONMENT}")
    client = {"url": URL, "key": WANDB_KEY, "token": f"flowers-{COMMIT}", "fail": fail}
    config["callbacks"]["client"] = {"_target_": f"{__name__}.Client", **client}
    typed += [f"+callbacks.client.url={URL}", f"+callbacks.client.key={WANDB_KEY}"]
    train(config, typed, run_dir, f"python train.py {' '.join(typed)}")


def leaks(folder: Path) -> list[str]:
    """Return the files that contain the password of a URL, or show another secret."""
    return [
        f"{path.relative_to(folder)}: {secret}"
        for path in folder.rglob("*")
        if path.is_file()
        for secret in (TYPED, *(() if path.name in EXACT else (FROM_ENVIRONMENT, WANDB_KEY)))
        if secret.encode() in path.read_bytes()
    ]


def test_the_files_of_a_run_keep_settings_and_show_no_secret(tmp_path: Path) -> None:
    start(tmp_path / "run", fail=False)
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert {"config.yaml", "overrides.yaml", "result.json", "train.log", "report.html", "last.ckpt"} <= names
    assert leaks(tmp_path) == []
    run = RunDirectory(tmp_path / "run")
    for config in (run.config(), checkpoint(run.path)["config"]):
        assert config["callbacks"]["client"] == {
            "_target_": f"{__name__}.Client", "url": "s3://me:***@host/bucket", "key": WANDB_KEY,
            "token": f"flowers-{COMMIT}", "fail": False,
        }  # fmt: skip
        assert config["paths"]["data_dir"] == f"/tmp/{FROM_ENVIRONMENT}"
    assert f"+callbacks.client.key={WANDB_KEY}" in run.overrides()


def test_no_file_of_a_failed_run_shows_a_secret(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="said no"):
        start(tmp_path / "run", fail=True)
    for name in ("train.log", "result.json", "report.html"):
        assert (
            "said no to s3://me:***@host/bucket and [redacted] [redacted]"
            in (tmp_path / "run" / name).read_text()
        )
    assert leaks(tmp_path) == []


class Tokens(torch.nn.Module):
    """A custom network with settings that sound like secrets."""

    def __init__(
        self, class_token: str, pos_key: int, tokens: list[str], num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        assert class_token == "mean-of-all" and pos_key == 123456 and tokens == ["a" * 40]
        self.head = torch.nn.Linear(in_channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))  # (N, K)


def test_a_network_with_tokens_and_keys_is_rebuilt_from_its_checkpoint(tmp_path: Path) -> None:
    from alexnet_exp.training.checkpoint.start import network_of

    config, typed = settings("test=false")
    config["model"] = {
        "_target_": f"{__name__}.Tokens", "class_token": "mean-of-all", "pos_key": 123456, "tokens": ["a" * 40],
        "num_classes": 10, "in_channels": 3,
    }  # fmt: skip
    train({**config, "model": dict(config["model"])}, typed, tmp_path / "run", "")
    saved = checkpoint(tmp_path / "run")
    assert saved["config"]["model"]["tokens"] == ["a" * 40]
    assert isinstance(network_of(saved, trust=[__name__]), Tokens)


def test_loading_a_redacted_checkpoint_names_the_redacted_setting(tmp_path: Path) -> None:
    from alexnet_exp.errors import UserError
    from alexnet_exp.training.checkpoint.start import network_of

    hidden = {"_target_": f"{__name__}.Tokens", "class_token": "[redacted]"}
    with pytest.raises(
        UserError, match=r"stored model\.class_token as \[redacted\].*resume=RUN model\.class_token=VALUE"
    ):
        network_of({"config": {"model": hidden}}, trust=[__name__])


def test_a_folder_named_after_a_commit_is_kept(tmp_path: Path) -> None:
    config = {"data": {"root": f"/data/flowers-{WANDB_KEY}"}, "weights": f"/data/{WANDB_KEY}"}
    RunDirectory(tmp_path).write_settings(config, [f"data.root=/data/flowers-{WANDB_KEY}"])
    assert RunDirectory(tmp_path).config() == config
    assert RunDirectory(tmp_path).overrides() == [f"data.root=/data/flowers-{WANDB_KEY}"]
