"""Defaults for every test: one thread per process, no tracker account, no data set but the embedded one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexnet_exp.startup import spin_briefly

# Set before torch is imported: with several test processes on few cores, more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
spin_briefly()
# cuBLAS reads it at its first matrix product; without it, deterministic mode rejects every linear layer.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep decoded images of test data out of the user's folders."""
    monkeypatch.setenv("ALEXNET_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset variables of the developer's own environment that would affect a run."""
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
    """Hide the W&B key, settings and server of this machine; reset wandb again afterwards."""
    import wandb

    wandb.teardown()  # first: it removes its service's address from the environment
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    wandb.teardown()
