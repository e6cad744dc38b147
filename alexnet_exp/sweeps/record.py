"""The record of a sweep, sweep.json: its overrides, and the directory of each job."""

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
from alexnet_exp.settings import key_of, unmarked
from alexnet_exp.sweeps.job import FINISHED, Job
from alexnet_exp.tracking.redact import without_passwords
from alexnet_exp.tracking.run_directory import RunDirectory

FILE_NAME = "sweep.json"


class SweepRecord:
    """The overrides of the sweep and of each job, without URL passwords.

    Args:
        directory: The directory of the sweep.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / FILE_NAME
        self.content: dict[str, Any] = {"overrides": [], "jobs": []}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the sweep for this process.

        Raises:
            UserError: If the directory is not writable, or another process runs the sweep.
        """
        with RunDirectory(self.directory).lock("hydra.sweep.dir"):
            yield

    def check_resumable(self, config: DictConfig) -> None:
        """Reject `sweep.resume` of a directory without a sweep, before anything is created.

        Args:
            config: The sweep's.

        Raises:
            UserError: If there is no sweep to resume.
        """
        typed = OmegaConf.select(config, "sweep.resume")
        if typed in (None, "", "none") or self.path.exists():
            return
        self._refuse_runs()
        raise UserError(f"sweep.resume={typed}: there is no sweep there; hydra.sweep.dir={typed} starts one.")

    def begin(self, typed: list[str], flags: list[str], go_on: bool) -> None:
        """Start a record, or load the existing one.

        Args:
            typed: The overrides of the sweep.
            flags: Flags and Hydra settings that determine the jobs, too.
            go_on: Whether to resume.

        Raises:
            UserError: If the directory holds another sweep, or runs without a record of their settings.
        """
        if not self.path.exists():
            self._refuse_runs()
            self.content |= {"overrides": typed, "flags": flags}
            return self._write()
        self.content = self._read()
        if not go_on:
            raise UserError(
                f"{self.directory} already holds a sweep: resume it with sweep.resume={self.directory}."
            )
        _check_same("settings", self.content["overrides"], typed)
        _check_same("flags", self.content.get("flags", flags), flags)  # older records have none
        return None

    def _refuse_runs(self) -> None:
        """Reject a directory with runs but no record: a numbered run is not proof of the settings of a job."""
        if (self.directory / "config.yaml").is_file():
            raise UserError(
                f"{self.directory} is a run, not a sweep: resume it with resume={self.directory}, or choose another "
                "directory for the sweep."
            )
        files = [f for name in ("config.yaml", "result.json") for f in self.directory.glob(f"*/{name}")]
        runs = sorted({f.parent.name for f in files if f.parent.name.isdecimal()}, key=int)
        if runs:
            raise UserError(
                f"{self.directory} holds runs ({', '.join(runs[:3])}{', ...' if len(runs) > 3 else ''}) but no "
                f"{FILE_NAME} with their settings: choose another hydra.sweep.dir."
            )

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if all(isinstance(content[key], list) for key in ("overrides", "jobs")):
                return content
            reason = "overrides or jobs are missing"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())
        raise UserError(f"{self.path} is damaged ({reason}): start the sweep in another hydra.sweep.dir.")

    def keep(self, key: str, value: str) -> None:
        """Record a value that the whole sweep shares.

        Raises:
            UserError: If another one is recorded: a directory must not mix two studies.
        """
        if self.content.setdefault(key, value) != value:
            raise UserError(
                f"{self.directory} holds trials of another {key}, {self.content[key]}: use that one, "
                "or choose another hydra.sweep.dir."
            )
        self._write()

    def place(self, typed: str, now: str) -> str:
        """Resolve the relative path of a storage as it was when the sweep began, whatever the working directory now.

        Args:
            typed: As typed.
            now: Resolved in the current working directory; recorded by the next `keep`.
        """
        return typed if now == typed else self.content.setdefault("storage", {}).setdefault(typed, now)

    @property
    def arrays(self) -> list[str]:
        """The submitted SLURM job arrays, oldest first."""
        return self.content.get("arrays", [])

    def add_array(self, array: str) -> None:
        """Record a job array: its jobs may still be running when the sweep is resumed."""
        self.content.setdefault("arrays", []).append(array)
        self._write()

    def jobs(self, job_overrides: list[list[str]], first: int, flags: list[str]) -> list[Job]:
        """Match jobs to directories by their overrides; numbers change when values are added to a sweep.

        Args:
            job_overrides: The overrides of each job.
            first: Number of the first job.
            flags: Shared by all jobs.

        Returns:
            The jobs without duplicates; finished ones are marked.
        """
        known = {_identity(entry["overrides"]): entry for entry in self.content["jobs"]}
        distinct = {_identity(overrides): without_resume(overrides) for overrides in job_overrides}
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
        # Before any job starts: a resumed sweep must find the directories of all that did.
        self._write()
        return jobs

    def _free(self, number: int) -> str:
        """Return the first unused directory name, counting from `number`."""
        used = {entry["directory"] for entry in self.content["jobs"]}
        return next(name for name in map(str, itertools.count(number)) if name not in used)

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(without_passwords(self.content), indent=1) + "\n")


def check_distinguishable(job_overrides: Sequence[Sequence[str]]) -> None:
    """Reject jobs whose recorded overrides are identical.

    Raises:
        UserError: If two differ only in the password of a URL, which is not recorded.
    """
    if len(set(map(_identity, job_overrides))) < len(
        {tuple(sorted(unmarked(without_resume(o)))) for o in job_overrides}
    ):
        raise UserError(
            "Some jobs differ only in the password of a URL, which is not recorded, so a resumed sweep could not tell "
            "them apart: make them differ in another setting, too."
        )


def _check_same(what: str, before: list[str], now: list[str]) -> None:
    # Without marks: versions differ in which settings they mark as added.
    before, now = (unmarked(without_passwords(words)) for words in (before, now))
    if sorted(before) != sorted(now):
        gone, new = (
            " ".join(word for word in a if word not in b) or "nothing"
            for a, b in ((before, now), (now, before))
        )
        raise UserError(f"sweep.resume needs the same {what} as before: missing {gone}, new {new}.")


def without_resume(overrides: Sequence[str]) -> list[str]:
    """Return overrides without sweep.resume."""
    return [o for o in overrides if key_of(o) != "sweep.resume"]


def _identity(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return what identifies a job: its overrides as recorded, without marks."""
    return tuple(sorted(unmarked(without_passwords(without_resume(overrides)))))
