"""Take secrets out of what is about to be written to a run directory or sent to a server."""

from __future__ import annotations

import os
import re
from typing import TypeVar

REDACTED = "[redacted]"

T = TypeVar("T")

# `tokens` and `accessToken` name secrets, `tokenizer` does not: no small letter may follow.
_SECRET_NAME = re.compile(
    r"(?i:api[_-]?key|access[_-]?key|private[_-]?key|token|secret|password|passwd|authorization|credential)s?(?![a-z])"
)
_HASH_NAME = re.compile(r"(?i:commit|sha|revision|checksum|digest|hash)")
# A git commit looks the same, and so do folders named for one.
_WANDB_KEY = re.compile(r"(?<![0-9A-Za-z/])[0-9a-f]{40}(?![0-9A-Za-z/])")
_PATTERNS = (
    (
        re.compile(r"([a-zA-Z][\w+.-]*://)[^/\s:@]*:[^/\s@]+@"),
        rf"\1{REDACTED}@",
    ),  # https://user:password@host
    (re.compile(r"\blocal-\w{40,}|\bwandb_v\d+_[\w-]{20,}"), REDACTED),
    (
        re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[a-z]_\w{36,}|\bgithub_pat_\w{22,}|\bhf_\w{30,}"),
        REDACTED,
    ),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
        REDACTED,
    ),
    # api_key="..." in code, logger.api_key=... on a command line
    (re.compile(rf"({_SECRET_NAME.pattern}[\"']?\s*[:=]\s*)([\"'])[^\"'\n]+\2"), rf"\1\2{REDACTED}\2"),
    (re.compile(rf"({_SECRET_NAME.pattern}=)[^\s\"',;()\[\]{{}}]{{6,}}"), rf"\1{REDACTED}"),
)


def redact(value: T) -> T:
    """Return a copy of `value` in which everything that looks like a secret reads "[redacted]".

    Secrets are: text under a key such as `api_key`, `token` or `password`, keys of W&B, AWS and GitHub,
    passwords in URLs, private keys and the values of environment variables with such names. Structure,
    numbers, class names and git commits (under a key that says so) stay as they are.

    Args:
        value: text, a number, or dicts, lists and tuples of them.
    """
    known = {text for name, text in os.environ.items() if len(text) >= 8 and _SECRET_NAME.search(name)}
    # Longest first: one secret may be the beginning of another.
    return _redact(value, sorted(known, key=len, reverse=True), in_hash=False)


def _redact(value: T, known: list[str], in_hash: bool) -> T:
    if isinstance(value, dict):
        return {k: _redact_item(k, v, known, in_hash) for k, v in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(_redact(v, known, in_hash) for v in value)
    if isinstance(value, str):
        return _redact_text(value, known, in_hash)  # type: ignore[return-value]
    return value


def _redact_item(key: object, value: object, known: list[str], in_hash: bool) -> object:
    if isinstance(value, str) and value and _SECRET_NAME.search(str(key)):
        return REDACTED
    return _redact(value, known, in_hash or bool(_HASH_NAME.search(str(key))))


def _redact_text(text: str, known: list[str], in_hash: bool) -> str:
    for secret in known:
        text = text.replace(secret, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text if in_hash else _WANDB_KEY.sub(REDACTED, text)
