"""Which code ran: the git commit, whether the checkout differs from it, and by what."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from alexnet_exp.tracking.redact import redact

GIT_SECONDS = 5.0
MAX_DIFF_BYTES = 1_000_000
# api_key = "..." in code: nobody's setting, so the name may decide.
_LITERAL = re.compile(
    r"((?i:api_?key|access_?key|secret|password|passwd|auth_?token|access_?token)\b[\"']?\s*[:=]\s*)([\"'])[^\"'\n]+\2"
)
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class CodeState:
    """State of a git checkout; `diff` holds the changes to tracked files, without secrets, at most 1 MB."""

    commit: str
    dirty: bool
    diff: str


def code_state(directory: Path | None = None) -> CodeState | None:
    """Return the state of the checkout around `directory`, or None where there is none (or no git).

    Args:
        directory: any folder in the checkout. Left out: that of this package if git tracks it (not a virtual
            environment that happens to lie in somebody's checkout), else the current one.
    """
    if directory is None:
        tracked = _git(_PACKAGE, "ls-files", "--error-unmatch", "__init__.py") is not None
        directory = _PACKAGE if tracked else Path.cwd()
    commit = _git(directory, "rev-parse", "HEAD")
    status = _git(directory, "status", "--porcelain")
    diff = _git(directory, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
    if commit is None or status is None or diff is None:
        return None
    return CodeState(
        commit.strip(), bool(status.strip()), _bounded(_LITERAL.sub(r"\1\2[redacted]\2", redact(diff)))
    )


def _bounded(diff: str) -> str:
    data = diff.encode()
    if len(data) <= MAX_DIFF_BYTES:
        return diff
    note = f"\n[cut: the whole diff has {len(data)} bytes]\n"
    return data[: MAX_DIFF_BYTES - len(note)].decode(errors="ignore") + note


def _git(directory: Path, *arguments: str) -> str | None:
    """Return git's answer, or None if it has none: not a checkout, no commit yet, no git, too slow."""
    # Never ask for a password, never take a lock that the user's own git may be waiting for.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=GIT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
