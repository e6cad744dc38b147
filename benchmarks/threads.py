"""How threads wait, on a quiet machine and beside other work: rates of training in two environments, turn by turn.

    python benchmarks/threads.py
    python benchmarks/threads.py --after OMP_WAIT_POLICY=passive --runs digits --others 1 --pairs 5

Each pair is two short trainings, in processes of their own, that differ in the environment alone. A row of the table
has the median of the ratios (rate after over rate before) and the interval in which the true median lies, by the order
of the ratios alone. Nothing else may run on the machine; the default takes about an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    "digits": [],
    "cifar": ["model=alexnet_cifar", "data=cifar10"],
    "lrn": [
        "model=alexnet_lrn",
        "data=cifar10",
        "data.image_size=227",
        "data.batch_size=16",
        "compile=false",
    ],
}
PLAIN = [
    "logger=csv", "test=false", "trainer=cpu", "trainer.max_epochs=100000", "trainer.limit_val_batches=0",
    # With min_steps alone, Lightning would also want a whole epoch.
    "trainer.min_steps=8", "trainer.min_epochs=0",
    "callbacks.progress_bar.enabled=false", "callbacks.model_summary.enabled=false",
    "callbacks.checkpoint.enabled=false",
]  # fmt: skip
# What a user may have set would be part of both sides.
CLEARED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "OMP_PROC_BIND")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, and write the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # libgomp's own count where nothing is set; the package sets another only where there is none.
    parser.add_argument("--before", nargs="*", default=["GOMP_SPINCOUNT=300000"], metavar="NAME=VALUE")
    parser.add_argument(
        "--after", nargs="*", default=[], metavar="NAME=VALUE", help="default: what the package sets"
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument(
        "--others", nargs="+", type=int, default=[0, 1, 2], help="processes at full load beside it"
    )
    parser.add_argument("--pairs", type=int, default=15, help="on a quiet machine")
    parser.add_argument("--busy-pairs", type=int, default=6, help="beside other processes")
    parser.add_argument(
        "--seconds", type=float, default=12, help="of training, each time; eight steps at least"
    )
    parser.add_argument("--out", type=Path, default=Path("threads.json"))
    options = parser.parse_args(arguments)
    sides = [dict(pair.split("=", 1) for pair in side) for side in (options.before, options.after)]
    rows = []
    for others in options.others:
        for name in options.runs:
            with load(others):
                pairs = measure(name, sides, options.busy_pairs if others else options.pairs, options.seconds)
            rows.append(
                {"run": name, "others": others, "before": sides[0], "after": sides[1], "pairs": pairs}
            )
            print(line(name, others, pairs), flush=True)
            options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


def measure(name: str, sides: list[dict[str, str]], count: int, seconds: float) -> list[list[float]]:
    """Return `count` pairs [before, after] of images per second; every other pair begins with the second side."""
    pairs = []
    for number in range(count):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found = {side: rate(name, sides[side], seconds) for side in order}
        pairs.append([found[0], found[1]])
    return pairs


def rate(name: str, changes: dict[str, str], seconds: float) -> float:
    """Return the images per second of one training in an environment of its own: the median over its steps."""
    environment = {key: value for key, value in os.environ.items() if key not in CLEARED} | changes
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory(prefix="alexnet_exp_threads_") as folder:
        minutes, rest = divmod(math.ceil(seconds), 60)
        limit = f"trainer.max_time='00:{minutes // 60:02}:{minutes % 60:02}:{rest:02}'"
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *RUNS[name],
            *PLAIN,
            limit,
            f"hydra.run.dir={folder}/run",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return float(json.loads(Path(folder, "run", "result.json").read_text())["images_per_second"])


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """Keep `count` processes at full load."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the interval of the true median, and how sure it is.

    The narrowest between two of the values, equally far from both ends, that holds it in 95 of 100 cases; of fewer
    than six values the whole range, which is less sure than that.
    """
    ordered, n = sorted(values), len(values)
    for cut in range((n - 1) // 2, -1, -1):  # values left out at each end
        sure = 1 - 2 * sum(math.comb(n, i) for i in range(cut + 1)) / 2**n
        if sure >= 0.95 or cut == 0:
            return ordered[cut], ordered[n - 1 - cut], sure
    raise AssertionError


def line(name: str, others: int, pairs: list[list[float]]) -> str:
    """Return a row: `digits   beside 1   before 126.0   after 289.0   ratio 2.29 (2.10 to 2.41, 97 %, n = 6)`."""
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [new / old for old, new in pairs]
    low, high, sure = interval(ratios)
    where = f"beside {others}" if others else "quiet"
    return (
        f"{name:7} {where:9} before {before:8.1f}   after {after:8.1f} images/s   "
        f"ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}, {sure:.0%}, n = {len(pairs)})"
    )


def machine() -> dict[str, str | int | None]:
    """Return what the figures belong to."""
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(), "torch": torch.__version__,
        "system": platform.platform(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
