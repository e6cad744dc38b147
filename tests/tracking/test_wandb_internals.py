"""The private names of wandb and wandb-workspaces, and where wandb keeps a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wandb

from alexnet_exp.tracking.wandb.internals import as_sent, find_run_id, is_offline, netrc_key, run_folders


def test_a_key_is_found_in_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = "0123456789" * 4
    (tmp_path / "netrc").write_text(f"machine example.org login user password {key}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert netrc_key("https://example.org") == key
    assert netrc_key("https://example.com") is None


def test_runs_are_found_where_wandb_keeps_them(tmp_path: Path) -> None:
    assert (run_folders(tmp_path), find_run_id(tmp_path)) == ([], None)
    for run_id, online in (("first123", True), ("second45", False)):
        settings = wandb.Settings(
            root_dir=str(tmp_path), run_id=run_id, mode="online" if online else "offline"
        )
        file = Path(settings.sync_file)
        file.parent.mkdir(parents=True)
        file.touch()
        assert run_folders(tmp_path, run_id) == [file.parent]
        assert is_offline(file.parent) is not online
        assert find_run_id(tmp_path) in ("first123", run_id)  # both start in the same second
    assert len(run_folders(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # written for pydantic 1
def test_the_payload_for_the_server_is_plain_values() -> None:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    sent = as_sent(workspaces.Workspace(entity="me", project="mine", name="A view"))
    assert (sent["entity"], sent["project"], sent["displayName"]) == ("me", "mine", "A view")
    assert json.loads(json.dumps(sent)) == sent
