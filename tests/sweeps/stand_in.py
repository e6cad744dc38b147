"""Runs in place of training in the tests: `stand_in.py PARENT [+]key=value ... hydra.run.dir=DIR`.

With `epochs=N` it writes metrics.csv epoch by epoch, resumes where it stopped, and appends every epoch to `trained`;
its val/top1 is higher the closer `lr` is to 0.1. SIGTERM ends it as it ends training.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


class Terminated(BaseException):
    pass


def main() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    settings = dict(argument.lstrip("+").split("=", 1) for argument in sys.argv[2:] if "=" in argument)
    directory = Path(settings.get("resume") or settings["hydra.run.dir"])
    epochs = int(settings.get("epochs", 0))
    (directory / "config.yaml").write_text(f"trainer: {{max_epochs: {epochs or 3}}}\nseed: 0\n")
    with open(directory / "starts", "a") as starts:
        starts.write(f"{'resume' if 'resume' in settings else 'first'} {time.time()}\n")
    try:
        best = _train(directory, epochs, settings)
    except Terminated:
        _end(directory, {"status": "interrupted", "error": "ended", "metrics": {}})
        sys.exit(143)
    kind = settings.get("ends", "well")
    if kind == "killed" or (kind == "killed_once" and "resume" not in settings):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raises":
        raise ZeroDivisionError("by nothing")
    error = "The loss is not finite at step 4." if kind == "nan" else None
    best = {"val/top1": best} if epochs else {}
    metrics = {"test/top1": 0.5, **best}
    (directory / "environment.json").write_text(json.dumps(dict(os.environ)))
    _end(directory, {"status": "failed" if error else "finished", "error": error, "metrics": metrics})
    sys.exit(1 if error else 0)


def _train(directory: Path, epochs: int, settings: dict[str, str]) -> float:
    """Write an epoch at a time; return the last value."""
    seconds, lr = float(settings.get("seconds", 0)), float(settings.get("lr", 0.1))
    value = 0.0
    if not epochs:
        time.sleep(seconds)
    csv = directory / "metrics.csv"
    if epochs and not csv.exists():
        csv.write_text("epoch,step,val/top1\n")
    done = len(csv.read_text().splitlines()) - 1 if epochs else 0
    for epoch in range(done + 1, epochs + 1):
        time.sleep(seconds)
        value = (1 - abs(math.log10(lr) + 1) / 4) * epoch / epochs
        with open(csv, "a") as rows:
            rows.write(f"{epoch},{10 * epoch},{value}\n")
        with open(directory / "trained", "a") as trained:
            trained.write(f"{epoch}\n")
    return value


def _end(directory: Path, result: dict[str, object]) -> None:
    (directory / "result.json").write_text(json.dumps(result))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    main()
