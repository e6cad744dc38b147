"""What a run says of itself, and what other libraries may not say in it."""

from __future__ import annotations

import logging
import warnings

import pytest
from PIL import Image

from alexnet_exp.tracking.log import logging_to


def bomb() -> None:
    Image._decompression_bomb_check((20_000, 5_000))


def test_pillow_s_warnings_are_kept_out_of_a_run_and_come_again_after_it() -> None:
    with logging_to(None):
        bomb()
    with pytest.warns(Image.DecompressionBombWarning):
        bomb()


def test_after_a_run_the_log_is_as_before() -> None:
    root, filters = logging.getLogger(), list(warnings.filters)
    handlers = root.handlers[:]
    with pytest.raises(ZeroDivisionError), logging_to(None, on_screen=True):
        raise ZeroDivisionError
    assert (root.handlers, warnings.filters) == (handlers, filters)
