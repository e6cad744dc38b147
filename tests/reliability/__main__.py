"""`python -m tests.reliability` writes docs/reliability.md; with `--table FILE`, every input and its answer."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.reliability.page import PAGE, page, table

parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
parser.add_argument(
    "--table", type=Path, metavar="FILE", help="write the full table there, and leave the page alone"
)
file = parser.parse_args().table
if file:
    file.write_text(table(), encoding="utf-8")
else:
    PAGE.write_text(page(), encoding="utf-8")
