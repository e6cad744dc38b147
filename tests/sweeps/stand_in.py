"""What the tests run in place of a training: `stand_in.py PARENT key=value ... hydra.run.dir=DIR`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[2:])
    directory = Path(settings.get("resume") or settings["hydra.run.dir"])
    (directory / "config.yaml").write_text("trainer: {max_epochs: 3}\n")
    with open(directory / "starts", "a") as starts:
        starts.write(f"{'resume' if 'resume' in settings else 'first'} {time.time()}\n")
    time.sleep(float(settings.get("seconds", 0)))
    kind = settings.get("ends", "well")
    if kind == "killed" or (kind == "killed_once" and "resume" not in settings):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raises":
        raise ZeroDivisionError("by nothing")
    error = "The loss is not finite at step 4." if kind == "nan" else None
    result = {"status": "failed" if error else "finished", "error": error, "metrics": {"test/top1": 0.5}}
    (directory / "environment.json").write_text(json.dumps(dict(os.environ)))
    (directory / "result.json").write_text(json.dumps(result))
    sys.exit(1 if error else 0)


if __name__ == "__main__":
    main()
