"""Several devices on one machine: one process per device, without re-running the command line.

Lightning launches ranks by re-running sys.argv, which under Hydra's -m is the whole sweep. Here the ranks receive the
settings of rank 0 through a pipe, so all have the same by construction. They start before rank 0 imports torch, so that
all import in parallel, and wait for the settings, which arrive once the data is ready.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from alexnet_exp import cores
from alexnet_exp.config.groups import Trainer
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.redact import redact
from alexnet_exp.training.launch.signals import Stopped

# Put back afterwards: one process may train more than once, as notebooks and tests do.
_SET_HERE = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
_MOST_RANKS_PER_CORE = 4  # more is a typo: each CPU rank is a process that can fill a core


def count_devices(trainer: Trainer) -> int:
    """Return how many devices of this machine the trainer settings use.

    Raises:
        UserError: If they do not exist.
    """
    if isinstance(trainer.devices, int) and trainer.devices > 0 and trainer.accelerator == "cpu":
        count = trainer.devices  # known without importing torch
    else:
        count = len(_devices(trainer))
    most = _MOST_RANKS_PER_CORE * cores.available_cores()
    if count > most and device_type(trainer) == "cpu":
        raise UserError(
            f"trainer.devices={count} on CPU would start {count} processes, but only {cores.available_cores()} cores "
            f"are available: set trainer.devices={most} or less."
        )
    return count


def device_type(trainer: Trainer) -> str:
    """Return the type of the training devices: 'cpu', 'cuda' or 'mps'.

    Raises:
        UserError: If it does not exist.
    """
    return "cpu" if trainer.accelerator == "cpu" else getattr(_devices(trainer)[0], "type", "cpu")


def check_sync_batchnorm(trainer: Trainer) -> None:
    """Refuse trainer.sync_batchnorm on CPU.

    Raises:
        UserError: torch's SyncBatchNorm only runs on GPUs.
    """
    if trainer.sync_batchnorm and device_type(trainer) == "cpu":
        raise UserError(
            "trainer.sync_batchnorm=true needs GPUs: torch's SyncBatchNorm does not run on CPU; leave it out."
        )


def _devices(trainer: Trainer) -> Sequence[Any]:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from alexnet_exp.training.lightning_internals import find_devices

    try:
        return find_devices(trainer.accelerator, trainer.devices, trainer.num_nodes)
    except (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"trainer.accelerator={trainer.accelerator} trainer.devices={trainer.devices}: {reason} "
            "Leave out trainer=, trainer.accelerator= and trainer.devices= to use what is there, or set trainer=cpu."
        ) from error


class Ranks:
    """The other ranks of a run on this machine, as a context manager that leaves no process behind.

    Args:
        run_dir: Run directory.
        count: Number of devices, including this process's own.
        num_nodes: Number of machines.
        on_failure: Called with the error of a rank that failed while the others wait for it in a collective.
    """

    module = "alexnet_exp.runs.train.rank"  # what the other ranks run
    stop_together = True  # whether they exit by themselves when a signal stops rank 0

    def __init__(
        self, run_dir: Path, count: int, num_nodes: int = 1, on_failure: Callable[[str], Any] = print
    ) -> None:
        self.run_dir, self.count, self.num_nodes, self.on_failure = run_dir, count, num_nodes, on_failure
        self._children: list[subprocess.Popen] = []
        self._errors: list[IO[bytes]] = []
        self._saved: dict[str, str | None] = {}
        self._closing = threading.Event()

    def __enter__(self) -> Ranks:
        if self.count > 1:
            self._saved = {name: os.environ.get(name) for name in _SET_HERE}
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # set by the user for several nodes
            os.environ.setdefault("MASTER_PORT", str(_free_port()))
            os.environ.setdefault("NODE_RANK", "0")
            os.environ["WORLD_SIZE"] = str(self.count * self.num_nodes)
            os.environ["LOCAL_RANK"] = "0"  # Lightning then starts no processes of its own
            for rank in range(1, self.count):
                self._start(rank)
            threading.Thread(target=self._watch, daemon=True, name="rank-watch").start()
        return self

    def _start(self, rank: int) -> None:
        # A file, because nothing drains a pipe: a rank would block once its warnings had filled it.
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._errors.append(errors)
        self._children.append(
            subprocess.Popen(
                [sys.executable, "-m", self.module, str(self.run_dir), str(os.getpid())],
                env={**cores.environment(), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                # What libraries print would appear once per device.
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        )

    def go(self, *settings: Any) -> None:
        """Send the settings to the waiting ranks, once the data is ready.

        Through a pipe: config.yaml has no passwords of URLs, and other users can read a command line.

        Args:
            settings: Plain values, returned by `receive_settings`.
        """
        # YAML, because JSON turns every key into a string; escaped, it can also hold file names that are not UTF-8.
        text = yaml.safe_dump(list(settings), sort_keys=False).encode("ascii")
        for child in self._children:
            assert child.stdin is not None
            try:
                # The length comes first, so that a rank notices settings cut off by a crash.
                child.stdin.write(b"%d\n" % len(text) + text)
                child.stdin.flush()
            except BrokenPipeError:
                continue  # the rank has died; _watch reports why

    def failure(self) -> str | None:
        """Return the last line of stderr of the first rank that failed, or None."""
        for rank, (child, errors) in enumerate(zip(self._children, self._errors, strict=True), start=1):
            # Only of one that has ended: it shares the file's offset with this process, and would write over what it
            # has written.
            if child.poll() not in (None, 0):
                errors.seek(0)
                text = errors.read().decode(errors="replace").strip()
                logging.getLogger("run").error("Rank %d failed:\n%s", rank, text)
                lines = text.splitlines()
                return lines[-1] if lines else f"Rank {rank} exited with code {child.returncode}."
        return None

    def _watch(self) -> None:
        """Exit if another rank has failed and this one is stuck in a collective that does not notice."""
        while not self._closing.wait(0.5):
            error = self.failure()
            if error is None:
                continue
            # Time for the collective to fail by itself, or for the run to end.
            if not self._closing.wait(5.0):
                print(f"error: {redact(error)}", file=sys.stderr, flush=True)
                self.on_failure(error)
                for child in self._children:
                    child.kill()
                os._exit(1)  # nothing else interrupts a collective in the main thread
            return

    def __exit__(self, *exc_info: Any) -> None:
        self._closing.set()
        failure = self._failure_behind(exc_info[1])
        together = exc_info[0] is None or (self.stop_together and isinstance(exc_info[1], Stopped))
        # Ranks that end together only need time for it; after an error they may be stuck in a collective.
        deadline = time.monotonic() + (20.0 if together else 3.0)
        for child in self._children:
            if not together and child.poll() is None:
                child.kill()  # safe: only rank 0 writes files
            try:
                child.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            assert child.stdin is not None
            child.stdin.close()
        for errors in self._errors:
            errors.close()
        for name, value in self._saved.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        if self.count > 1:
            import torch.distributed

            # The next run in this process creates its own group.
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        if failure is not None:
            raise UserError(failure) from exc_info[1]  # its traceback is in train.log

    def _failure_behind(self, error: BaseException | None) -> str | None:
        """Return the error of the rank whose death made a collective fail in this one."""
        if not self._children or not isinstance(error, Exception) or isinstance(error, UserError):
            return None
        deadline = time.monotonic() + 2.0  # the collective fails before the exit code is available
        while (failure := self.failure()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return failure


def receive_settings() -> list[Any] | None:
    """Wait in another rank for the settings sent by `Ranks.go`; None if rank 0 has exited instead."""
    length = sys.stdin.buffer.readline()
    # An empty line: rank 0 has closed the pipe, or died, before it sent anything.
    text = sys.stdin.buffer.read(int(length or 0))
    return yaml.safe_load(text) if text and len(text) == int(length) else None


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask Linux to signal this process when `parent` dies; exit now if it is already gone."""
    if sys.platform == "linux":
        # The default is SIGKILL because ranks ignore SIGTERM. Linux sends it when the *thread* that started this
        # process ends (prctl(2)), so only a main thread may start ranks and jobs.
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(number))
    # After the request: a parent that died before it does not trigger the signal.
    if os.getppid() != parent:
        sys.exit("The process that started this rank has exited.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
