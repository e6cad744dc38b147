"""Another rank of an evaluation: `python -m alexnet_exp.runs.evaluate.rank RUN_DIR PARENT_PID`."""

from __future__ import annotations

import sys

from rich.console import Console

from alexnet_exp.errors import UserError
from alexnet_exp.startup import before_torch
from alexnet_exp.tracking.log import logging_to
from alexnet_exp.training.launch.ranks import die_with_parent, receive_settings
from alexnet_exp.training.launch.signals import ignore_signals


def main() -> int:
    die_with_parent(int(sys.argv[2]))
    before_torch()
    ignore_signals()
    from alexnet_exp.runs.evaluate import members as heavy

    received = receive_settings()
    if received is None:
        return 1  # the first rank ended before there was anything to do
    (settings,) = received
    try:
        with logging_to(None):
            members = heavy.open_members(settings["ckpt"], settings)
            heavy.evaluate_all(members, settings, Console(quiet=True))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
