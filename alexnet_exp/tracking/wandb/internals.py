"""Private names of wandb and wandb-workspaces that we use; tests/tracking/test_wandb_internals.py checks each."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def netrc_key(url: str) -> str | None:
    """Return the API key for a server in the user's .netrc, which wandb's public settings do not read.

    Raises:
        wandb.errors.AuthenticationError: If it is malformed.
    """
    from wandb.sdk.lib import wbauth

    return wbauth.read_netrc_auth(host=url)


def run_folders(run_dir: Path, run_id: str = "*") -> list[Path]:
    """Return the folders of W&B runs in `run_dir`, oldest first; wandb itself only knows the current process's."""
    files = Path(run_dir).glob(f"wandb/*run-*-*/run-{run_id}.wandb")
    # Names are run-DATE_TIME-ID and offline-run-DATE_TIME-ID: without the prefix they sort by time.
    return sorted((file.parent for file in files), key=lambda folder: folder.name.removeprefix("offline-"))


def find_run_id(run_dir: Path) -> str | None:
    """Return the ID of the W&B run in `run_dir`, or None."""
    folders = run_folders(run_dir)
    return next(folders[-1].glob("run-*.wandb")).stem.removeprefix("run-") if folders else None


def is_offline(folder: Path) -> bool:
    """Return whether one of `run_folders` was recorded offline."""
    return folder.name.startswith("offline-")


def as_sent(part: Any) -> dict[str, Any]:
    """Return the payload of a workspace or report as plain values, without sending it as `save` would."""
    return part._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
