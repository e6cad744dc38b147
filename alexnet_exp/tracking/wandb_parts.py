"""The parts of a W&B run: one folder in the run directory for each start, all under one id."""

from __future__ import annotations

import contextlib
import os
import secrets
import string
from pathlib import Path

_ENDED = "ended"  # an empty file beside what W&B writes: everything has arrived there


def new_run_id() -> str:
    """Return a W&B run id: 8 letters and digits, from the system's randomness, so that seeded runs differ."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def id_of_environment() -> str | None:
    """Return the id that WANDB_RUN_ID names: the agent of a W&B sweep gives its job one."""
    return os.environ.get("WANDB_RUN_ID") or None


def find_run_id(run_dir: Path) -> str | None:
    """Return the id of the W&B run in `run_dir`, or None if there is none."""
    folders = run_folders(run_dir)
    return next(folders[-1].glob("run-*.wandb")).stem.removeprefix("run-") if folders else None


def run_folders(run_dir: Path, run_id: str = "*") -> list[Path]:
    """Return the folders of W&B runs in `run_dir`, oldest first."""
    files = Path(run_dir).glob(f"wandb/*run-*-*/run-{run_id}.wandb")
    return sorted((file.parent for file in files), key=lambda folder: folder.name.removeprefix("offline-"))


def mark_ended(folder: Path | None) -> None:
    """Note that a part has come to its end."""
    if folder is not None:
        with contextlib.suppress(OSError):  # without the note its rows are recorded once more
            (folder / _ENDED).touch()


def was_killed(folder: Path) -> bool:
    """Say whether a part may lack what was logged last: W&B writes blocks of 32 KB, and a kill takes the open one."""
    return not (folder / _ENDED).exists()
