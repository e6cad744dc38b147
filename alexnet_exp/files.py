r"""Atomic writes, and locks that are released when their process dies.

A file is written to a temporary name in the same folder and renamed, so that neither a crash nor a full disk leaves
half a file for a reader. Locks use fcntl rather than filelock for three reasons: checking whether a run is alive must
not block a run that starts at that moment (which takes a shared lock); a file system without locks should cost a
warning, not a lock file that outlives its process; and the lock file is removed when the run ends.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TextIO

from alexnet_exp.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed on failure.

    Args:
        path: The file; its folder is created.
        sync: Call fsync first, so that the old or the new content survives a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process's number keeps concurrent writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            # The writer may have used any API; fsync works on the file, through any descriptor.
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(path: Path) -> list[Path]:
    """Return temporary files of killed writers; of running ones too, so call it only where none can be running."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file for an atomic write; lone surrogates (file names that are not UTF-8) are escaped."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def write_atomically(path: Path, content: str | bytes) -> None:
    r"""Write a file atomically.

    Lone surrogates (file names that are not UTF-8) become escapes such as \udce9, which JSON reads back unchanged.

    Raises:
        UserError: If it cannot be written; the previous content is untouched.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        # Fail if it is missing: `replacing` would recreate a removed or mistyped run directory.
        os.stat(path.parent)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): free disk space, or fix its folder."
        ) from error


@contextlib.contextmanager
def locked(path: Path, wait: bool = False, remove: bool = False) -> Iterator[bool]:
    """Hold an exclusive lock; the OS releases it when the process dies, even by SIGKILL.

    On a file system without locks this warns, and cannot detect a second process.

    Args:
        path: The lock file, in an existing folder.
        wait: Wait until the lock is free.
        remove: Delete the file at the end. Not with `wait`: a waiting process would then hold a deleted file.

    Yields:
        Whether this process holds the lock.

    Raises:
        OSError: If it cannot be opened or locked.
    """
    with open(path, "a+") as file:
        mine = _lock(file, path, wait) and _is_there(file, path)
        try:
            yield mine
        finally:
            if mine and remove:
                # The lock is still held: a process that has opened the file since then fails `_is_there`.
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _lock(file: IO[str], path: Path, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
            return True
        return _lock_at_once(file)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "%s: the file system has no locks (%s), so a second run in this directory would not be detected.",
            path.parent, error.strerror,
        )  # fmt: skip
        return True


def _lock_at_once(file: IO[str]) -> bool:
    """Lock an open file; return False if another writer holds it.

    An exclusive lock also fails while `is_locked` briefly shares the file. A shared lock tells the two apart: it only
    fails if a writer holds the file.
    """
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(random.uniform(0.0, 0.01))  # random: two processes in step would collide forever


def _is_there(file: IO[str], path: Path) -> bool:
    """Return whether the open file still has that name: its last owner may have deleted it since we opened it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def is_locked(path: Path) -> bool:
    """Return whether a live process holds a lock file."""
    if fcntl is None:
        return path.exists()  # without locks, the best guess: its owner deletes it at the end
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no such file, or a file system without locks
    return False
