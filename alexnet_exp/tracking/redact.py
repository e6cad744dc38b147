"""Take secrets out of what is about to be written to a run directory or sent to a server."""

from __future__ import annotations

import os
import re
import shlex
from typing import TypeVar

REDACTED = "[redacted]"

T = TypeVar("T")

# `tokens` and `accessToken` name secrets, `tokenizer` does not: no small letter may follow.
_SECRET_NAME = re.compile(
    r"(?i:api[_-]?key|access[_-]?key|private[_-]?key|token|secret|password|passwd|authorization|credential)s?(?![a-z])"
)
# These are secrets as the last word of a key, whatever stands under it.
_SECRET_WORDS = {
    "key", "token", "secret", "password", "passwd", "pwd", "passphrase", "credential", "authorization", "auth",
}  # fmt: skip
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SETTING = re.compile(r"([+~]{0,2}[\w./@-]+)=(.*)", re.DOTALL)
_INNER_KEY = re.compile(r"([\w.-]+)[\"']?\s*:(?=\s*([^,{}\[\]]*))")  # a value may hold another
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e-?\d+)?")
_LONG = 1e5  # a number from here on may be a key or a token
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
    # api_key="..." in code
    (re.compile(rf"({_SECRET_NAME.pattern}[\"']?\s*[:=]\s*)([\"'])[^\"'\n]+\2"), rf"\1\2{REDACTED}\2"),
)
_ASSIGNED = re.compile(rf"({_SECRET_NAME.pattern})=([^\s\"',;()\[\]{{}}]{{6,}})")


def redact(value: T) -> T:
    """Return a copy of `value` in which everything that looks like a secret reads "[redacted]".

    Secrets are: what stands under a key whose last word is such as `key`, `token` or `password`, in a dict, in a list
    of settings (`logger.api_key=...`) and in a `command`; keys of W&B, AWS and GitHub, passwords in URLs, private keys
    and the values of environment variables with such names. A number is one under a `password`, and under a `key` or
    a `token` from six digits on. All else stays as it is: structure, other numbers, class names and git commits (under
    a key that says so).

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
        return type(value)(_redact_entry(v, known, in_hash) for v in value)
    if isinstance(value, str):
        return _redact_text(value, known, in_hash)  # type: ignore[return-value]
    return value


def _redact_item(key: object, value: object, known: list[str], in_hash: bool) -> object:
    if _hides(str(key), value):
        return REDACTED
    if key == "command" and isinstance(value, str):
        value = _redact_command(value)
    return _redact(value, known, in_hash or bool(_HASH_NAME.search(str(key))))


def _hides(key: str, value: object) -> bool:
    """Return whether a value is a secret, by the key that it stands under."""
    name = key.rpartition(".")[2]
    last = (_WORD.findall(name) or [""])[-1].lower()
    secret = last.removesuffix("s") in _SECRET_WORDS or bool(_SECRET_NAME.fullmatch(name))
    if isinstance(value, bool) or (isinstance(value, int | float) and last.endswith(("keys", "tokens"))):
        return False  # a switch, or the number of something
    if isinstance(value, int | float):
        return secret and (not last.endswith(("key", "token")) or abs(value) >= _LONG)
    return (secret or (isinstance(value, str) and bool(_SECRET_NAME.search(name)))) and bool(value)


def _redact_entry(value: object, known: list[str], in_hash: bool) -> object:
    return _redact(_redact_setting(value) if isinstance(value, str) else value, known, in_hash)


def _redact_setting(text: str) -> str:
    """Hide the whole value of a setting such as `logger.api_key=...`, or a map in which a key hides something."""
    found = _SETTING.fullmatch(text)
    if found is None:
        return text
    key, value = found.groups()
    inner = _INNER_KEY.findall(value) if "{" in value else []
    if any(_hides(name, _plain(own.strip() or "{")) for name, own in inner) or _hides(key, _plain(value)):
        return f"{key}={REDACTED}"
    return text


def _plain(text: str) -> object:
    """Return what a typed value is, as far as it matters here."""
    if text.lower() in ("null", "true", "false"):
        return None
    return float(text) if _NUMBER.fullmatch(text) else text


def _redact_command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # no command line
        return command
    hidden = [_redact_setting(word) for word in words]
    return command if hidden == words else shlex.join(hidden)


def _redact_text(text: str, known: list[str], in_hash: bool) -> str:
    for secret in known:
        text = text.replace(secret, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    text = _ASSIGNED.sub(_hide_assigned, text)
    return text if in_hash else _WANDB_KEY.sub(REDACTED, text)


def _hide_assigned(found: re.Match[str]) -> str:
    """Hide the value of `logger.api_key=...` inside of a text."""
    name, value = found.groups()
    return f"{name}={REDACTED}" if _hides(name, _plain(value)) else found[0]
