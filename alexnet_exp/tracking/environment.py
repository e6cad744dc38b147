"""What a run ran on: versions, hardware, code."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from alexnet_exp import cores
from alexnet_exp.tracking.code_state import code_state

PACKAGES = (
    "torch",
    "torchvision",
    "torchcodec",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "wandb",
    "numpy",
)


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and those that decide a result."""
    from alexnet_exp.version import __version__

    found = {"python": platform.python_version(), "alexnet_exp": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an optional package that is not installed has no version
    return found


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory in GiB and accelerators."""
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
    """Return the commit of the checkout that this package runs from, and whether it was changed; None outside one."""
    state = code_state()
    return None if state is None else {"commit": state.commit, "dirty": state.dirty}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module knows a name, if a poorer one
    return platform.processor() or platform.machine()
