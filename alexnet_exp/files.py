r"""Files that are whole or not there, and locks that end with the process that holds them.

A file is written beside its place under a name of its own and renamed, so that a reader, a crash or a full disk never
leaves half of one. Locks are fcntl's and not filelock's, for three reasons: whoever looks whether a run is alive must
never refuse a run that begins in that moment, which takes a shared lock; a file system without locks must cost a
warning, not a lock file that outlives its process; and the file goes away with a run that has ended.
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
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # of a file system that has none


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place on success and vanishes on failure.

    Args:
        path: The file; its folder is made.
        sync: Bring it to the disk first: it is whole even after a power cut, or keeps its previous content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(path: Path) -> list[Path]:
    """Return the temporary files of killed writers; of living ones too, so ask where there can be no other."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file that takes its place when all is written; bytes of a name that are no text are escaped."""
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def write_atomically(path: Path, content: str | bytes) -> None:
    r"""Write a file that is there whole or not at all.

    Bytes of a file name that are not valid UTF-8 become escapes such as \udce9, which JSON reads back as they were.

    Raises:
        UserError: If it cannot be written; its previous content is untouched.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        os.stat(
            path.parent
        )  # a run's directory that was removed is not made again, nor one that was mistyped
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room, or mend its folder."
        ) from error


@contextlib.contextmanager
def locked(path: Path, wait: bool = False, remove: bool = False) -> Iterator[bool]:
    """Hold a lock file for this process alone; the system lets go when the process dies, even by SIGKILL.

    Where the file system has no locks, a warning says so, and a second process is not noticed.

    Args:
        path: The lock file, in a folder that exists.
        wait: Until another process lets go.
        remove: Take the file away in the end. Not with `wait`: who waits would then hold a file that is gone.

    Yields:
        Whether this process has it.

    Raises:
        OSError: If it cannot be opened or locked.
    """
    with open(path, "a+") as file:
        mine = _lock(file, path, wait) and _is_there(file, path)
        try:
            yield mine
        finally:
            if mine and remove:
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
            "%s: its file system has no locks (%s); a second run in this directory would not be refused.",
            path.parent, error.strerror,
        )  # fmt: skip
        return True


def _lock_at_once(file: IO[str]) -> bool:
    """Lock an open file; return False where another writer holds it.

    `is_locked` shares the lock for a moment, which a writer waits out: where it can be shared, no writer has it.
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
        time.sleep(random.uniform(0.0, 0.01))  # two that try at once would meet again


def _is_there(file: IO[str], path: Path) -> bool:
    """Return whether the open file is still the one of that name: another process may have ended and removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def is_locked(path: Path) -> bool:
    """Return whether a live process holds a lock file."""
    if fcntl is None:
        return path.exists()
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
