"""Which files `images=` means."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator

from alexnet_exp.data.decode import readable_extensions
from alexnet_exp.data.left_out import JUNK_FOLDERS, LeftOut
from alexnet_exp.errors import UserError, printable


def find_images(wanted: str | list[str]) -> list[str]:
    """List the files that the user means, each once.

    Args:
        wanted: A file, a folder (every image below it), a pattern, '-' (a path on each line of standard input), or a
            list of these. Of folders and patterns only files with the ending of an image count; a file that is named
            counts whatever its ending, and also if it does not exist, as long as another does.

    Raises:
        UserError: If there is no such file, or a folder that is named may not be read.
    """
    named = [wanted] if isinstance(wanted, str) else list(wanted)
    asked = [path for one in named for path in (_lines() if one == "-" else [str(one)])]
    left_out = LeftOut(os.curdir, readable_extensions())
    found = list(
        dict.fromkeys(path for one in asked for path in _expanded(os.path.expanduser(one), left_out))
    )
    if not any(os.path.exists(path) for path in found):
        for one in map(os.path.expanduser, asked):
            # The names in a folder are asked for by a pattern alone.
            _check_open(_folder_of(one), os.R_OK | os.X_OK if glob.has_magic(one) else os.X_OK)
        said = ", ".join("standard input" if one == "-" else str(one) for one in named[:3])
        raise UserError(
            f"There is no image in {said or '[]'}: give a file, a folder, a pattern or a list of them "
            f"({', '.join(readable_extensions())})."
        )
    if text := left_out.text():
        print(f"warning: left out: {text}", file=sys.stderr)
    return found


def _lines() -> list[str]:
    # The bytes of a name need not be text, and a name may hold what Unicode counts as the end of a line.
    text = os.fsdecode(sys.stdin.buffer.read()) if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _expanded(path: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images that one path, folder or pattern means; what else a folder or pattern has is counted."""
    if os.path.isdir(path):
        _check_open(path)
        yield from _below(path, left_out)
    elif os.path.lexists(path) or not glob.has_magic(path):
        yield path
    else:
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isfile(match) and _is_image(match, left_out):
                yield match


def _is_image(path: str, left_out: LeftOut) -> bool:
    if os.path.splitext(path)[1][1:].lower() in left_out.read:
        return True
    left_out.file(path)
    return False


def _below(folder: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images below a folder, hidden ones left out, in an order that is the same on every machine."""
    for root, folders, files in os.walk(folder):
        seen = sorted(name for name in folders if not name.startswith(".") and name not in JUNK_FOLDERS)
        folders[:] = [name for name in seen if _is_open(os.path.join(root, name))]
        for closed in sorted(os.path.join(root, name) for name in set(seen) - set(folders)):
            print(f"warning: {printable(closed)} may not be read: its images are left out.", file=sys.stderr)
        for name in sorted(files):
            if not name.startswith(".") and _is_image(os.path.join(root, name), left_out):
                yield os.path.join(root, name)


def _folder_of(path: str) -> str:
    """Return the innermost folder on the way to a file or pattern, of those that can be seen."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path or "."


def _check_open(folder: str, how: int = os.R_OK | os.X_OK) -> None:
    if not _is_open(folder, how):
        raise UserError(f"{folder} may not be read: allow it (chmod u+rx), or name another folder.")


def _is_open(folder: str, how: int = os.R_OK | os.X_OK) -> bool:
    return os.access(folder, how)  # names, and what they stand for
