"""Ending a run from outside: the step is finished and saved first, so that the run can go on from there.

SIGTERM and SIGUSR1 are what batch systems send ahead of taking a machine away; Ctrl-C is a person. Once an end is asked
for, a Ctrl-C ends the run at once, and the others change nothing: batch systems send several, and checkpoint, report
and the word to SLURM that the job is to start again come after the first.
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
_REQUEUES = 3  # times that SLURM is asked: a busy controller drops requests
_ANSWER_SECONDS, _PAUSE_SECONDS = 20.0, 2.0  # all of them within the 90 s that a job has by default
_KEY = "alexnet_exp"  # in the store that the ranks of a run share


class Stopped(BaseException):
    """A signal ended the run; no error, so nothing that handles errors catches it.

    Args:
        number: The signal.
        saved_step: Optimizer steps in the checkpoint that was written for it; None if none was.
    """

    def __init__(self, number: int, saved_step: int | None = None) -> None:
        self.number, self.saved_step = number, saved_step
        super().__init__(f"stopped by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """What batch systems expect: 143, for a person 130."""
        return 128 + (signal.SIGINT if self.number == signal.SIGINT else signal.SIGTERM)


class _State:
    """What the handlers of this process know; signals are the process's, so there is one."""

    can_wait = False  # a training loop asks `due` after every step
    held = False  # nothing may end what goes on
    requested: int | None = None  # the first signal; until the end is written


_state = _State()


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn signals into `Stopped`: after the next step inside a training loop, at once elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers belong to the main thread
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        _state.can_wait, _state.held, _state.requested = False, False, None
        for number, handler in before.items():
            signal.signal(number, handler)


def hold_early() -> None:
    """Keep SIGUSR1 for the run that is about to begin: by default it ends a process, and SLURM sees a failure."""
    if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, _note)


def _note(number: int, frame: FrameType | None) -> None:
    _state.requested = number


def ignore_signals() -> None:
    """Let the first rank decide when a run ends; the others follow it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let signals wait for the end of an import: what it has half done would fail the next one, which ends the run."""
    _state.held = True
    try:
        yield
    finally:
        _state.held = False
    if _state.requested is not None:
        raise Stopped(_state.requested)


def _handle(number: int, frame: FrameType | None) -> None:
    if (
        _state.requested is not None
    ):  # nothing cuts short how a run ends, save somebody who does not want to wait
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        return
    _state.requested = number
    if not (_state.can_wait or _state.held):
        raise Stopped(number)
    what = "finishing this step and saving" if _state.can_wait else "ending"
    log.info("%s: %s. Ctrl-C ends the run at once.", signal.Signals(number).name, what)


@contextlib.contextmanager
def training_loop() -> Iterator[None]:
    """Mark where `due` is asked after every step; a signal that came after the last of them ends the run here."""
    _state.can_wait = True
    try:
        yield
    finally:
        _state.can_wait = False
    if _state.requested is not None:
        raise Stopped(_state.requested)


def due(step: int, trainer: Any) -> int | None:
    """Return the signal that asks for the end, once every rank stands at the same step.

    Args:
        step: Optimizer steps taken.
        trainer: Lightning's.
    """
    number = agreed("stop", _state.requested or 0, step, trainer)
    return number or None


def agreed(what: str, wanted: int, step: int, trainer: Any) -> int:
    """Return what the first rank wants, once every rank stands at the same step; every rank must ask at every step.

    Args:
        what: Apart from other questions.
        wanted: 0 for nothing; only the first rank's counts.
        step: Optimizer steps taken.
        trainer: Lightning's.
    """
    if trainer.world_size == 1:
        return int(wanted)
    from alexnet_exp.torch_internals import shared_store

    store, key = shared_store(), f"{_KEY}/{what}"
    last, number = map(int, store.get(key).split()) if store.check([key]) else (-1, 0)
    if trainer.is_global_zero and wanted and last < step:
        # The gradients of the next step need every rank, so none is past it when this is written.
        store.set(key, f"{step + 2} {int(wanted)}")
    return number if step == last else 0


def requeue() -> bool:
    """Ask SLURM to start this job again, if it is one; return whether it will."""
    job, tool = os.environ.get("SLURM_JOB_ID"), shutil.which("scontrol")
    if job is None or tool is None:
        return False
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
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
    """Ask SLURM for something; return why it did not do it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer for {_ANSWER_SECONDS:.0f} s"
    except OSError as error:
        return str(error)
    return " ".join(done.stderr.split()) if done.returncode else None
