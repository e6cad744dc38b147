from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps import slurm as slurm_queue


def test_a_controller_that_does_not_answer_may_have_taken_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def hangs(command: tuple[str, ...], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(slurm_queue.subprocess, "run", hangs)
    with pytest.raises(UserError, match=rf"look at squeue .* sweep\.resume={tmp_path}"):
        slurm_queue.submit(tmp_path / "array-1.sh")
