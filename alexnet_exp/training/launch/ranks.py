"""Several devices on one machine: one process for each, started by us rather than by re-running the command line.

Lightning starts its processes by repeating sys.argv, which under Hydra's -m is the whole sweep. Ours get the settings
of the first rank through a pipe, so every rank has the same by construction. They start before torch is imported here,
so that all import at the same time, and wait for the settings, which come once the data is there.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from alexnet_exp import cores
from alexnet_exp.errors import UserError
from alexnet_exp.tracking.redact import redact
from alexnet_exp.training.launch.signals import Stopped

_SET_HERE = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


_MOST_RANKS_PER_CORE = 4  # more is a typing error: on CPU a rank is a process that fills a core


def count_devices(trainer: Mapping[str, Any]) -> int:
    """Return how many devices of this machine the trainer settings ask for.

    Raises:
        UserError: If they do not exist.
    """
    if isinstance(trainer["devices"], int) and trainer["devices"] > 0 and trainer["accelerator"] == "cpu":
        count = trainer["devices"]  # known without importing torch
    else:
        count = len(_devices(trainer))
    most = _MOST_RANKS_PER_CORE * cores.available_cores()
    if count > most and device_type(trainer) == "cpu":
        raise UserError(
            f"trainer.devices={count} on CPU would start {count} processes, and this one may use "
            f"{cores.available_cores()} cores: set at most trainer.devices={most}."
        )
    return count


def device_type(trainer: Mapping[str, Any]) -> str:
    """Return what the trainer settings train on: 'cpu', 'cuda', 'mps'.

    Raises:
        UserError: If it does not exist.
    """
    return "cpu" if trainer["accelerator"] == "cpu" else getattr(_devices(trainer)[0], "type", "cpu")


def check_sync_batchnorm(trainer: Mapping[str, Any]) -> None:
    """Refuse to synchronise batch normalisation on the processor.

    Raises:
        UserError: torch has no such layer there.
    """
    if trainer["sync_batchnorm"] and device_type(trainer) == "cpu":
        raise UserError(
            "trainer.sync_batchnorm=true needs GPUs: torch does not synchronise batch normalisation on the processor. "
            "Leave it out."
        )


def _devices(trainer: Mapping[str, Any]) -> Sequence[Any]:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from alexnet_exp.training.lightning_internals import find_devices

    try:
        return find_devices(trainer["accelerator"], trainer["devices"], trainer["num_nodes"])
    except (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"trainer.accelerator={trainer['accelerator']} trainer.devices={trainer['devices']}: {reason} "
            "Leave trainer=, trainer.accelerator= and trainer.devices= out to take what is there, or say trainer=cpu."
        ) from error


class Ranks:
    """The other processes of a run on this machine; a context manager that never leaves one behind.

    Args:
        run_dir: Of the run.
        count: Devices, this process's own included.
        num_nodes: Machines.
        on_failure: Told the last words of a rank that failed while the others wait for it.
    """

    module = "alexnet_exp.runs.train.rank"  # what the other processes run
    stop_together = True  # whether they end by themselves when a signal ends the first

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
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(_free_port()))
            os.environ.setdefault("NODE_RANK", "0")
            os.environ["WORLD_SIZE"] = str(self.count * self.num_nodes)
            os.environ["LOCAL_RANK"] = "0"
            for rank in range(1, self.count):
                self._start(rank)
            threading.Thread(target=self._watch, daemon=True, name="rank-watch").start()
        return self

    def _start(self, rank: int) -> None:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (read and closed when the ranks end)
        self._errors.append(errors)
        self._children.append(
            subprocess.Popen(
                [sys.executable, "-m", self.module, str(self.run_dir), str(os.getpid())],
                env={**cores.environment(), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        )

    def go(self, *settings: Any) -> None:
        """Hand the processes the settings: the data is ready.

        They go through a pipe, since config.yaml lacks the passwords of URLs, and other users may read a command line.

        Args:
            settings: Plain values; `receive_settings` returns them.
        """
        # Of YAML, since JSON turns every key into text. Escaped, it also holds file names that are no text.
        text = yaml.safe_dump(list(settings), sort_keys=False).encode("ascii")
        for child in self._children:
            assert child.stdin is not None
            try:
                child.stdin.write(b"%d\n" % len(text) + text)
                child.stdin.flush()
            except BrokenPipeError:
                continue  # it has died; the watch says why

    def failure(self) -> str | None:
        """Return the last words of the first process that failed, or None."""
        for rank, (child, errors) in enumerate(zip(self._children, self._errors, strict=True), start=1):
            if child.poll() not in (None, 0):
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip()
                logging.getLogger("run").error("Rank %d failed:\n%s", rank, words)
                lines = words.splitlines()
                return lines[-1] if lines else f"Rank {rank} ended with exit code {child.returncode}."
        return None

    def _watch(self) -> None:
        """End this process if another rank fails and a collective operation does not notice."""
        while not self._closing.wait(0.5):
            error = self.failure()
            if error is None:
                continue
            if not self._closing.wait(5.0):
                print(f"error: {redact(error)}", file=sys.stderr, flush=True)
                self.on_failure(error)
                for child in self._children:
                    child.kill()
                os._exit(1)  # the main thread hangs in a collective operation that nothing else ends
            return

    def __exit__(self, *exc_info: Any) -> None:
        self._closing.set()
        failure = self._failure_behind(exc_info[1])
        together = exc_info[0] is None or (self.stop_together and isinstance(exc_info[1], Stopped))
        deadline = time.monotonic() + (20.0 if together else 3.0)
        for child in self._children:
            if not together and child.poll() is None:
                child.kill()  # it writes nothing that could be half-written
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
            _leave_group()
        if failure is not None:
            raise UserError(failure) from exc_info[1]  # its traceback is in train.log

    def _failure_behind(self, error: BaseException | None) -> str | None:
        """Return the last words of a rank whose death is why this one failed in a collective operation."""
        if not self._children or not isinstance(error, Exception) or isinstance(error, UserError):
            return None
        deadline = time.monotonic() + 2.0  # this process hears of it before the other's exit code is there
        while (failure := self.failure()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return failure


def receive_settings() -> list[Any] | None:
    """Wait, in one of the processes, for what `Ranks.go` hands over; None if the first rank has ended instead."""
    length = sys.stdin.buffer.readline()
    text = sys.stdin.buffer.read(int(length or 0))
    return yaml.safe_load(text) if text and len(text) == int(length) else None


def _leave_group() -> None:
    """Forget the process group: the next run of this process makes its own."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process a signal when `parent` dies; end now if it is already gone."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(number))
    if os.getppid() != parent:
        sys.exit("The process that started this rank is gone.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
