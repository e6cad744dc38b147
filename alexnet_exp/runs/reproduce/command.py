"""`alexnet-exp reproduce`: run published experiments with several seeds and compare the results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose
from alexnet_exp.config.schema import at_least, checked, group, list_of, name, null, path, rules_of, setting
from alexnet_exp.errors import UserError, printable
from alexnet_exp.runs.reproduce import effects
from alexnet_exp.runs.reproduce.effects import Effect
from alexnet_exp.runs.reproduce.evidence import Evidence, Figure, apart, figures, of_run
from alexnet_exp.runs.reproduce.record import record
from alexnet_exp.runs.reproduce.rows import Claim, Row, chosen, measured_rates, names, seconds_of
from alexnet_exp.runs.reproduce.show import estimate, print_figures, print_list, write_page
from alexnet_exp.sweeps.job import FAILED, FINISHED, Job
from alexnet_exp.sweeps.launch import Launcher, Pool
from alexnet_exp.sweeps.record import SweepRecord
from alexnet_exp.sweeps.resources import Resources, trainers
from alexnet_exp.sweeps.table import Table
from alexnet_exp.tracking.run_reader import Run, find_runs
from alexnet_exp.tracking.terminal import nearby

_LAUNCHER = rules_of(Launcher)


@group
class Reproduce:
    """Keys of conf/reproduce.yaml beside those of its runs."""

    names: str | list[str] = setting(name | list_of(name))
    seeds: int = setting(at_least(1))
    budget: str | None = setting(name | null)
    max_parallel: int | str = setting(_LAUNCHER["max_parallel"])
    threads: int = setting(_LAUNCHER["threads"])
    retries: int = setting(_LAUNCHER["retries"])
    out: str = setting(path)


_REFUSED = {
    "experiment": "use alexnet-exp reproduce NAME",
    "seed": "use seeds=N, which runs seeds 0 to N - 1",
    "resume": "repeat the same command to resume",
    "sweep": "reproduce is itself a sweep over seeds",
}


def reproduce(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> int:
    """Run, list or record published experiments.

    Args:
        config: Keys of conf/reproduce.yaml.
        overrides: As typed, including settings of the runs.
        run_dir: Folder of the runs and reproduce.html.
        command: The command line; unused, because each row of the page has its own.

    Returns:
        Exit code: 1 if a seed failed.

    Raises:
        UserError: For an invalid setting or an unknown name.
    """
    settings, own = checked(Reproduce, config), rules_of(Reproduce)
    of_runs = [o for o in overrides if o.partition("=")[0].lstrip("+") not in own]
    for override in of_runs:
        key = override.partition("=")[0].lstrip("+~").partition(".")[0]
        if key in _REFUSED:
            raise UserError(f"{override} cannot be set here: {_REFUSED[key]}.")
    words = settings.names if isinstance(settings.names, list) else [settings.names]
    if words[:1] == ["record"]:
        return _record(words[1:], settings.out)
    deciding, others = apart(of_runs)
    listing = words[:1] == ["list"]
    rows = chosen(words[1:] or [*names(), "claims"] if listing else words, deciding)
    if listing:
        return _list(rows, settings.seeds, run_dir)
    return _Reproduction(rows, settings, run_dir.absolute(), others).run()


def _record(directories: list[str], out: str) -> int:
    if not directories:
        raise UserError("No runs given: use alexnet-exp reproduce record outputs/reproduce/NAME/0.")
    for folder in record(directories, Path(out)):
        print(f"record: {printable(nearby(folder))}")
    return 0


def _list(rows: list[Row], seeds: int, run_dir: Path) -> int:
    rates = measured_rates(rows)
    rows = sorted(rows, key=lambda row: (row.images or 0) / rates[row.name])
    print_list(rows, rates, seeds, {row.name: len(finished(row, run_dir)) for row in rows})
    print(
        "Runs: one per seed; of a claim, also one per form and learning rate, which may end before all of its images. "
        "Times are estimates from training steps measured here for at most 10 s in total."
    )
    return 0


def place_of(row: Row, folder: Path) -> Path:
    """Return the folder of a row's runs; non-published settings get a folder of their own."""
    if not row.settings:
        return folder / row.name
    # Without the ++ of config/overrides.py, which earlier versions did not add.
    settings = sorted(setting.removeprefix("++") for setting in row.settings)
    digest = hashlib.sha256("\n".join(settings).encode()).hexdigest()[:6]
    return folder / f"{row.name}-{digest}"


def finished(row: Row, folder: Path) -> list[Evidence]:
    """Return the evidence of the finished runs of a row."""
    if isinstance(row, Claim):
        return effect(row, folder).runs
    found = (of_run(run, row.name) for run in runs_of(row, folder))
    return [each for each in found if each is not None]


def effect(claim: Claim, folder: Path, problems: Sequence[str] = ()) -> Effect:
    """Return what the finished runs of a claim give."""
    found = (effects.of_run(run, claim) for run in runs_of(claim, folder))
    return Effect(claim, [each for each in found if each is not None], problems)


def runs_of(row: Row, folder: Path) -> list[Run]:
    """Return the runs of a row, finished or not; empty if there are none."""
    try:
        return find_runs([place_of(row, folder)])
    except UserError:  # no such folder, or no run in it
        return []


class _Reproduction:
    """Run rows with several seeds each, and report them.

    Args:
        rows: In the order given on the command line.
        settings: Of the verb.
        folder: Absolute folder of the runs and the page.
        flags: Settings of every run that do not affect the result.
    """

    def __init__(self, rows: list[Row], settings: Reproduce, folder: Path, flags: list[str]) -> None:
        self.rows, self.settings, self.folder, self.flags = rows, settings, folder, flags
        self.console = Console(soft_wrap=True, highlight=False)
        self.rates: dict[str, float] = {}
        self.problems: dict[str, list[str]] = {}
        for row in rows:
            if row.data == "imagenet" and not any(f.startswith("data.root=") for f in flags):
                raise UserError(f"{row.name} needs ImageNet: set data.root=DIR.")
            check_config(row.config)

    def run(self) -> int:
        fitting = self._fitting()
        try:
            self._train(fitting)
            self._train_at_best_rates([row for row in fitting if isinstance(row, Claim) and row.rates])
        except KeyboardInterrupt:
            self.console.print("Repeat the same command to resume.")
            raise
        shown_figures = [(f, self._estimate(row)) for row in self.rows for f in self._figures(row)]
        print_figures(shown_figures)
        page = self.folder / "reproduce.html"
        write_page(page, shown_figures, self.rows, self.settings.seeds)
        self.console.print(f"page: {printable(nearby(page))}", markup=False)
        return 1 if any(self.problems.values()) else 0

    def _fitting(self) -> list[Row]:
        """Return the rows to run: those that fit into the budget, cheapest first."""
        if self.settings.budget is None:
            return self.rows
        left = seconds_of(self.settings.budget)
        self.rates = measured_rates(self.rows)
        costs = {
            row.name: (row.images or 0) / self.rates[row.name] * self._runs_left(row) for row in self.rows
        }
        fitting = []
        for row in sorted(self.rows, key=lambda row: costs[row.name]):
            if costs[row.name] > left:
                self.console.print(
                    f"{row.name} does not fit into budget={self.settings.budget}", markup=False
                )
                continue
            left -= costs[row.name]
            fitting.append(row)
        return fitting

    def _runs_left(self, row: Row) -> int:
        done = finished(row, self.folder)
        if isinstance(row, Claim):
            return max(0, row.runs(self.settings.seeds) - len(done))
        return len(set(range(self.settings.seeds)) - {run.seed for run in done})

    def _train_at_best_rates(self, claims: list[Claim]) -> None:
        """Run the other seeds of claims, now that seed 0 has tried the learning rates."""
        best = {claim.name: effect(claim, self.folder).best for claim in claims}
        if self.settings.seeds > 1:
            # Without a finished run of both forms there is nothing to compare.
            self._train([claim for claim in claims if len(best[claim.name]) == len(claim.forms)], best)

    def _train(self, rows: Sequence[Row], best: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Run everything unfinished as jobs of a resumable sweep.

        Args:
            rows: Each gets its own record.
            best: See `Claim.jobs`, by name.
        """
        if not rows:
            return
        with ExitStack() as stack:
            jobs: list[Job] = []
            of_row: dict[str, list[Job]] = {}
            for row in rows:
                record = SweepRecord(place_of(row, self.folder))
                stack.enter_context(record.lock())
                record.begin([*row.selection, *row.settings], [], go_on=record.path.exists())
                wanted = row.jobs(self.settings.seeds, (best or {}).get(row.name, {}))
                of_row[row.name] = record.jobs(wanted, 0, self.flags)
                jobs += of_row[row.name]
            for number, job in enumerate(jobs):
                job.number = number  # unique over all rows, for the table
            launcher = Launcher(
                max_parallel=self.settings.max_parallel,
                threads=self.settings.threads,
                retries=self.settings.retries,
                on_failure="continue",
            )
            Pool(jobs, launcher, self._resources(jobs), Table(jobs, self.console)).run()
            for name, own in of_row.items():
                failed = [job for job in own if job.state == FAILED]
                said = [f"{_difference(job, own)} failed: {job.why}" for job in failed]
                self.problems[name] = [*self.problems.get(name, []), *said]

    def _resources(self, jobs: Sequence[Job]) -> Resources:
        waiting = [[*job.flags, *job.overrides] for job in jobs if job.state != FINISHED] or [[]]
        where = OmegaConf.create({"hydra": {"sweep": {"dir": str(self.folder)}}})
        needed = trainers(waiting, lambda own: compose("train", own))
        return Resources.of_this_machine(where, self.settings.max_parallel, self.settings.threads, needed)

    def _figures(self, row: Row) -> list[Figure]:
        problems = self.problems.get(row.name, [])
        if isinstance(row, Claim):
            return [effect(row, self.folder, problems)]
        return figures(row.name, row.published, finished(row, self.folder), problems)

    def _estimate(self, row: Row) -> str:
        flop = "" if row.flop is None else f"{row.flop:.1e} FLOP"
        return f"{flop}, {estimate(row, self.rates)}" if row.name in self.rates else flop


def _difference(job: Job, jobs: Sequence[Job]) -> str:
    """Return the overrides that distinguish a job from the others, or its seed."""
    shared = set.intersection(*(set(each.overrides) for each in jobs)) - {job.overrides[-1]}
    return " ".join(override for override in job.overrides if override not in shared)
