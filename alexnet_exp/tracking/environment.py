"""The environment of a run: versions, hardware, code."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from alexnet_exp import cores
from alexnet_exp.tracking.redact import redact

PACKAGES = (
    "torch", "torchvision", "torchcodec", "lightning", "torchmetrics", "hydra-core", "omegaconf", "wandb", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python, this package, and those that affect results."""
    from alexnet_exp.version import __version__

    found = {"python": platform.python_version(), "alexnet_exp": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)  # importing them would take seconds
        except metadata.PackageNotFoundError:
            continue  # optional
    return found


def hardware() -> dict[str, Any]:
    """Return CPU, cores, memory in GiB and accelerators."""
    import torch

    found: dict[str, Any] = {
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": cores.available_cores(),
        "threads": torch.get_num_threads(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["cuda"] = torch.version.cuda
    return found


def git_state() -> dict[str, Any] | None:
    """Return the commit of this checkout, and whether it has uncommitted changes; None outside a checkout."""
    state = code_state()
    return None if state is None else {"commit": state.commit, "dirty": state.dirty}


def provenance() -> dict[str, Any]:
    """Return what every result.json says of where it comes from."""
    return {"git": git_state(), "versions": versions(), "hardware": hardware()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: fall back to the platform module
    return platform.processor() or platform.machine()


GIT_SECONDS = 5.0
MAX_DIFF_BYTES = 1_000_000
# api_key = "..." in code. Unlike in settings, the name alone decides: a redacted diff breaks no run.
_LITERAL = re.compile(
    r"((?i:api_?key|access_?key|secret|password|passwd|auth_?token|access_?token)\b[\"']?\s*[:=]\s*)([\"'])[^\"'\n]+\2"
)
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class CodeState:
    """State of a git checkout; `diff` holds the changes to tracked files, redacted, at most 1 MB."""

    commit: str
    dirty: bool
    diff: str


def code_state(directory: Path | None = None) -> CodeState | None:
    """Return the state of the checkout around `directory`, or None without a checkout or git.

    Args:
        directory: Any folder in the checkout. None: this package's folder if git tracks it (unlike a virtual
            environment inside some checkout), else the current one.
    """
    if directory is None:
        tracked = _git(_PACKAGE, "ls-files", "--error-unmatch", "__init__.py") is not None
        directory = _PACKAGE if tracked else Path.cwd()
    commit = _git(directory, "rev-parse", "HEAD")
    status = _git(directory, "status", "--porcelain")
    # Without the diff programs of the user's git configuration: their output may be anything, in any amount.
    diff = _git(directory, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
    if commit is None or status is None or diff is None:
        return None
    diff = _LITERAL.sub(r"\1\2[redacted]\2", redact(diff))
    if len(data := diff.encode()) > MAX_DIFF_BYTES:
        note = f"\n[truncated: the full diff has {len(data)} bytes]\n"
        # errors="ignore": the cut may go through a character.
        diff = data[: MAX_DIFF_BYTES - len(note)].decode(errors="ignore") + note
    return CodeState(commit.strip(), bool(status.strip()), diff)


def _git(directory: Path, *arguments: str) -> str | None:
    """Return git's output, or None on failure: no checkout, no commit, no git, timeout."""
    # Never prompt for a password, and never hold a lock that the user's own git would run into.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=GIT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
