"""What hydra/sweeper=basic does: every combination of values, in batches where `max_batch_size` says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from alexnet_exp.config.hydra_internals import error_of
from alexnet_exp.errors import UserError
from alexnet_exp.files import write_atomically
from alexnet_exp.sweeps.job import JobFailed
from alexnet_exp.sweeps.record import FILE_NAME, SweepRecord, check_told_apart
from alexnet_exp.tracking.redact import without_passwords
from alexnet_exp.tracking.run_directory import to_yaml


def run_batches(
    config: DictConfig,
    batches: Sequence[Sequence[Sequence[str]]],
    launcher: Launcher,
    validate: Callable[[Sequence[Sequence[str]]], None],
) -> list[JobReturn]:
    """Run the jobs of a sweep batch by batch; a job that fails does not end the batches after its own.

    Args:
        config: The sweep's configuration, with `hydra`.
        batches: What each job sets.
        launcher: Hydra's or ours.
        validate: Raises for overrides that do not compose.

    Returns:
        One entry per job.

    Raises:
        UserError: If the sweep cannot begin, or, at the end, for the first job that has not finished.
    """
    if not any(batches):
        raise UserError("There is no job to run: a glob() or range() of this sweep has no values.")
    SweepRecord(Path(str(config.hydra.sweep.dir))).check_resumable(config)
    check_told_apart([overrides for batch in batches for overrides in batch])
    _write_down(config)
    stop = OmegaConf.select(config, "hydra.launcher.on_failure") == "stop"
    returned: list[JobReturn] = []
    first = 0
    try:
        for batch in batches:
            validate(batch)
            returned += launcher.launch(batch, initial_job_idx=first)
            first += len(batch)
            if stop and _failed(returned):
                break
    except UserError:
        _discard_unbegun(config)
        raise
    if failed := _failed(returned):
        raise _error(failed, len(returned))
    return returned


def _write_down(config: DictConfig) -> None:
    """Write multirun.yaml as Hydra's own sweeper does, but without passwords of URLs, and not over that of a sweep."""
    directory = Path(str(config.hydra.sweep.dir))
    if (directory / FILE_NAME).exists():
        return  # it may be another sweep's, and is about to be refused then
    directory.mkdir(parents=True, exist_ok=True)
    settings = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    write_atomically(directory / "multirun.yaml", to_yaml(without_passwords(settings)))


def _discard_unbegun(config: DictConfig) -> None:
    """Remove the directory of a sweep that was refused before its record began."""
    directory = Path(str(config.hydra.sweep.dir))
    if not (directory / FILE_NAME).exists():
        (directory / "multirun.yaml").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            directory.rmdir()


def _failed(returned: list[JobReturn]) -> list[JobReturn]:
    return [job for job in returned if job.status == JobStatus.FAILED]


def _error(failed: list[JobReturn], count: int) -> Exception:
    """Return what to say of jobs that failed; Hydra's own launcher has shown the errors of its jobs already."""
    error = error_of(failed[0])
    if isinstance(error, JobFailed):
        return UserError(f"{len(failed)} of {count} jobs did not finish; the first is {error}")
    assert isinstance(error, Exception)
    return error
