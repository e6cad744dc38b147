"""The one exception a user sees: its message is printed as it stands, without a traceback."""

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
    """Say in one sentence what is wrong with the input and how to mend it (exit code 1)."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str, keep: str = "") -> str:
    r"""Return a text that a terminal shows and does not obey: "\x1b" for the character of that number.

    File and class names may hold anything: commands to the terminal, line breaks, marks that turn the order of
    reading round, bytes that are no text.

    Args:
        text: What is to be shown.
        keep: Characters that stay as they are.
    """
    return "".join(
        c if c in keep or _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # no-break space


# Letters and digits of any script, and what no shell reads anything into; `=` alone at the start is zsh's.
_PLAIN_WORD = re.compile(r"(?!=)[\w@%+=:,./-]+")


def shell_command(words: Iterable[str]) -> str:
    """Return a command line to print, in which only the words that a shell would change are quoted."""
    return " ".join(word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word) for word in words)


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Return ' Did you mean a, b?' for the choices that look like `name`, or an empty string."""
    matches = difflib.get_close_matches(str(name), [str(c) for c in choices], n=count, cutoff=0.5)
    return f" Did you mean {', '.join(matches)}?" if matches else ""


def missing_extra(package: str, extra: str) -> str:
    """Name a package that is not installed, and the command that installs the extra it belongs to.

    A checkout installs itself: a package index may not have this project, or may have another one of its name.

    Args:
        package: What is missing, as the index spells it.
        extra: Name in [project.optional-dependencies] of pyproject.toml.
    """
    root = Path(__file__).resolve().parents[1]
    if not ((root / "pyproject.toml").is_file() and (root / "conf").is_dir()):
        return f"{package}: pip install 'alexnet-exp[{extra}]'"
    place = "." if os.path.samefile(root, ".") else root
    return f"{package}: pip install -e {shlex.quote(f'{place}[{extra}]')}"


# What the machine refuses, by number -> what helps. Other numbers, such as that of a file which is not there, may well
# be a mistake of the code.
_MACHINE = {
    errno.EACCES: "fix its permissions (chmod), or use another folder",
    errno.EPERM: "fix its permissions, or use another folder",
    errno.EROFS: "the file system is read-only: use another folder",
    errno.ENOSPC: "free some space, or use another disk",
    errno.EDQUOT: "free some of your quota, or use another disk",
    errno.EFBIG: "use a file system that takes files of this size",
    errno.EIO: "the disk or network file system has a fault: copy the file again, or use another disk",
    errno.ESTALE: "the network file system has lost the file: mount it again",
    errno.ETIMEDOUT: "the network file system does not answer: mount it again",
    errno.EISDIR: "it is a folder, and a file is expected",
    errno.ENOTDIR: "a part of this path is a file, and a folder is expected",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "it is a link that leads round in a circle: replace it",
    errno.EMFILE: "allow more open files: ulimit -n 65536",
    errno.ENFILE: "too many files are open on this machine: close some programs",
}


def of_the_machine(error: BaseException) -> str | None:
    """Return one line about a file or disk that the machine refuses, or None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _MACHINE:
        return None
    file = error.filename if error.filename2 is None else error.filename2
    where = "A file" if file is None else os.fsdecode(file) if isinstance(file, str | bytes) else str(file)
    said = os.strerror(error.errno)
    return printable(f"{where} cannot be read or written ({said}): {_MACHINE[error.errno]}.")


def unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Return the error about a file of the user's that cannot be read, with what helps."""
    fix = _MACHINE.get(error.errno or 0, "replace or remove it")
    return UserError(f"{os.fspath(path)} cannot be read: {error.strerror or in_one_line(error)}; {fix}.")


def library_of(error: BaseException) -> str:
    """Return the name of the package whose own class an error is: 'wandb', 'builtins'."""
    return type(error).__module__.partition(".")[0]


def in_one_line(error: BaseException) -> str:
    """Return what an error says: its first line, or of pydantic's every problem with the setting that has it."""
    if callable(problems := getattr(error, "errors", None)):  # pydantic's first line is but a count
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# Of torch on its devices, of the allocators of CUDA's libraries, and of the operating system.
_NO_MEMORY = (
    "out of memory", "allocate memory", "not enough memory", "alloc_failed", "bad_alloc", "invalid buffer size",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Tell memory that has run out, on a GPU or in main memory, from other errors; needs no torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _NO_MEMORY)
