"""What a sweep remembers: what was typed, and which directory belongs to which job."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alexnet_exp.errors import UserError
from alexnet_exp.files import write_atomically
from alexnet_exp.settings import key_of
from alexnet_exp.sweeps.job import FINISHED, Job
from alexnet_exp.tracking.redact import without_passwords
from alexnet_exp.tracking.run_directory import RunDirectory

FILE_NAME = "sweep.json"


class SweepRecord:
    """sweep.json: the overrides of the sweep and of each job, without passwords of URLs.

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
        with RunDirectory(self.directory).lock("hydra.sweep.dir"):
            yield

    def check_resumable(self, config: DictConfig) -> None:
        """Refuse to go on with a sweep that is not there, before anything is made.

        Args:
            config: Of the sweep.

        Raises:
            UserError: If `sweep.resume` is asked for, and the directory holds no sweep.
        """
        typed = OmegaConf.select(config, "sweep.resume")
        if typed in (None, "", "none") or self.path.exists():
            return
        self._refuse_runs()
        raise UserError(f"sweep.resume={typed}: there is no sweep there; hydra.sweep.dir={typed} begins one.")

    def begin(self, typed: list[str], flags: list[str], go_on: bool) -> None:
        """Start a record, or read the one that is there.

        Args:
            typed: The settings of the sweep.
            flags: What else decides which jobs there are, and what they train.
            go_on: Whether `sweep.resume` was asked for.

        Raises:
            UserError: If the directory holds another sweep, or runs of which no record tells the settings.
        """
        if not self.path.exists():
            self._refuse_runs()
            self.content |= {"overrides": typed, "flags": flags}
            return self._write()
        self.content = self._read()
        if not go_on:
            raise UserError(
                f"{self.directory} holds a sweep already: sweep.resume={self.directory} goes on with it."
            )
        _check_same("settings", self.content["overrides"], typed)
        _check_same("flags", self.content.get("flags", flags), flags)  # an older record has none
        return None

    def _refuse_runs(self) -> None:
        """Take no run for a job by its number alone."""
        if (self.directory / "config.yaml").is_file():
            raise UserError(
                f"{self.directory} is a run, not a sweep: resume={self.directory} goes on with it; choose another "
                "directory for the sweep."
            )
        files = [f for name in ("config.yaml", "result.json") for f in self.directory.glob(f"*/{name}")]
        runs = sorted({f.parent.name for f in files if f.parent.name.isdecimal()}, key=int)
        if runs:
            raise UserError(
                f"{self.directory} holds runs ({', '.join(runs[:3])}{', ...' if len(runs) > 3 else ''}) but no "
                f"{FILE_NAME}, which would tell their settings: choose another hydra.sweep.dir."
            )

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

    def place(self, typed: str, now: str) -> str:
        """Return where a storage lies that was typed as a relative path: where it did when the sweep began.

        Args:
            typed: As it was.
            now: What that is in today's working directory; the next `keep` remembers it.
        """
        return typed if now == typed else self.content.setdefault("storage", {}).setdefault(typed, now)

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
            The jobs, equal ones once; those that have finished already say so.
        """
        known = {_identity(entry["overrides"]): entry for entry in self.content["jobs"]}
        distinct = {_identity(overrides): of_the_job(overrides) for overrides in job_overrides}
        jobs = []
        for number, (identity, overrides) in enumerate(distinct.items(), start=first):
            entry = known.get(identity)
            if entry is None:
                entry = {"overrides": overrides, "directory": self._free(number)}
                self.content["jobs"].append(entry)
            job = Job(number, overrides, self.directory / entry["directory"], flags)
            result = job.result()
            if result and result.get("status") == "finished":
                job.state = FINISHED
            jobs.append(job)
        self._write()
        return jobs

    def _free(self, number: int) -> str:
        """Return the first number from `number` on that is no other job's directory."""
        used = {entry["directory"] for entry in self.content["jobs"]}
        return next(name for name in map(str, itertools.count(number)) if name not in used)

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(without_passwords(self.content), indent=1) + "\n")


def check_told_apart(job_overrides: Sequence[Sequence[str]]) -> None:
    """Refuse jobs that differ in nothing that is written down.

    Raises:
        UserError: If two differ in the password of a URL alone.
    """
    if len(set(map(_identity, job_overrides))) < len({tuple(sorted(of_the_job(o))) for o in job_overrides}):
        raise UserError(
            "Some jobs differ in the password of a URL alone, which is in no file: they could not be told apart later. "
            "Let them differ in another setting, too."
        )


def _check_same(what: str, before: list[str], now: list[str]) -> None:
    before, now = without_passwords(before), without_passwords(now)
    if sorted(before) != sorted(now):
        gone, new = (
            " ".join(word for word in a if word not in b) or "nothing"
            for a, b in ((before, now), (now, before))
        )
        raise UserError(f"sweep.resume goes on with the same {what}: missing now is {gone}, new is {new}.")


def of_the_job(overrides: Sequence[str]) -> list[str]:
    """Return the settings without the one that takes the sweep up again."""
    return [o for o in overrides if key_of(o) != "sweep.resume"]


def _identity(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return what a job is known by: its settings as they are written down."""
    return tuple(sorted(without_passwords(of_the_job(overrides))))
