"""Tables that fit the terminal without truncating numbers, and short paths."""

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
_MIN_PROSE = 24  # characters per line of prose


def nearby(path: Path, folder: Path | str = ".") -> str:
    """Return a path relative to a folder, or absolute if that is shorter; symlinks are resolved for `..`."""
    seen = os.path.relpath(path) if folder == "." else os.path.relpath(path.resolve(), Path(folder).resolve())
    return min(seen, str(path.absolute()), key=len)


def wide_enough(console: Console) -> Console:
    """Return a console of 200 columns for a file or pipe, where rich would assume 80."""
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
    """Print a table; if the terminal is too narrow, a line below names the columns left out.

    Args:
        head: Column names.
        rows: Cells.
        console: Where to print.
        numbers: Indices of right-aligned columns that never wrap.
        spare: Columns that can be left out, in this order.
        prose: A column of running text, which wraps before it is left out.
        elsewhere: Where to find the columns left out.
        whole: Left-aligned columns that never wrap.
        stacked: If space is short, print the last column below the second to last.
        styles: Styles by cell text.
    """
    console = wide_enough(console)
    rows = [[printable(cell) for cell in row] for row in rows]
    if stacked and sum(_needed(head, rows, prose)) > console.width:
        head = [*head[:-2], ", ".join(head[-2:])]
        rows = [[*row[:-2], "\n".join(row[-2:]).rstrip()] for row in rows]
        prose = len(head) - 1
    needed, shown = _needed(head, rows, prose), list(range(len(head)))
    for column in spare:
        if sum(needed[i] for i in shown) > console.width + _GAP:  # no gap after the last column
            shown.remove(column)
    table = Table(box=None, pad_edge=False)
    for i in shown:
        fixed = i in numbers or i in whole
        justify: Literal["left", "right"] = "right" if i in numbers else "left"
        table.add_column(Text(head[i]), justify=justify, no_wrap=fixed, overflow="fold")
        table.columns[-1].min_width = needed[i] - _GAP if fixed else None
    for row in rows:
        # Text, because rich would read "[red]" in a plain string as markup.
        table.add_row(*[Text(row[i], style=(styles or {}).get(row[i], "")) for i in shown])
    console.print(table, soft_wrap=False)
    if left_out := [name for i, name in enumerate(head) if i not in shown]:
        console.print(Text(f"too narrow for: {', '.join(left_out)}{elsewhere}", style="dim"))


def _needed(head: Sequence[str], rows: Sequence[Sequence[str]], prose: int | None) -> list[int]:
    """Return the width of each column in characters, including the gap after it."""
    wide = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    return [(min(width, _MIN_PROSE) if i == prose else width) + _GAP for i, width in enumerate(wide)]
