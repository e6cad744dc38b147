"""hydra/sweeper=basic: run every combination of values, in batches of `max_batch_size`."""

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
from alexnet_exp.sweeps.record import FILE_NAME, SweepRecord, check_distinguishable
from alexnet_exp.tracking.redact import without_passwords
from alexnet_exp.tracking.run_directory import to_yaml


def run_batches(
    config: DictConfig,
    batches: Sequence[Sequence[Sequence[str]]],
    launcher: Launcher,
    validate: Callable[[Sequence[Sequence[str]]], None],
) -> list[JobReturn]:
    """Run the jobs of a sweep batch by batch; a failed job does not stop later batches.

    Args:
        config: The sweep's configuration, with `hydra`.
        batches: The overrides of each job.
        launcher: Hydra's or ours.
        validate: Raises if overrides do not compose.

    Returns:
        One entry per job.

    Raises:
        UserError: If the sweep cannot start, or, at the end, for the first job that did not finish.
    """
    if not any(batches):
        raise UserError("There is no job to run: a glob() or range() of this sweep is empty.")
    SweepRecord(Path(str(config.hydra.sweep.dir))).check_resumable(config)
    check_distinguishable([overrides for batch in batches for overrides in batch])
    _write_down(config)
    # select, because Hydra's own launchers have no on_failure.
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
    """Write multirun.yaml as Hydra's own sweeper does, minus URL passwords, unless a sweep is already there."""
    directory = Path(str(config.hydra.sweep.dir))
    if (directory / FILE_NAME).exists():
        return  # resumed, or another sweep's, in which case this one is about to be rejected
    directory.mkdir(parents=True, exist_ok=True)
    settings = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    write_atomically(directory / "multirun.yaml", to_yaml(without_passwords(settings)))


def _discard_unbegun(config: DictConfig) -> None:
    """Remove the directory of a sweep that was rejected before it wrote its record."""
    directory = Path(str(config.hydra.sweep.dir))
    if not (directory / FILE_NAME).exists():
        (directory / "multirun.yaml").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            directory.rmdir()


def _failed(returned: list[JobReturn]) -> list[JobReturn]:
    return [job for job in returned if job.status == JobStatus.FAILED]


def _error(failed: list[JobReturn], count: int) -> Exception:
    """Return the error to raise for failed jobs; Hydra's own launcher has printed those of its jobs already."""
    error = error_of(failed[0])
    if isinstance(error, JobFailed):
        return UserError(f"{len(failed)} of {count} jobs did not finish; the first is {error}")
    assert isinstance(error, Exception)
    return error
