"""A bad input: a command line, the folder that it runs in, and the expected error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.training.small_runs import NARROW, SMALL

# A run on the embedded digits that would take a second, and one on an image folder.
DIGITS = ("train", *(word for word in SMALL if word != "logger=csv"))
FILES = (
    "train",
    "model=alexnet_cifar",
    *NARROW,
    "data.num_workers=0",
    "augment=none",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "logger=none",
    "callbacks.progress_bar.enabled=false",
    "callbacks.model_summary.enabled=false",
)
PUBLISHED = (*(word for word in FILES if "workers" not in word), "paths.data_dir=data", "data.download=false")


class Bad(NamedTuple):
    """One input that must be refused.

    Args:
        typed: Words of the command line; RUN stands for the directory of a finished run.
        said: Part of the error line.
        tried: Description on the page, if the command line is not enough.
        given: Creates the contents of the current folder.
        environment: Environment variables.
        entered: Standard input.
    """

    typed: str
    said: str
    tried: str = ""
    given: Callable[[Path], object] | None = None
    environment: Mapping[str, str] = {}
    entered: str = ""


class Kind(NamedTuple):
    """Bad inputs that are refused in the same way.

    Args:
        title: Heading of the page.
        promised: What is promised for all of them.
        rows: The inputs.
        base: Words before those of a row.
        verb: First words of the commands on the page; if empty, the first word of `base`.
        leaves: 'nothing'; 'a failed run', whose result.json says so; 'the run as it was'; or 'an empty sweep'.
        notes: How lines that may precede the error begin.
        needs: Packages without which the tests are skipped.
    """

    title: str
    promised: str
    rows: tuple[Bad, ...]
    base: tuple[str, ...] = ()
    verb: str = ""
    leaves: str = "nothing"
    notes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def shown(self, bad: Bad) -> str:
        """Return the description of an input on the page."""
        verb = self.verb or " ".join(self.base[:1])
        return bad.tried or f"`{verb} {bad.typed}`".replace("` ", "`")


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Return a function that writes a file into the current folder."""

    def write(here: Path) -> None:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def folder(name: str) -> Callable[[Path], object]:
    """Return a function that makes an empty folder in the current one."""
    return lambda here: (here / name).mkdir(parents=True)
