"""What is used of wandb's and wandb-workspaces' private parts; tests/tracking/test_wandb_internals.py names each."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def netrc_key(url: str) -> str | None:
    """Return the API key that the user's .netrc has for a server; wandb's own settings know the other places alone.

    Raises:
        wandb.errors.AuthenticationError: If it cannot be one.
    """
    from wandb.sdk.lib import wbauth

    return wbauth.read_netrc_auth(host=url)


def run_folders(run_dir: Path, run_id: str = "*") -> list[Path]:
    """Return the folders of W&B runs in `run_dir`, oldest first; wandb tells of its own process's run alone."""
    files = Path(run_dir).glob(f"wandb/*run-*-*/run-{run_id}.wandb")
    return sorted((file.parent for file in files), key=lambda folder: folder.name.removeprefix("offline-"))


def find_run_id(run_dir: Path) -> str | None:
    """Return the id of the W&B run in `run_dir`, or None if there is none."""
    folders = run_folders(run_dir)
    return next(folders[-1].glob("run-*.wandb")).stem.removeprefix("run-") if folders else None


def is_offline(folder: Path) -> bool:
    """Return whether a part of a run, as `run_folders` has it, was recorded without a server."""
    return folder.name.startswith("offline-")


def as_sent(part: Any) -> dict[str, Any]:
    """Return what the server would be sent of a workspace or report, as plain values; `save` alone would send it."""
    return part._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
