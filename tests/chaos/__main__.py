"""`make chaos`: runs that are killed with -9 and resumed end bit-identical to an uninterrupted one.

All runs train the same thing: digits on a narrow network with dropout, augmentation, weight averaging, W&B offline and
a checkpoint every few steps. Weights, states, metrics.csv and the W&B history must be equal, except for throughput. The
kills are drawn from a seed: at any time, right after a step, or in the middle of writing a checkpoint; every third run
is killed twice. Twelve epochs take about ten seconds, imports included; `--epochs 400` trains for minutes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.chaos.comparing import differences
from tests.chaos.killing import Kill, finish, killed, last_step
from tests.training.small_runs import DROPOUT, NARROW

SETTINGS = [
    "model=alexnet_cifar",
    *NARROW,
    *DROPOUT,
    "data=digits",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "scheduler=cosine",
    "logger=wandb",
    "logger.wandb.mode=offline",
    "callbacks.checkpoint.every_n_steps=17",
    "callbacks.ema.enabled=true",
    "callbacks.early_stopping.enabled=true",
    "callbacks.early_stopping.patience=1000",
    "callbacks.progress_bar.enabled=false",
    "callbacks.model_summary.enabled=false",
]
KINDS = ("clock", "step", "save", "clock", "save")  # cycled through, run by run


@dataclass
class Case:
    """One run: when to kill it, and the outcome."""

    number: int
    kills: list[Kill]
    done: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def draw(number: int, seed: int, steps: int, seconds: float) -> Case:
    """Draw the kills of one run.

    Args:
        number: Index of the run.
        seed: Seed of all runs.
        steps: Steps of the reference run.
        seconds: Duration of the reference run.
    """
    dice = random.Random(f"{seed} {number}")
    kinds = [KINDS[number % len(KINDS)]] + [dice.choice(KINDS)] * (number % 3 == 0)
    return Case(number, [_draw(dice, kind, steps, seconds) for kind in kinds])


def _draw(dice: random.Random, kind: str, steps: int, seconds: float) -> Kill:
    if kind == "clock":
        return Kill(kind, seconds=dice.uniform(0.05, 0.9) * seconds)
    return Kill(kind, seconds=dice.uniform(0, 0.1), step=dice.randrange(1, max(2, int(0.8 * steps))))


def chase(case: Case, folder: Path, reference: Path, settings: list[str]) -> Case:
    """Kill and resume one run, let it finish, and compare it with the reference."""
    run_dir = folder / f"{case.number:02d}" / "run"
    run_dir.parent.mkdir()
    try:
        for kill in case.kills:
            if killed(run_dir, settings, kill):
                step = last_step(run_dir)
                case.done.append(f"{kill} ({'before the first row' if step < 0 else f'at row {step}'})")
        if not case.done:
            case.wrong.append("ended before it was killed")
        finish(run_dir, settings)
        case.wrong += [
            f"{part}: {what}" for part, all_ in differences(reference, run_dir).items() for what in all_
        ]
    except Exception as error:
        case.wrong.append(f"{type(error).__name__}: {error}")
    return case


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--keep", action="store_true", help="leave the runs where they are")
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    reference = folder / "reference" / "run"
    reference.parent.mkdir()
    settings = [*SETTINGS, f"trainer.max_epochs={wanted.epochs}"]
    seconds = finish(reference, settings)
    steps = last_step(reference)
    print(f"reference: {steps} steps in {seconds:.1f} s, nobody killed it", flush=True)
    cases = [draw(number, wanted.seed, steps, seconds) for number in range(wanted.runs)]
    with ThreadPoolExecutor(wanted.jobs) as pool:
        same = 0
        for case in pool.map(partial(chase, folder=folder, reference=reference, settings=settings), cases):
            same += not case.wrong
            verdict = "; ".join(case.wrong)[:300] or "identical"
            print(f"{case.number + 1:>3}  {verdict:<10}  {'; then '.join(case.done)}", flush=True)
    print(f"{same} of {len(cases)} runs are bit-identical to the reference.")
    if same == len(cases) and not wanted.keep:
        shutil.rmtree(folder)
    else:
        print(f"The runs lie in {folder}.")
    return int(same < len(cases))


if __name__ == "__main__":
    sys.exit(main())
