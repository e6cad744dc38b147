"""W&B without an account: no test leaves this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from alexnet_exp.tracking.wandb_logger import WandbTracker


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no settings and no server, whatever the machine has; wandb forgets them again afterwards."""
    wandb.teardown()  # ahead of the rest: it takes the address of its service out of the environment
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    wandb.teardown()


@pytest.fixture
def tracker(no_account: None) -> Callable[..., WandbTracker]:
    """Make trackers: offline and without the code unless told otherwise."""

    def make(run_dir: Path, **options: Any) -> WandbTracker:
        return WandbTracker(
            run_dir, **{"config": {"seed": 1}, "mode": "offline", "save_code": False, **options}
        )

    return make
