"""Stopping a run by a signal: it finishes the current step and saves a checkpoint, so that it can be resumed.

Batch systems send SIGTERM or SIGUSR1 before they take a machine away; Ctrl-C comes from a person. After the first
signal, Ctrl-C exits immediately and all others are ignored: batch systems send several, and the checkpoint, the report
and the requeue request still have to be written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_REQUEUES = 3  # attempts: a busy controller drops requests
_ANSWER_SECONDS, _PAUSE_SECONDS = 20.0, 2.0  # three attempts fit into the 90 s that a job has by default
_KEY = "alexnet_exp"  # prefix in the store shared by the ranks


class Stopped(BaseException):
    """Raised when a signal ends the run. A BaseException, so that no error handling catches it.

    Args:
        number: The signal.
        saved_step: Optimizer step of the checkpoint written before stopping; None if none was.
    """

    def __init__(self, number: int, saved_step: int | None = None) -> None:
        self.number, self.saved_step = number, saved_step
        super().__init__(f"stopped by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after any other signal, as batch systems expect."""
        return 128 + (signal.SIGINT if self.number == signal.SIGINT else signal.SIGTERM)


class _State:
    """State of the signal handlers; global, because signals belong to the process."""

    can_wait = False  # inside a training loop, which calls `due` after every step
    held = False  # inside `signals_held`
    requested: int | None = None  # the first signal received


_state = _State()


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise `Stopped` on a signal: after the current step inside a training loop, immediately elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        _state.can_wait, _state.held, _state.requested = False, False, None
        for number, handler in before.items():
            signal.signal(number, handler)


def hold_early() -> None:
    """Record an early SIGUSR1 for the run about to start; by default it kills the process and the SLURM job fails."""
    if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, _remember)


def _remember(number: int, frame: FrameType | None) -> None:
    _state.requested = number


def ignore_signals() -> None:
    """Leave it to rank 0 when a run stops; the others follow it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Defer signals during an import: one interrupted halfway would make the next import of that module fail."""
    _state.held = True
    try:
        yield
    finally:
        _state.held = False
    if _state.requested is not None:
        raise Stopped(_state.requested)


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.requested is not None:  # already stopping; only Ctrl-C cuts that short
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        return
    _state.requested = number
    if not (_state.can_wait or _state.held):
        raise Stopped(number)
    what = "finishing this step and saving" if _state.can_wait else "ending"
    log.info("%s: %s. Press Ctrl-C to exit immediately.", signal.Signals(number).name, what)


@contextlib.contextmanager
def training_loop() -> Iterator[None]:
    """Mark a training loop that calls `due` after every step; stop here on a signal that came after the last call."""
    _state.can_wait = True
    try:
        yield
    finally:
        _state.can_wait = False
    if _state.requested is not None:
        raise Stopped(_state.requested)


def due(step: int, trainer: Any) -> int | None:
    """Return the signal to stop for, at the same step on every rank; None to continue.

    Args:
        step: Optimizer steps taken.
        trainer: Lightning's.
    """
    return agreed("stop", _state.requested or 0, step, trainer) or None


def agreed(what: str, wanted: int, step: int, trainer: Any) -> int:
    """Return the request of rank 0, at the same step on every rank; all ranks must call it at every step.

    Args:
        what: Name of the request.
        wanted: 0 for none; ignored on all ranks but the first.
        step: Optimizer steps taken.
        trainer: Lightning's.
    """
    if trainer.world_size == 1:
        return int(wanted)
    from alexnet_exp.torch_internals import shared_store

    # `check` first: `get` waits for a key that nobody has set. Both ask a server on rank 0, not the device.
    store, key = shared_store(), f"{_KEY}/{what}"
    last, number = map(int, store.get(key).split()) if store.check([key]) else (-1, 0)
    # A request that is still ahead stays as it is: another rank may have read it, and all must act at the same step.
    if trainer.is_global_zero and wanted and last < step:
        # No rank is past the next step yet: its all-reduce needs this one. So all ranks see it before step + 2.
        store.set(key, f"{step + 2} {int(wanted)}")
    return number if step == last else 0


def requeue() -> bool:
    """Ask SLURM to requeue this job; return whether it accepted (False outside SLURM)."""
    job, tool = os.environ.get("SLURM_JOB_ID"), shutil.which("scontrol")
    if job is None or tool is None:
        return False
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # One task of an array has the array's own number as SLURM_JOB_ID, which would requeue all of them.
    name = f"{array}_{task}" if array and task else job
    for attempt in range(_REQUEUES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        refusal = _refusal([tool, "requeue", name])
        if refusal is None:
            return True
        log.warning("SLURM did not requeue job %s: %s", name, refusal)
    return False


def _refusal(command: list[str]) -> str | None:
    """Run a SLURM command; return why it failed, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer for {_ANSWER_SECONDS:.0f} s"
    except OSError as error:
        return str(error)
    return " ".join(done.stderr.split()) if done.returncode else None
