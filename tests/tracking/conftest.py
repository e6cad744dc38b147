"""W&B without an account: no test connects to a server elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.tracking.wandb.logger import WandbTracker


@pytest.fixture
def tracker(no_account: None) -> Callable[..., WandbTracker]:
    """Make trackers: by default offline and without the code."""

    def make(run_dir: Path, **options: Any) -> WandbTracker:
        return WandbTracker(
            run_dir, **{"config": {"seed": 1}, "mode": "offline", "save_code": False, **options}
        )

    return make
