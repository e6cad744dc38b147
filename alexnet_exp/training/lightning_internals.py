"""What is switched off in Lightning by private names; tests/training/test_lightning_internals.py holds each of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler


def leave_signals_to_us(trainer: Trainer) -> None:
    """Take Lightning's own handling of signals out of a trainer; training/launch/signals.py does it.

    Args:
        trainer: Not run yet.
    """
    # Its handler of SIGTERM calls a collective operation from inside the signal, and ranks hang in it.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # On several devices it asks before every step whether the first rank has had one, which waits for the device.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


class NoProfiler(PassThroughProfiler):
    """Profiles nothing; Lightning's own makes a generator for each of thirty actions a step."""

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:
        return _NOTHING


_NOTHING = contextlib.nullcontext()


def make_profiler(name: str | None, run_dir: Path) -> Profiler:
    """Return a profiler that writes into a run directory; of no name, one that does nothing."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    return kinds[name](dirpath=run_dir, filename="profile") if name else NoProfiler()
