"""How soon every network leaves chance with the default recipe: the figures of docs/learning.md.

    python benchmarks/leaves_chance.py matrix                # every network on CIFAR-10, at its smallest input
    python benchmarks/leaves_chance.py others                # six networks on the digits and on a folder of photos
    python benchmarks/leaves_chance.py before_after          # two commands, with the default recipe of old and of now
    python benchmarks/leaves_chance.py before_after_small    # the same at a tenth of the work
    python benchmarks/leaves_chance.py table                 # prints what has been measured as tables

Each finished run is a line of --out and is not repeated, so the script may be stopped at any time.
A network has left chance at the first step at which the mean loss of the last ten is below 0.9 of the entropy of the
training labels. Data comes from ALEXNET_DATA_DIR; the photos are in its folder `clothing`, in `train` and `val`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from alexnet_exp import list_models
from alexnet_exp.config.compose import compose, group, plain
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.command import train
from alexnet_exp.targets import build

SIX = ("alexnet_small", "alexnet_cifar", "alexnet_icpm_bn", "alexnet_owt", "alexnet_lrn", "resnet18")
QUIET = [
    "logger=csv", "test=false", "trainer=cpu", "trainer.log_every_n_steps=10", "callbacks.progress_bar.enabled=false",
    "callbacks.model_summary.enabled=false", "callbacks.checkpoint.enabled=false",
]  # fmt: skip
CIFAR = ["data=cifar10", "data.train_subset=2000", "data.val_size=500"]
# What the default recipe was before it looked at the network.
BEFORE = ["init=published", "optimizer.lr=0.03", "scheduler.warmup_epochs=0.25"]


class Reach(Callback):
    """Note the step at which the loss is below 0.9 of the entropy of the labels, and end the run there if wanted."""

    step: int | None = None  # of the latest run
    entropy = math.nan

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = torch.bincount(trainer.datamodule.sources["train"].labels).double()
        shares = counts[counts > 0] / counts.sum()
        Reach.step, Reach.entropy = None, float(-(shares * shares.log()).sum())
        self.losses: deque[float] = deque(maxlen=10)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(pl_module.step_loss))
        if (
            Reach.step is None
            and len(self.losses) == 10
            and statistics.mean(self.losses) < 0.9 * Reach.entropy
        ):
            Reach.step = trainer.global_step
            trainer.should_stop = self.ends


def main(arguments: list[str] | None = None) -> int:
    """Measure one part, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument(
        "--steps", type=int, default=150, help="of matrix and others, where chance is not left"
    )
    parser.add_argument("--out", type=Path, default=Path("leaves_chance.jsonl"))
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.part == "table":
        print("\n\n".join(tables(rows)))
        return 0
    done = {(row["part"], row["name"], row["seed"]) for row in rows}
    ends = options.part in ("matrix", "others")
    for name, seed, typed in PARTS[options.part](options.steps):
        if (options.part, name, seed) not in done:
            row = {
                "part": options.part,
                "name": name,
                "seed": seed,
                **measure([*typed, f"seed={seed}"], ends),
            }
            with options.out.open("a") as file:
                file.write(json.dumps({**row, **machine()}) + "\n")
            print(line(row), flush=True)
    return 0


def matrix(steps: int) -> Iterator[tuple[str, int, list[str]]]:
    """Yield (name, seed, settings) of every network on CIFAR-10, those with the fewest weights first."""
    for name in sorted(list_models(), key=_num_weights):
        limits = [f"trainer.max_steps={steps}", "data.batch_size=32"]
        yield name, 0, [f"model={name}", *CIFAR, *limits, f"model.input_size={smallest_input(name)}"]


def others(steps: int) -> Iterator[tuple[str, int, list[str]]]:
    """Yield (name, seed, settings) of six networks on two other data sets."""
    photos = ["data=folder", f"data.root={os.environ['ALEXNET_DATA_DIR']}/clothing", "data.train_subset=300"]
    for data, settings in {"digits": ["data=digits"], "photos": photos}.items():
        for name in SIX:
            size = f"model.input_size={smallest_input(name)}"
            yield (
                f"{name} {data}",
                0,
                [f"model={name}", *settings, size, f"trainer.max_steps={steps}", "data.batch_size=32"],
            )


def before_after(steps: int) -> Iterator[tuple[str, int, list[str]]]:
    """Yield (name, seed, settings) of the two commands, before and now; `steps` does not apply."""
    yield from _pairs(["model.input_size=224"], ["model.input_size=99", "trainer.max_steps=400"])


def before_after_small(steps: int) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the same with small images, batches of 32 and fewer steps."""
    small = ["data.batch_size=32"]
    yield from _pairs(
        [*small, "model.input_size=63"], [*small, "model.input_size=67", "trainer.max_steps=100"]
    )


def _pairs(of_photos: list[str], of_cifar: list[str]) -> Iterator[tuple[str, int, list[str]]]:
    photos = [
        "data=folder",
        f"data.root={os.environ['ALEXNET_DATA_DIR']}/clothing",
        "model=alexnet_owt",
        *of_photos,
    ]
    cifar = ["data=cifar10", "model=alexnet_lrn", *of_cifar]
    for seed in range(3):
        for when, settings in {"now": [], "before": BEFORE}.items():
            yield f"alexnet_lrn, CIFAR-10, {when}", seed, [*cifar, *settings]
            yield f"alexnet_owt, photos, {when}", seed, [*photos, *settings]


PARTS = {
    "matrix": matrix,
    "others": others,
    "before_after": before_after,
    "before_after_small": before_after_small,
}


def _num_weights(name: str) -> int:
    with torch.device("meta"):
        network = build({**group("model", name), "input_size": smallest_input(name), "num_classes": 10})
    return sum(p.numel() for p in network.parameters())


def smallest_input(name: str) -> int:
    """Return the side of the smallest images that a network takes: its own, or 32 pixels and more."""
    settings = group("model", name)
    for size in range(min(32, settings["input_size"]), settings["input_size"]):
        try:
            with torch.device("meta"):
                build({**settings, "input_size": size})
            return size
        except UserError:
            continue
    return int(settings["input_size"])


def measure(typed: list[str], ends: bool) -> dict[str, Any]:
    """Train once, to the step that leaves chance if `ends`, and return what a row has."""
    config = plain(compose("train", [*typed, *QUIET]))
    config["callbacks"]["reach"] = {"_target_": f"{__name__}.Reach", "ends": ends}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="alexnet_exp_chance_") as folder:
        result = train(config, [*typed, *QUIET], Path(folder, "run"), "benchmarks/leaves_chance.py")
    return {
        "typed": [word for word in typed if not word.startswith("data.root=")],
        "steps_to_leave": Reach.step,
        "entropy": Reach.entropy,
        "steps": result["steps"],
        "parameters": result["parameters"],
        "lr": config["optimizer"]["lr"],
        "init": config["init"],
        **{
            name: value
            for name, value in result["metrics"].items()
            if name in ("train/loss", "val/loss", "val/top1")
        },
        "at_chance": "at_chance" in result,
        "seconds": round(time.monotonic() - started, 1),
    }


def line(row: dict[str, Any]) -> str:
    """Return a row in words."""
    reached = "not left" if row["steps_to_leave"] is None else f"left at step {row['steps_to_leave']}"
    losses = "  ".join(
        f"{name} {row[name]:.3f}" for name in ("train/loss", "val/loss", "val/top1") if name in row
    )
    what = f"{row['name']:28} seed {row['seed']}  init {row['init']:9} lr {row['lr']:<7g}"
    return f"{what} {reached:18} {losses}  {row['seconds']:.0f} s"


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the tables of docs/learning.md, in Markdown."""
    for part in PARTS:
        own = [row for row in rows if row["part"] == part]
        if own and part.startswith("before"):
            yield _compared(own)
        elif own:
            head = ["network", "input", "parameters", "init", "lr", "steps to leave chance", "val top-1 then"]
            yield "\n".join([part, "", *_head(head), *map(_cells, own)])


def _head(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _cells(row: dict[str, Any]) -> str:
    size = next(word.partition("=")[2] for word in row["typed"] if word.startswith("model.input_size="))
    reached = f"not in {row['steps']}" if row["steps_to_leave"] is None else row["steps_to_leave"]
    cells = (
        row["name"],
        size,
        f"{row['parameters']:,}",
        row["init"],
        f"{row['lr']:g}",
        reached,
        f"{row['val/top1']:.3f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _compared(rows: list[dict[str, Any]]) -> str:
    lines = ["| run | seeds | steps to leave chance | train loss | val top-1 |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        cells = [
            ", ".join(
                "never" if row["steps_to_leave"] is None else str(row["steps_to_leave"]) for row in own
            ),
            *(_mean([row[key] for row in own]) for key in ("train/loss", "val/top1")),
        ]
        lines.append(f"| {name} | {', '.join(str(row['seed']) for row in own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    sd = f" (sd {statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{sd}"


def machine() -> dict[str, str | int | None]:
    """Return what the figures belong to."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "system": platform.machine(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
