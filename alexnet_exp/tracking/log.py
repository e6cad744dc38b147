"""Messages: plain lines on the terminal, dated ones in train.log."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from alexnet_exp.errors import printable
from alexnet_exp.tracking.redact import redact

log = logging.getLogger("alexnet_exp")
_LIGHTNING = ("lightning", "lightning.pytorch", "lightning.fabric")


def quiet_lightning() -> None:
    """Take Lightning's own printing away once it is imported: each line would stand on the terminal and in the log."""
    for name in _LIGHTNING:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Advice about metrics that differ between ranks; ours agree before they are logged.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")


class _Clean(logging.Formatter):
    """Takes out secrets, and what a terminal would obey: messages quote file names and errors of other libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)), keep="\n\t")


class _File(logging.FileHandler):
    """A log that a full disk does not take must not hide, behind errors of its own, what the run says of that."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(path: Path | None, on_screen: bool | None = None) -> Iterator[None]:
    """Send this package's messages to the terminal and to a file, everyone else's to the file alone.

    Args:
        path: The log file; None on the other ranks of a run, which say nothing.
        on_screen: Whether this package's messages are shown; None: if there is a file.
    """
    handlers: list[logging.Handler] = []
    screen: logging.Handler = logging.NullHandler()
    if path is not None if on_screen is None else on_screen:
        screen = logging.StreamHandler()
        screen.setFormatter(_Clean("%(message)s"))
    if path is not None:
        file = _File(path, encoding="utf-8")
        file.setFormatter(_Clean("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
    root, level = logging.getLogger(), log.level
    before = root.handlers[:]
    root.handlers[:] = handlers or [logging.NullHandler()]
    root.setLevel(logging.INFO)
    log.setLevel(logging.INFO)
    log.addHandler(screen)
    with warnings.catch_warnings():
        # Pillow warns of large and of damaged images; our sentence names the file.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            log.removeHandler(screen)
            log.setLevel(level)
            root.handlers[:] = before
            for handler in handlers:
                handler.close()
