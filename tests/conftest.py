"""What every test starts from: one thread each, no tracker account, no data set but the embedded one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexnet_exp.startup import spin_briefly

# Before torch is imported: several test processes on few cores spend their time waiting for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
spin_briefly()
# cuBLAS reads it at its first product; without it, deterministic algorithms refuse every linear layer.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep decoded images of test data out of the user's folders."""
    monkeypatch.setenv("ALEXNET_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _nobody_in_particular(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what a developer's own environment would add to a run."""
    for name in (
        "WANDB_MODE",
        "WANDB_API_KEY",
        "WANDB_BASE_URL",
        "WANDB_PROJECT",
        "WANDB_NAME",
        "WANDB_RUN_ID",
        "ALEXNET_URL_PASSWORD",
        "PGPASSWORD",
        "HYDRA_FULL_ERROR",
        "COLUMNS",
        "FORCE_COLOR",
        "TTY_COMPATIBLE",
        "LOCAL_RANK",
        "WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no settings and no W&B server, whatever the machine has; wandb forgets them again afterwards."""
    import wandb

    wandb.teardown()  # ahead of the rest: it takes the address of its service out of the environment
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    wandb.teardown()
