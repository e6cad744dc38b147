"""Decode every file of a folder before training, to find those that are not valid images.

The result is kept beside the decoded images (cache.py) for as long as no file changes, so that neither the next run
nor the other ranks of this one decode everything again.
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
_PART = 256  # files per step of the progress bar
_NAMED = 5  # bad files listed in the warning


@dataclass(frozen=True)
class Verifier:
    """Finds the bad files of a folder.

    Args:
        skip: Skip bad files instead of refusing the folder.
        folder: Cache folder; None for the user's.
        channels: 1 or 3.
        size: Side of the stored images in pixels.
        num_workers: Number of decoding threads; 0 means one.
    """

    skip: bool
    folder: str | None
    channels: int
    size: int
    num_workers: int

    def bad_images(self, paths: Sequence[str], root: str) -> set[str]:
        """Return the files to skip.

        Args:
            paths: All files of the data set, in order.
            root: Its folder.

        Raises:
            UserError: There are bad files and `skip` is off; names the first with the reason, and how many more.
        """
        bad = self._known(paths, root)
        if not bad:
            return set()
        reason = next(iter(bad.values()))
        if not self.skip:
            more = f" {len(bad) - 1} more cannot be decoded either;" if len(bad) > 1 else ""
            raise UserError(f"{reason.rstrip('.')};{more} or set data.on_bad_image=skip.")
        names = ", ".join(printable(os.path.relpath(path, root)) for path in list(bad)[:_NAMED])
        log.warning(
            "Skipping %d of %d images of %s that cannot be decoded: %s%s",
            len(bad), len(paths), root, names, " ..." if len(bad) > _NAMED else "",
        )  # fmt: skip
        log.info("The first one: %s", reason)
        return set(bad)

    def _known(self, paths: Sequence[str], root: str) -> dict[str, str]:
        """Return the reason for each bad file, from the cache or by decoding all files."""
        key = fingerprint(paths, root, self.channels, self.size)
        files = [place / f"verified-{key}.json" for place in places(self.folder, root)]
        for file in files:
            # A missing or damaged record means that the files are decoded again.
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, IndexError):
                kept = json.loads(file.read_text(encoding="utf-8"))
                return {paths[int(number)]: str(reason) for number, reason in kept.items()}
        bad = dict(self._decode_all(paths, root))
        numbers = {path: number for number, path in enumerate(paths)}
        _keep(files, json.dumps({numbers[path]: reason for path, reason in bad.items()}))
        return bad

    def _decode_all(self, paths: Sequence[str], root: str) -> Iterator[tuple[str, str]]:
        """Decode all files as training does; yield each bad one with the reason."""
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:  # threads do: decoders release the GIL
            # In parts, because pool.map submits all that it is given at once.
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
    """Write to the first writable file; if there is none, the next run decodes everything again."""
    for file in files:
        with contextlib.suppress(OSError):
            with replacing(file) as part:
                part.write_text(text, encoding="utf-8")
            return
