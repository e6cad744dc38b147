"""Show the jobs of a sweep: a live table on a terminal, else a line per event."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from alexnet_exp.sweeps.job import FAILED, FINISHED, RUNNING, Job
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_reader import Run

_LAST_LINES = 5
_READ_SECONDS = 1.0
_MAX_ROWS = 30  # what fits on a terminal


class Table:
    """Show state, epoch, best metric and remaining time of every job.

    Args:
        jobs: The jobs of the sweep.
        console: Where to print.
    """

    def __init__(self, jobs: list[Job], console: Console) -> None:
        self.jobs, self.console = jobs, console
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self._read = 0.0
        # Epochs finished before a job (re)started: they do not count for its speed.
        self._before: dict[int, int] = {}
        # A row shows only what tells its job from the others.
        shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
        self._names = {
            job.number: " ".join(redact([o for o in job.overrides if o not in shared])) or "-" for job in jobs
        }

    def __enter__(self) -> Table:
        self.say(self._opening())
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.__exit__(kind, error, trace)

    def started(self, job: Job) -> None:
        """Print that a job has started, and its command."""
        again = " again" if job.tries > 1 else ""
        self._before[job.number] = _epochs(Run(job.directory).rows)
        self.say(f"job {job.number} starts{again}: {redact(job.command)}")

    def ended(self, job: Job) -> None:
        """Print how a job ended, with the last lines of a failed one."""
        if job.state == FINISHED:
            self.say(f"job {job.number} finished: {self._best(job)}")
            return
        self.say(f"job {job.number} failed: {job.why}")
        if not job.error():  # it died without a message of its own
            for line in job.last_lines(_LAST_LINES):
                self.say(f"    {line}")

    def _opening(self) -> str:
        done = sum(job.state == FINISHED for job in self.jobs)
        return f"{len(self.jobs)} jobs" + (f", {done} already finished" if done else "")

    def _name(self, job: Job) -> str:
        return self._names[job.number]

    def refresh(self) -> None:
        """Redraw the table, at most once a second."""
        now = time.monotonic()
        if self._live is not None and now - self._read >= _READ_SECONDS:
            self._read = now
            self._live.update(self._render())

    def say(self, text: str) -> None:
        """Print a line above the table, without secrets: it may quote a job's output."""
        self.console.print(redact(text), highlight=False, markup=False)

    def _render(self) -> RichTable:
        table = RichTable("job", "settings", "state", "epoch", "best", "time left", box=None, pad_edge=False)
        order = sorted(self.jobs, key=lambda job: (job.state != RUNNING, job.state != FAILED, job.number))
        for job in order[:_MAX_ROWS]:
            epoch, best, left = self._progress(job)
            table.add_row(str(job.number), self._name(job), job.state, epoch, best, left)
        if len(order) > _MAX_ROWS:
            table.add_row("", f"and {len(order) - _MAX_ROWS} more", "", "", "", "")
        return table

    def _progress(self, job: Job) -> tuple[str, str, str]:
        rows = Run(job.directory).rows
        if not rows:
            return "", "", ""
        done, wanted = _epochs(rows), job.max_epochs() if job.state == RUNNING else None
        new, left = done - self._before.get(job.number, 0), ""
        if wanted and new > 0:
            seconds = (time.time() - job.started) / new * (wanted - done)
            left = "{}:{:02d}".format(*divmod(int(seconds), 60))
        return f"{done}/{wanted}" if wanted else str(done), self._best(job), left

    def _best(self, job: Job) -> str:
        for name in ("test/top1", "val/top1"):
            values = [row[name] for row in Run(job.directory).rows if name in row]
            if values:
                return f"{name} {max(values):.4f}"
        return ""


def _epochs(rows: list[dict[str, float]]) -> int:
    return int(max((row.get("epoch", 0) for row in rows), default=0))
