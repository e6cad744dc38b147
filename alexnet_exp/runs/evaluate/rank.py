"""Entry point of ranks 1, 2, ... of an evaluation: `python -m alexnet_exp.runs.evaluate.rank RUN_DIR PARENT_PID`."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from alexnet_exp.config.schema import read
from alexnet_exp.runs.evaluate.settings import Evaluate
from alexnet_exp.runs.train.rank import take_part
from alexnet_exp.tracking.log import logging_to


def _evaluate(settings: dict[str, Any]) -> None:
    from alexnet_exp.runs.evaluate.members import evaluate_all, open_members

    with logging_to(None):
        wanted = read(Evaluate, settings)
        evaluate_all(open_members(wanted.ckpt, wanted), wanted, Console(quiet=True))


if __name__ == "__main__":
    sys.exit(take_part("alexnet_exp.runs.evaluate.members", _evaluate))
