"""Profilers of the trainer."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler


class NoProfiler(PassThroughProfiler):
    """Profiles nothing; Lightning's own makes a generator for each of thirty actions a step."""

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:
        return _NOTHING


_NOTHING = contextlib.nullcontext()


def make_profiler(name: str | None, run_dir: Path) -> Profiler:
    """Return a profiler that writes into a run directory; of no name, one that does nothing."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    return kinds[name](dirpath=run_dir, filename="profile") if name else NoProfiler()
