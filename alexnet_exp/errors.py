"""UserError, the one exception whose message users see without a traceback, and helpers for messages."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """An error in the input: says in one sentence what is wrong and how to fix it (exit code 1)."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str, keep: str = "") -> str:
    r"""Escape everything that a terminal would not simply print, such as "\x1b" for the escape character.

    File and class names may contain anything: escape sequences, line breaks, bidirectional marks, invalid UTF-8.

    Args:
        text: Text to print.
        keep: Characters that are not escaped.
    """

    def escaped(c: str) -> str:
        # Zs: no-break spaces, which isprintable excludes.
        harmless = c in keep or c.isprintable() or unicodedata.category(c) == "Zs"
        return c if harmless else c.encode("unicode_escape").decode("ascii")

    return "".join(map(escaped, text))


# Letters and digits of any script, and punctuation without a meaning in shells; zsh expands a leading `=`.
_PLAIN_WORD = re.compile(r"(?!=)[\w@%+=:,./-]+")


def shell_command(words: Iterable[str]) -> str:
    """Return a command line in which only the words that a shell would interpret are quoted."""
    return " ".join(word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word) for word in words)


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Return ' Did you mean a, b?' with the choices closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(str(name), [str(c) for c in choices], n=count, cutoff=0.5)
    return f" Did you mean {', '.join(matches)}?" if matches else ""


def missing_extra(package: str, extra: str) -> str:
    """Return a missing package and the command that installs its extra.

    In a checkout the command installs the checkout, since an index may not have this project, or another of its name.

    Args:
        package: The missing package, as spelled on the package index.
        extra: Name in [project.optional-dependencies] of pyproject.toml.
    """
    root = Path(__file__).resolve().parents[1]
    if not ((root / "pyproject.toml").is_file() and (root / "conf").is_dir()):
        return f"{package}: pip install 'alexnet-exp[{extra}]'"
    place = "." if os.path.samefile(root, ".") else root
    return f"{package}: pip install -e {shlex.quote(f'{place}[{extra}]')}"


# errno -> fix, for errors of the machine. Others, such as a missing file, may be bugs and keep their traceback.
_MACHINE = {
    errno.EACCES: "fix its permissions (chmod), or use another folder",
    errno.EPERM: "fix its permissions, or use another folder",
    errno.EROFS: "the file system is read-only: use another folder",
    errno.ENOSPC: "free some space, or use another disk",
    errno.EDQUOT: "free some of your quota, or use another disk",
    errno.EFBIG: "use a file system that takes files of this size",
    errno.EIO: "the disk or network file system is faulty: copy the file again, or use another disk",
    errno.ESTALE: "the network file system has lost the file: mount it again",
    errno.ETIMEDOUT: "the network file system does not respond: mount it again",
    errno.EISDIR: "expected a file, but this is a folder",
    errno.ENOTDIR: "expected a folder, but a part of this path is a file",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "it is a circular link: replace it",
    errno.EMFILE: "allow more open files: ulimit -n 65536",
    errno.ENFILE: "too many files are open on this machine: close some programs",
}


def of_the_machine(error: BaseException) -> str | None:
    """Return one line about a file or disk error of the machine, or None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _MACHINE:
        return None
    file = error.filename if error.filename2 is None else error.filename2
    where = "A file" if file is None else os.fsdecode(file) if isinstance(file, str | bytes) else str(file)
    reason = os.strerror(error.errno)
    return printable(f"{where} cannot be read or written ({reason}): {_MACHINE[error.errno]}.")


def unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Return the error for a user's file that cannot be read, with a fix."""
    fix = _MACHINE.get(error.errno or 0, "replace or remove it")
    return UserError(f"{os.fspath(path)} cannot be read: {error.strerror or in_one_line(error)}; {fix}.")


def library_of(error: BaseException) -> str:
    """Return the package that defines the class of an error: 'wandb', 'builtins'."""
    return type(error).__module__.partition(".")[0]


def in_one_line(error: BaseException) -> str:
    """Return the first line of an error; for pydantic's, every problem with its setting."""
    if callable(problems := getattr(error, "errors", None)):  # pydantic's first line is only a count
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# From torch on its devices, CUDA libraries, and the operating system.
_NO_MEMORY = (
    "out of memory", "allocate memory", "not enough memory", "alloc_failed", "bad_alloc", "invalid buffer size",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, on a GPU or in main memory; does not import torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _NO_MEMORY)
