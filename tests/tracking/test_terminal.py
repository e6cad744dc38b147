"""Tables that fit a terminal: what is dropped, what wraps, what stays whole."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from alexnet_exp.tracking.terminal import nearby, print_fitted

HEAD = ["layer", "kind", "weights", "source"]
ROWS = [["[red]conv1[/red]", "Conv2d", "12,345,678", "a paper of some time ago, and what it says of this"]]


def shown(width: int) -> str:
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_fitted(HEAD, ROWS, screen, numbers=[2], spare=[3, 1], prose=3, elsewhere=" (see docs)")
    return screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("width", "left_out"), [(100, ""), (64, ""), (60, "source"), (35, "kind, source"), (20, "kind, source")]
)
def test_less_important_columns_are_dropped_and_numbers_stay_whole(width: int, left_out: str):
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert "12,345,678" in text
    assert [name for name in ("kind", "source") if name in text.splitlines()[0]] == [
        name for name in ("kind", "source") if name not in left_out
    ]
    said = " ".join(text.split("too narrow for: ")[1].split()) if left_out else ""
    assert said == (f"{left_out} (see docs)" if left_out else "")


def test_names_are_not_markup_and_wrap_as_a_last_resort():
    table = shown(20).partition("too narrow")[0].splitlines()[1:]
    assert "".join(line[:8].strip() for line in table) == "[red]conv1[/red]"


def test_output_to_a_pipe_is_not_fitted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    pipe = Console(file=io.StringIO())
    print_fitted(HEAD, ROWS, pipe, numbers=[2], spare=[3, 1], prose=3)
    assert ROWS[0][3] in pipe.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("outputs/run", ".", "outputs/run"),
        ("../beside/run", ".", "../beside/run"),
        ("outputs/run", "outputs/export", "../run"),
        ("/nowhere", ".", "/nowhere"),
    ],
)
def test_a_path_is_as_short_as_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, folder: str, expected: str
):
    monkeypatch.chdir(tmp_path)
    assert nearby(tmp_path / path, tmp_path / folder) == expected


def test_a_path_is_relative_to_the_target_of_a_linked_folder(tmp_path: Path):
    real = tmp_path / "far" / "away" / "outputs"
    real.mkdir(parents=True)
    (tmp_path / "outputs").symlink_to(real)
    file = tmp_path / "best.ckpt"
    file.touch()
    assert (tmp_path / "outputs" / nearby(file, tmp_path / "outputs")).samefile(file)
