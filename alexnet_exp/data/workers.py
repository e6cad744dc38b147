"""DataLoader workers that leave signals to the main process, which then shuts them down."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

from alexnet_exp.torch_internals import worker_processes

# A terminal, SLURM or systemd sends these to every process of a job at once.
SIGNALS = frozenset(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n))


def ignore_signals(worker: int = 0) -> None:
    """Ignore signals in a worker (a `worker_init_fn`): if it dies before the parent, the parent reports an error."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked since before the fork


def start(loader: DataLoader) -> Iterator[Any]:
    """Start iterating over a loader whose `worker_init_fn` is `ignore_signals`."""
    with signals_blocked():
        batches = iter(loader)
    if workers := worker_processes(batches):
        for worker in workers:
            worker.terminate = worker.kill  # torch's last resort is SIGTERM, which they ignore
        # At exit Python sends SIGTERM to the remaining children and joins them: it would wait forever.
        Finalize(batches, _kill, args=(workers,), exitpriority=0)
    return batches


def _kill(workers: list[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # torch's SIGCHLD handler raises when a worker dies
        for worker in workers:
            if worker.is_alive():
                worker.kill()
                worker.join()


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals while forking workers, which inherit our handlers until they start to ignore signals."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
