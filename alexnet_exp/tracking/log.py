"""Logging: plain lines on the terminal, timestamped ones in train.log."""

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
    """Route Lightning's messages to the log only; call it after Lightning is imported, which adds handlers."""
    for name in _LIGHTNING:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # It advises to sync metrics across ranks; ours are synced before they are logged.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")


class _Clean(logging.Formatter):
    """Redact secrets and escape control characters: messages quote file names and errors of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)), keep="\n\t")


class _File(logging.FileHandler):
    """Ignore a full disk: a traceback per log line would bury the run's own message about it."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(path: Path | None, on_screen: bool | None = None) -> Iterator[None]:
    """Log this package's messages to the terminal and a file, all others to the file only.

    Args:
        path: The log file; None on ranks above 0.
        on_screen: Whether to print this package's messages; None: if there is a file.
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
    before, root_level = root.handlers[:], root.level
    root.handlers[:] = handlers or [logging.NullHandler()]  # without any, logging itself prints warnings
    root.setLevel(logging.INFO)
    log.setLevel(logging.INFO)
    log.addHandler(screen)
    with warnings.catch_warnings():
        # Pillow warns about large and damaged images; our own message names the file.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            log.removeHandler(screen)
            log.setLevel(level)
            root.handlers[:] = before
            root.setLevel(root_level)
            for handler in handlers:
                handler.close()
