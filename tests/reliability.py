"""docs/reliability.md, made from the lists that the tests run through: `python -m tests.reliability` writes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
HEAD = """\
# Reliability

What this package does with input that is broken, or made to do harm. Every row is a test: the page is made from the
lists that the tests run through (`python -m tests.reliability`), and a test compares the two.

A refusal is one line on stderr that begins with `error:`, with exit code 1 and no traceback. The third column is a part
of that line, or of the warning where there is no refusal.

"""


class Section(NamedTuple):
    """Inputs of one kind.

    Args:
        title: Heading.
        promised: What holds for all of them.
        rows: What was tried, and a pattern that finds what is said.
    """

    title: str
    promised: str
    rows: list[tuple[str, str]]


def sections() -> Iterator[Section]:
    from tests.data import test_hostile_images as images
    from tests.training import test_checkpoint_attacks as attacks
    from tests.training import test_checkpoint_files as files

    yield Section(
        "Files that claim to be checkpoints",
        "refused; no code of the file runs, no memory is taken for what it claims",
        [(name, message) for name, (_, message) in attacks.FILES.items()]
        + [(f"safetensors: {name}", "cannot be read") for name in attacks.SAFETENSORS],
    )
    yield Section(
        "Classes that a checkpoint names",
        "refused before anything is imported; `trust=[PACKAGE]`, typed, lets a package of yours in",
        [(f"model: `_target_: {name!r}`", "is not of this package") for name in attacks.TARGETS]
        + [(f"model: `{keys}`", "is not of this package") for keys in attacks.NESTED],
    )
    yield Section(
        "What a checkpoint says of itself",
        "refused before a network is built or an image read",
        [(name, message) for name, (_, message) in attacks.SETTINGS.items()]
        + [(f"data: `{keys}`", message) for keys, message in attacks.DATA],
    )
    yield Section(
        "Run directories of others",
        "refused; Hydra is given settings alone",
        [(f"overrides.yaml with `{override}`", "which no run writes there") for override in attacks.OVERRIDES]
        + [(f"{file} with `{text!r}`", message) for file, text, message in attacks.DIRECTORIES],
    )
    yield Section(
        "A damaged last.ckpt",
        "no refusal but a warning: the checkpoint before it is used, and the run ends as if nothing had been",
        [(name, message) for name, (_, message) in files.HARMS.items()],
    )
    yield Section(
        "Images",
        "refused by name; with `data.verify=true` before training, with `data.on_bad_image=skip` left out and counted",
        [(name, message) for name, (*_, message) in (*images.BOMBS.items(), *images.NO_PICTURES.items())],
    )


def said(pattern: str) -> str:
    """Return the one text that a pattern finds: itself, without what escapes characters."""
    text = re.sub(r"\\(.)", r"\1", pattern)
    assert re.fullmatch(pattern, text), f"{pattern} finds more than one text"
    return text.strip()


def page() -> str:
    """Return the page as Markdown."""
    parts, count = [], 0
    for section in sections():
        count += len(section.rows)
        lines = [f"## {section.title}", "", "| tried | promised | what happens |", "|---|---|---|"]
        lines += [f"| {_cell(tried)} | {_cell(section.promised)} | {_cell(f'… {said(message)} …')} |"
                  for tried, message in section.rows]  # fmt: skip
        parts.append("\n".join(lines))
    return f"{HEAD}{count} inputs.\n\n" + "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
