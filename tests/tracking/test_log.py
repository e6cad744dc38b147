"""The log of a run, and warnings of other libraries that it suppresses."""

from __future__ import annotations

import logging
import warnings

import pytest
from PIL import Image

from alexnet_exp.tracking.log import logging_to


def bomb() -> None:
    Image._decompression_bomb_check((20_000, 5_000))


def test_pillow_warnings_are_suppressed_only_during_a_run() -> None:
    with logging_to(None):
        bomb()
    with pytest.warns(Image.DecompressionBombWarning):
        bomb()


def test_logging_is_restored_after_a_run() -> None:
    root, filters = logging.getLogger(), list(warnings.filters)
    handlers = root.handlers[:]
    with pytest.raises(ZeroDivisionError), logging_to(None, on_screen=True):
        raise ZeroDivisionError
    assert (root.handlers, warnings.filters) == (handlers, filters)
