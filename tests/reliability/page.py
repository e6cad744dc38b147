"""docs/reliability.md, made from the lists that the tests run through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = """\
# Reliability

What this package does with input that is broken, or made to do harm. Every row is a test: the page is made from the
lists that the tests run through (`python -m tests.reliability`), and a test compares the two.

A refusal is one line on stderr that begins with `error:`, with exit code 1 and no traceback. The third column is a part
of that line, or of the warning where there is no refusal. `RUN` is the directory of a finished run.

"""


class Section(NamedTuple):
    """Inputs of one kind.

    Args:
        title: Heading.
        promised: What holds for all of them.
        rows: What was tried, and what is said.
    """

    title: str
    promised: str
    rows: list[tuple[str, str]]


def sections() -> Iterator[Section]:
    yield from command_lines()
    yield from checkpoints()
    yield from directories()
    yield from folders()
    yield from images()


def command_lines() -> Iterator[Section]:
    from tests.reliability.test_bad_inputs import KINDS
    from tests.test_cli import MISTAKES

    # Of several values of one setting, the first.
    first = {typed[-1].partition("=")[0]: (typed, said) for typed, said in reversed(MISTAKES)}
    yield Section(
        "Mistakes in typing",
        "refused from the text alone, before torch is imported; no directory is left",
        [(f"`train {' '.join(typed)}`", said) for typed, said in reversed(first.values())],
    )
    for kind in KINDS:
        yield Section(kind.title, kind.promised, [(kind.shown(bad), bad.said) for bad in kind.rows])


def checkpoints() -> Iterator[Section]:
    from tests.training import hostile_files as attacks
    from tests.training import test_checkpoint_claims as claims
    from tests.training import test_checkpoint_files as files

    yield Section(
        "Files that claim to be checkpoints",
        "refused; no code of the file runs, no memory is taken for what it claims",
        [(name, said(message)) for name, (_, message) in attacks.FILES.items()]
        + [(f"safetensors: {name}", "cannot be read") for name in attacks.SAFETENSORS],
    )
    yield Section(
        "Classes that a checkpoint names",
        "refused before anything is imported; `trust=[PACKAGE]`, typed, lets a package of yours in",
        [(f"model: `_target_: {name!r}`", "is not of this package") for name in claims.TARGETS]
        + [(f"model: `{keys}`", "is not of this package") for keys in claims.NESTED],
    )
    yield Section(
        "What a checkpoint says of itself",
        "refused before a network is built or an image read",
        [(name, said(message)) for name, (_, message) in claims.SETTINGS.items()]
        + [(f"data: `{keys}`", said(message)) for keys, message in claims.DATA],
    )
    yield Section(
        "A damaged last.ckpt",
        "no refusal but a warning: the checkpoint before it is used, and the run ends as if nothing had been",
        [(name, said(message)) for name, (_, message) in files.HARMS.items()],
    )


def directories() -> Iterator[Section]:
    from tests.training import test_checkpoint_claims as claims

    yield Section(
        "Run directories of others",
        "refused; Hydra is given settings alone",
        [(f"overrides.yaml with `{override}`", "which no run writes there") for override in claims.OVERRIDES]
        + [(f"{file} with `{text!r}`", said(message)) for file, text, message in claims.DIRECTORIES],
    )


def folders() -> Iterator[Section]:
    from tests.data.test_deep_folders import FOLDERS

    yield Section(
        "Folders that are deep or lead round",
        "no refusal, and no hang: each image is found once",
        [(name, found) for name, (_, found) in FOLDERS.items()],
    )


def images() -> Iterator[Section]:
    from tests.data import test_hostile_images as hostile
    from tests.reliability.images import IMAGES

    yield Section(
        "Images",
        "refused by name; with `data.verify=true` before training, with `data.on_bad_image=skip` left out and counted",
        [
            (name, said(message))
            for name, (*_, message) in (*hostile.BOMBS.items(), *hostile.NO_PICTURES.items())
        ],
    )
    yield Section(
        "Images for `predict`, among good ones",
        "no refusal: named in the table and in predictions.csv, the others are answered; exit code 2",
        [(name, message) for name, (*_, message) in IMAGES.items()],
    )


def said(pattern: str) -> str:
    """Return the one text that a pattern finds: itself, without what escapes characters."""
    text = re.sub(r"\\(.)", r"\1", pattern)
    assert re.fullmatch(pattern, text), f"{pattern} finds more than one text"
    return text


def page() -> str:
    """Return the page as Markdown."""
    parts, count = [], 0
    for section in sections():
        count += len(section.rows)
        lines = [f"## {section.title}", "", "| tried | promised | what happens |", "|---|---|---|"]
        lines += [f"| {_cell(tried)} | {_cell(section.promised)} | {_cell(f'… {message.strip()} …')} |"
                  for tried, message in section.rows]  # fmt: skip
        parts.append("\n".join(lines))
    return f"{HEAD}{count} inputs.\n\n" + "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
