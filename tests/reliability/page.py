"""docs/reliability.md and the table behind it, generated from the lists that the tests are parametrised with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = """\
# Reliability

How this package handles broken or hostile input. The tests try every input that is counted here. A refusal is one line
on stderr that begins with `error:`, with exit code 1 and no traceback.

`python -m tests.reliability` writes this page from the lists that the tests are parametrised with, and a test compares
the two. `python -m tests.reliability --table FILE` writes every input with the answer that its test expects.

"""
TABLE_HEAD = """\
# Bad inputs and their answers

Every row is a test. The second column is part of the line that refuses the input, or of the warning if there is no
refusal. `RUN` is the directory of a finished run.

"""


class Section(NamedTuple):
    """Inputs of one kind.

    Args:
        title: Heading.
        promised: What is promised for all of them.
        rows: The inputs, and part of each answer.
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

    # Only the first of several values of a setting.
    first = {typed[-1].partition("=")[0]: (typed, said) for typed, said in reversed(MISTAKES)}
    yield Section(
        "Typing mistakes",
        "refused from the text alone, before torch is imported; no directory is left",
        [(f"`train {' '.join(typed)}`", said) for typed, said in reversed(first.values())],
    )
    for kind in KINDS:
        yield Section(kind.title, kind.promised, [(kind.shown(bad), bad.said) for bad in kind.rows])


def checkpoints() -> Iterator[Section]:
    from tests.training.checkpoint import hostile_files as attacks
    from tests.training.checkpoint import test_checkpoint_claims as claims
    from tests.training.checkpoint import test_checkpoint_files as files

    yield Section(
        "Files that claim to be checkpoints",
        "refused; no code in the file runs, no memory is allocated for the sizes it claims",
        [(name, said(message)) for name, (_, message) in attacks.FILES.items()]
        + [(f"safetensors: {name}", "cannot be read") for name in attacks.SAFETENSORS],
    )
    yield Section(
        "Classes that a checkpoint names",
        "refused before anything is imported; `trust=[PACKAGE]` on the command line allows your own package",
        [(f"model: `_target_: {name!r}`", "is not of this package") for name in claims.TARGETS]
        + [(f"model: `{keys}`", "is not of this package") for keys in claims.NESTED],
    )
    yield Section(
        "Metadata of a checkpoint",
        "refused before a network is built or an image is read",
        [(name, said(message)) for name, (_, message) in claims.SETTINGS.items()]
        + [(f"data: `{keys}`", said(message)) for keys, message in claims.DATA],
    )
    yield Section(
        "A damaged last.ckpt",
        "a warning: the previous checkpoint is used, and the run ends like an undisturbed one",
        [(name, said(message)) for name, (_, message) in files.HARMS.items()],
    )


def directories() -> Iterator[Section]:
    from tests.training.checkpoint import test_checkpoint_claims as claims

    yield Section(
        "Run directories from elsewhere",
        "refused; Hydra receives settings only",
        [(f"overrides.yaml with `{override}`", "which no run writes there") for override in claims.OVERRIDES]
        + [(f"{file} with `{text!r}`", said(message)) for file, text, message in claims.DIRECTORIES],
    )


def folders() -> Iterator[Section]:
    from tests.data.datasets.test_deep_folders import FOLDERS

    yield Section(
        "Folders that are deep or contain link cycles",
        "accepted without hanging: each image is found once",
        [(name, found) for name, (_, found) in FOLDERS.items()],
    )


def images() -> Iterator[Section]:
    from tests.data import test_hostile_images as hostile
    from tests.reliability.images import IMAGES

    yield Section(
        "Images",
        "refused by name; before training with `data.verify=true`, skipped and counted with `data.on_bad_image=skip`",
        [
            (name, said(message))
            for name, (*_, message) in (*hostile.BOMBS.items(), *hostile.NO_PICTURES.items())
        ],
    )
    yield Section(
        "Images for `predict`, among good ones",
        "named in the table and in predictions.csv, the others are predicted; exit code 2",
        [(name, message) for name, (*_, message) in IMAGES.items()],
    )


def said(pattern: str) -> str:
    """Return the only text that a pattern matches: the pattern itself, unescaped."""
    text = re.sub(r"\\(.)", r"\1", pattern)
    assert re.fullmatch(pattern, text), f"{pattern} finds more than one text"
    return text


def page() -> str:
    """Return the page as Markdown: how many inputs of each kind, and what is promised for them."""
    kinds = list(sections())
    lines = [f"{HEAD}| inputs | count | promise |", "|---|---:|---|"]
    lines += [f"| {_cell(kind.title)} | {len(kind.rows)} | {_cell(kind.promised)} |" for kind in kinds]
    lines.append(f"| **all** | **{sum(len(kind.rows) for kind in kinds)}** | |")
    return "\n".join(lines) + "\n"


def table() -> str:
    """Return every input with its answer as Markdown."""
    parts = []
    for section in sections():
        lines = [f"## {section.title}", "", f"{section.promised}.", "", "| input | answer |", "|---|---|"]
        lines += [f"| {_cell(tried)} | {_cell(f'… {answer.strip()} …')} |" for tried, answer in section.rows]
        parts.append("\n".join(lines))
    return TABLE_HEAD + "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
