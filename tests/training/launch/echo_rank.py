"""A rank that writes what it receives to a file: `python -m tests.training.launch.echo_rank RUN_DIR PARENT_PID`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from alexnet_exp.training.launch.ranks import receive_settings

if __name__ == "__main__":
    said = {"settings": repr(receive_settings()), "arguments": sys.argv, "environment": dict(os.environ)}
    Path(sys.argv[1], f"rank-{os.environ['LOCAL_RANK']}").write_text(json.dumps(said))
