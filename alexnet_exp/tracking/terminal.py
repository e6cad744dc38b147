"""Tables that fit a terminal without a number cut, and paths no longer than they must be."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet_exp.errors import printable

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
    spare: Sequence[int] = (),
    prose: int | None = None,
    elsewhere: str = "",
    whole: Container[int] = (),
    stacked: bool = False,
    styles: Mapping[str, str] | None = None,
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
        whole: Columns that are flush left and stay whole.
        stacked: Where there is too little room, the last column stands below the one before it.
        styles: Of cells with a certain text.
    """
    console = wide_enough(console)
    rows = [[printable(cell) for cell in row] for row in rows]
    if stacked and sum(_needed(head, rows, prose)) > console.width:
        head = [*head[:-2], ", ".join(head[-2:])]
        rows = [[*row[:-2], "\n".join(row[-2:]).rstrip()] for row in rows]
        prose = len(head) - 1
    needed, shown = _needed(head, rows, prose), list(range(len(head)))
    for column in spare:
        if sum(needed[i] for i in shown) > console.width + _GAP:
            shown.remove(column)
    table = Table(box=None, pad_edge=False)
    for i in shown:
        fixed = i in numbers or i in whole
        justify: Literal["left", "right"] = "right" if i in numbers else "left"
        table.add_column(Text(head[i]), justify=justify, no_wrap=fixed, overflow="fold")
        table.columns[-1].min_width = needed[i] - _GAP if fixed else None
    for row in rows:
        table.add_row(*[Text(row[i], style=(styles or {}).get(row[i], "")) for i in shown])
    console.print(table, soft_wrap=False)
    if left_out := [name for i, name in enumerate(head) if i not in shown]:
        console.print(Text(f"too narrow for: {', '.join(left_out)}{elsewhere}", style="dim"))


def _needed(head: Sequence[str], rows: Sequence[Sequence[str]], prose: int | None) -> list[int]:
    """Return the characters that each column needs, with the gap after it."""
    wide = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    return [(min(width, _LEAST) if i == prose else width) + _GAP for i, width in enumerate(wide)]
