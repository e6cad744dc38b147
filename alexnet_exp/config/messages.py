"""Errors of Hydra and OmegaConf, said in one line with the nearest right names."""

from __future__ import annotations

import re

from hydra.errors import HydraException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from alexnet_exp.errors import UserError, nearest


def explain(error: BaseException) -> str | None:
    """Return one line that tells the user what to mend, or None for an error that is not theirs."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: say {error.full_key}=VALUE."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _readable(error)
    return None


def _readable(error: BaseException) -> str:
    text = str(error)
    if error.__cause__ is not None and not isinstance(error.__cause__, OmegaConfBaseException):
        text = f"{text}\n{error.__cause__}"
    elif error.__cause__ is not None:
        text = f"{text} {error.__cause__}"
    if found := re.search(r"Could not find '([\w.-]+)/([^']+)'", text):
        return _unknown_option(found[1], found[2], text)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1])
    if found := re.search(r"Key '([^']+)' not in '\w+'.*?full_key: (\S+)", text, re.DOTALL):
        return _unknown_key(found[2])
    if found := re.search(r"Value '([^']*)'.*? could not be converted to (\w+).*?full_key: (\S+)", text, re.DOTALL):
        return f"{found[3]}={found[1]} is not possible: it must be a value of type {found[2].lower()}."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])


def _unknown_option(group: str, option: str, text: str) -> str:
    from alexnet_exp.config.compose import options

    listed = re.search(r"Available options in '[^']+':\n((?:\t.+\n?)+)", text)
    known = [line.strip() for line in listed[1].splitlines()] if listed else options(group)
    return f"{group}={option}: there is no such file in conf/{group}.{nearest(option, known)} There are {', '.join(known)}."


def _unknown_key(key: str) -> str:
    from alexnet_exp.config.checks import RULES

    if key.startswith("model."):
        from alexnet_exp.models.spec import known_keys

        last = key.rsplit(".", 1)[-1]
        return f"There is no setting {key}.{nearest(last, known_keys())}"
    return f"There is no setting {key}.{nearest(key, RULES)} python train.py --cfg job lists all."
