"""Entry point of ranks 1, 2, ... of a run: `python -m alexnet_exp.runs.train.rank RUN_DIR PARENT_PID` (see `Ranks`)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from alexnet_exp.config.messages import explain
from alexnet_exp.errors import UserError
from alexnet_exp.startup import before_torch
from alexnet_exp.training.launch.ranks import die_with_parent, receive_settings
from alexnet_exp.training.launch.signals import Stopped, ignore_signals


def take_part(module: str, work: Callable[..., Any]) -> int:
    """Run as a rank other than 0; return the exit code.

    Args:
        module: Imported first: its slow imports run while rank 0 prepares the data.
        work: Called with the arguments of `Ranks.go` on rank 0.
    """
    die_with_parent(int(sys.argv[2]))
    before_torch()
    ignore_signals()
    import_module(module)
    received = receive_settings()
    if received is None:
        return 1  # rank 0 exited before training started
    try:
        work(*received)
    except Stopped:
        return 0
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if not isinstance(error, UserError):
            traceback.print_exception(error)  # for train.log
        print(message, file=sys.stderr)  # rank 0 prints the last line
        return 1
    return 0


def _train(config: dict[str, Any], overrides: list[str]) -> None:
    from alexnet_exp.runs.train.command import follow

    follow(config, overrides, Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(take_part("alexnet_exp.runs.train.fit", _train))
