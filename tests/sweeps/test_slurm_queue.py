from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps import slurm as slurm_queue


def test_an_sbatch_timeout_warns_that_the_sweep_may_have_been_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def hangs(command: tuple[str, ...], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(slurm_queue.subprocess, "run", hangs)
    with pytest.raises(UserError, match=rf"cancel its jobs \(squeue .* sweep\.resume={tmp_path}"):
        slurm_queue.submit(tmp_path / "array-1.sh")
