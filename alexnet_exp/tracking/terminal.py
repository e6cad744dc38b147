"""Tables that fit a terminal without a number cut, and paths no longer than they must be."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP = 2  # characters between columns
_LEAST = 24  # characters of a line of prose


def nearby(path: Path, folder: Path | str = ".") -> str:
    """Return a path as seen from a folder, or in full where that is shorter; the way up is the folder's real one."""
    seen = os.path.relpath(path) if folder == "." else os.path.relpath(path.resolve(), Path(folder).resolve())
    return min(seen, str(path.absolute()), key=len)


def wide_enough(console: Console) -> Console:
    """Return a console of 200 columns for a file or pipe, which has no width to fit."""
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(file=console.file, width=200)


def print_fitted(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    console: Console,
    numbers: Container[int],
    spare: Sequence[int],
    prose: int | None = None,
    elsewhere: str = "",
) -> None:
    """Print a table; where the terminal is too narrow for it, a line below says what was left out.

    Args:
        head: Names of the columns.
        rows: Cells.
        console: Where to.
        numbers: Columns that are flush right and stay whole; the others fold in the end.
        spare: Columns that can be left out, the first of them first.
        prose: A column of running text, which takes several lines before it is left out.
        elsewhere: Where to find what is left out.
    """
    console = wide_enough(console)
    wide = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    needed = [min(width, _LEAST) if i == prose else width for i, width in enumerate(wide)]
    shown = list(range(len(head)))
    for column in spare:
        if sum(needed[i] + _GAP for i in shown) - _GAP > console.width:
            shown.remove(column)
    table = Table(box=None, pad_edge=False)
    for i in shown:
        fixed = i in numbers
        table.add_column(head[i], justify="right" if fixed else "left", no_wrap=fixed, overflow="fold")
        table.columns[-1].min_width = wide[i] if fixed else None
    for row in rows:
        table.add_row(*[Text(row[i]) for i in shown])
    console.print(table, soft_wrap=False)
    if left_out := [name for i, name in enumerate(head) if i not in shown]:
        console.print(Text(f"too narrow for: {', '.join(left_out)}{elsewhere}", style="dim"))
