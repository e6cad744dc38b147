from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from read_wandb import finished, folder

from alexnet_exp.tracking.environment import CodeState, code_state
from alexnet_exp.tracking.wandb.logger import WandbTracker

Make = Callable[..., WandbTracker]


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments], capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    directory = tmp_path / "checkout"
    directory.mkdir()
    git(directory, "init", "--quiet")
    (directory / "net.py").write_text("width = 96\n")
    git(directory, "add", "net.py")
    git(directory, "commit", "--quiet", "--message", "first")
    return directory


def test_a_clean_checkout_has_a_commit_and_no_diff(checkout: Path) -> None:
    assert code_state(checkout) == CodeState(git(checkout, "rev-parse", "HEAD"), dirty=False, diff="")


def test_uncommitted_changes_are_saved_without_secrets(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Make
) -> None:
    (checkout / "net.py").write_text('width = 64\napi_key = "hunter2"\n')
    state = code_state(checkout)
    assert state is not None
    monkeypatch.setattr("alexnet_exp.tracking.wandb.logger.code_state", lambda: state)
    logger = tracker(tmp_path / "run", save_code=True)
    run = finished(logger)
    assert run.config["_environment"]["git_commit"] == git(checkout, "rev-parse", "HEAD")
    assert run.config["_environment"]["git_dirty"] is True
    assert "code.diff" in run.files
    diff = (folder(logger) / "files" / "code.diff").read_text()
    assert "+width = 64" in diff
    assert 'api_key = "[redacted]"' in diff


def test_a_huge_diff_is_truncated(checkout: Path) -> None:
    (checkout / "net.py").write_text("x = 1\n" * 400_000)
    state = code_state(checkout)
    assert state is not None
    assert 990_000 < len(state.diff.encode()) <= 1_000_000
    assert "[truncated: the full diff has" in state.diff


def test_outside_a_checkout_nothing_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Make
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert code_state() is None
    logger = tracker(tmp_path / "run", save_code=True)
    assert not set(finished(logger).config["_environment"]) & {"git_commit", "git_dirty"}
