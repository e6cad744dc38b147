"""What a sweep remembers: what was typed, and which directory belongs to which job."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alexnet_exp.errors import UserError
from alexnet_exp.sweeps.job import FINISHED, Job
from alexnet_exp.tracking.run_directory import RunDirectory, write_atomically

FILE_NAME = "sweep.json"


class SweepRecord:
    """sweep.json: the overrides of the sweep and of each job.

    Args:
        directory: Of the sweep.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / FILE_NAME
        self.content: dict[str, Any] = {"overrides": [], "jobs": []}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep for this process alone.

        Raises:
            UserError: If it cannot be written, or another process runs it.
        """
        with RunDirectory(self.directory).lock():
            yield

    def begin(self, typed: list[str], go_on: bool) -> None:
        """Start a record, or read the one that is there.

        Args:
            typed: The settings of the sweep.
            go_on: Whether `sweep.resume` was asked for.

        Raises:
            UserError: If the directory holds another sweep.
        """
        if not self.path.exists():
            self.content["overrides"] = typed
            return self._write()
        self.content = self._read()
        before = self.content["overrides"]
        if not go_on:
            raise UserError(
                f"{self.directory} holds a sweep already: sweep.resume={self.directory} goes on with it."
            )
        if sorted(before) != sorted(typed):
            gone, new = (
                " ".join(sorted(set(a) - set(b))) or "nothing" for a, b in ((before, typed), (typed, before))
            )
            raise UserError(
                f"sweep.resume goes on with the same settings: missing now is {gone}, new is {new}."
            )
        return None

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if all(isinstance(content[key], list) for key in ("overrides", "jobs")):
                return content
            reason = "it has no overrides and jobs"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())
        raise UserError(f"{self.path} is damaged ({reason}): start the sweep in another hydra.sweep.dir.")

    def keep(self, key: str, value: str) -> None:
        """Remember a value that the whole sweep shares.

        Raises:
            UserError: If another is remembered: two studies must not mix in one directory.
        """
        if self.content.setdefault(key, value) != value:
            raise UserError(
                f"{self.directory} holds trials of another {key}, {self.content[key]}: name that one, "
                "or choose another hydra.sweep.dir."
            )
        self._write()

    @property
    def arrays(self) -> list[str]:
        """The job arrays that SLURM was given, oldest first."""
        return self.content.get("arrays", [])

    def add_array(self, array: str) -> None:
        """Remember a job array: its jobs may be going on when the sweep is taken up again."""
        self.content.setdefault("arrays", []).append(array)
        self._write()

    def jobs(self, job_overrides: list[list[str]], first: int, flags: list[str]) -> list[Job]:
        """Find each job's directory: its overrides tell which it is, not its number.

        Args:
            job_overrides: What each job sets.
            first: Number of the first.
            flags: Of every job.

        Returns:
            The jobs; those that have finished already say so.
        """
        known = {tuple(sorted(entry["overrides"])): entry for entry in self.content["jobs"]}
        jobs = []
        for number, overrides in enumerate(job_overrides, start=first):
            overrides = [o for o in overrides if not o.lstrip("+").startswith("sweep.resume=")]
            entry = known.get(tuple(sorted(overrides)))
            if entry is None:
                entry = {"overrides": overrides, "directory": str(number)}
                self.content["jobs"].append(entry)
            job = Job(number, overrides, self.directory / entry["directory"], flags)
            result = job.result()
            if result and result.get("status") == "finished":
                job.state = FINISHED
            jobs.append(job)
        self._write()
        return jobs

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")
