"""Decode every file of a folder once, before training: which of them are no images, and why.

What was found is kept beside the decoded images (cache_file.py) and found again as long as no file changes, so that
neither the next run nor the other processes of this one look a second time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from alexnet_exp.data.cache import fingerprint, places, shown
from alexnet_exp.data.decode import read_stored
from alexnet_exp.errors import UserError, printable
from alexnet_exp.files import replacing

log = logging.getLogger(__name__)
_PART = 256  # files that are looked at together
_NAMED = 5  # bad files that a message names


@dataclass(frozen=True)
class Verifier:
    """How files are looked at.

    Args:
        skip: Leave bad files out, instead of refusing the folder.
        folder: Where results are kept; None: the user's cache folder.
        channels: 1 or 3.
        size: Side of the stored images, in pixels.
        num_workers: Files that are decoded at a time; 0 is one.
    """

    skip: bool
    folder: str | None
    channels: int
    size: int
    num_workers: int

    def bad_images(self, paths: Sequence[str], root: str) -> set[str]:
        """Return the files to leave out.

        Args:
            paths: All files of the data set, in their order.
            root: Its folder.

        Raises:
            UserError: There are some, and `skip` is off; names the first, why, and how many.
        """
        bad = self._known(paths, root)
        if not bad:
            return set()
        reason = next(iter(bad.values()))
        if not self.skip:
            more = f" {len(bad) - 1} more cannot be decoded either;" if len(bad) > 1 else ""
            raise UserError(f"{reason.rstrip('.')};{more} or say data.on_bad_image=skip.")
        names = ", ".join(printable(os.path.relpath(path, root)) for path in list(bad)[:_NAMED])
        log.warning(
            "%d of %d images of %s cannot be decoded and are left out: %s%s",
            len(bad), len(paths), root, names, " ..." if len(bad) > _NAMED else "",
        )  # fmt: skip
        log.info("The first of them: %s", reason)
        return set(bad)

    def _known(self, paths: Sequence[str], root: str) -> dict[str, str]:
        """Return what is wrong with each bad file, found now or by a run before."""
        key = fingerprint(paths, root, self.channels, self.size)
        files = [place / f"verified-{key}.json" for place in places(self.folder, root)]
        for file in files:
            # Not there, or damaged.
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, IndexError):
                kept = json.loads(file.read_text(encoding="utf-8"))
                return {paths[int(number)]: str(reason) for number, reason in kept.items()}
        bad = dict(self._look(paths, root))
        numbers = {path: number for number, path in enumerate(paths)}
        _keep(files, json.dumps({numbers[path]: reason for path, reason in bad.items()}))
        return bad

    def _look(self, paths: Sequence[str], root: str) -> Iterator[tuple[str, str]]:
        """Decode all files as training does; yield those that cannot be, and why."""
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:  # the decoders let go of Python's lock
            parts = (
                list(zip(part, pool.map(self._problem, part), strict=True))
                for part in (paths[start : start + _PART] for start in range(0, len(paths), _PART))
            )
            for part in shown(parts, len(paths), f"Verifying {os.path.basename(os.path.abspath(root))}"):
                yield from ((path, reason) for path, reason in part if reason is not None)

    def _problem(self, path: str) -> str | None:
        try:
            read_stored(path, self.channels, self.size)
        except UserError as error:
            return str(error)
        return None


def _keep(files: Sequence[Path], text: str) -> None:
    """Write to the first place that takes it; where none does, the next run looks again."""
    for file in files:
        with contextlib.suppress(OSError):
            with replacing(file) as part:
                part.write_text(text, encoding="utf-8")
            return
