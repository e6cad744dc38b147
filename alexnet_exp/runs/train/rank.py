"""Another rank of a run: `python -m alexnet_exp.runs.train.rank RUN_DIR PARENT_PID`, started by `Ranks`."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from alexnet_exp.config.messages import explain
from alexnet_exp.errors import UserError
from alexnet_exp.startup import before_torch
from alexnet_exp.training.launch.ranks import die_with_parent, receive_settings
from alexnet_exp.training.launch.signals import Stopped, ignore_signals


def main() -> int:
    run_dir, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    before_torch()
    ignore_signals()
    from alexnet_exp.runs.train import fit  # noqa: F401 (the slow imports happen while the first rank prepares the data)
    from alexnet_exp.runs.train.command import follow

    received = receive_settings()
    if received is None:
        return 1  # the first rank ended before there was anything to do
    config, overrides = received
    try:
        follow(config, overrides, run_dir)
    except Stopped:
        return 0
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if not isinstance(error, UserError):
            traceback.print_exception(error)  # for train.log
        print(message, file=sys.stderr)  # the first rank shows the last line
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
