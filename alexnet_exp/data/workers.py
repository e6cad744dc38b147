"""Processes that decode: signals are for the process that started them, and it ends them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

from alexnet_exp.torch_internals import worker_processes

# What a terminal, a batch system or systemd sends to every process of a job at once.
SIGNALS = frozenset(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n))


def ignore_signals(worker: int = 0) -> None:
    """Leave it to the parent when a run ends: a worker that dies first is an error there. A `worker_init_fn`."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def start(loader: DataLoader) -> Iterator[Any]:
    """Begin a pass over a loader whose `worker_init_fn` is `ignore_signals`."""
    with signals_blocked():
        batches = iter(loader)
    if workers := worker_processes(batches):
        for worker in workers:
            worker.terminate = worker.kill  # torch's last resort, and SIGTERM is ignored
        # Python ends the processes that are left when it exits by SIGTERM, and would wait for ever.
        Finalize(batches, _kill, args=(workers,), exitpriority=0)
    return batches


def _kill(workers: list[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # torch reports workers that die
        for worker in workers:
            if worker.is_alive():
                worker.kill()
                worker.join()


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals while workers are forked: until they ignore them, they have the handlers of this process."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
