"""Redact secrets, recognised by value, in text that is shown or sent, and keep URL passwords out of files.

Settings are never redacted by the name of their key: a checkpoint must rebuild the same network. The only secret that
users type in settings is the password in a URL. Files have *** in its place, and a run that reads them takes the
password from the environment. A tracker's API key is refused: the tracker reads it from the environment itself.
"""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from alexnet_exp.errors import UserError
from alexnet_exp.settings import flat

REDACTED = "[redacted]"
PASSWORD = "***"  # of a URL, in a file
SHORTEST = 8  # shorter values would also match ordinary words

T = TypeVar("T")

# In the names of environment variables: WANDB_API_KEY matches, TOKENIZERS_PARALLELISM does not.
_SECRET_WORDS = re.compile(
    r"(?i)(?:^|_)(?:(?:api|access|private|secret|ssh)?keys?|[a-z]*(?:token|secret|password|passwd|passphrase|credential)s?)(?=_|$)"
    r"|(?i:_(?:auth|pat|pwd|pass)$)"
)
# The location of a secret, not the secret.
_NOT_ITSELF = re.compile(r"(?i)_(?:dir|path|file|home|url|host|name|user)$")
_SHAPES = re.compile(  # keys with an unmistakable format
    r"\blocal-[0-9a-f]{40,}|\bwandb_v\d+_[\w-]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[a-z]_\w{36,}"
    r"|\bgithub_pat_\w{22,}|\bhf_[A-Za-z]{30,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
# SCHEME://USER:PASSWORD@HOST, where the password can contain @ and /, but HOST:PORT must not match. Hydra's sweeper
# escapes the colon as \: in job overrides.
_IN_URL = re.compile(
    r"([a-zA-Z][\w+.-]*\\?://[^/\s:@'\"]*):(?!\d{1,5}(?:[/?#,;'\")\]}\s]|$))((?:[^\s/'\"]|['\"](?![,;)\]}\s]|$))+(?=@)|[^\s@'\"]+(?=@))"
    r"|(?<=[?&])((?:password|passwd|pwd|sslpassword)\\?=)([^&\s#'\"]+)"
)
# In the names of a tracker's arguments: api_key and authToken match, experiment_key and max_tokens do not.
_SECRET_ARGUMENT = re.compile(
    r"(?i)(?:(?:api|access|private|secret|auth)_?key|token|secret|password|passwd|passphrase|pwd)$"
)
_VARIABLES = {
    "postgres": "PGPASSWORD",
    "mysql": "MYSQL_PWD",
    "mariadb": "MYSQL_PWD",
    "redis": "REDISCLI_AUTH",
}
OF_ANY_URL = "ALEXNET_URL_PASSWORD"
_remembered: set[str] = set()  # URL passwords in use, and the API key of W&B's settings


def redact(value: T) -> T:
    """Return a copy of `value` to show or send, with secrets replaced by "[redacted]".

    Secrets are the W&B key, values of environment variables with telling names (`*_TOKEN`, `*_PASSWORD`, ...), service
    keys in an unmistakable format, and passwords in URLs, which become "***". Values under 8 characters and existing
    paths are not secrets. Dict keys never make their values secret.

    Args:
        value: Text, or dicts, lists and tuples that contain text; keys and other values are unchanged.
    """
    # Longest first: one secret can be a prefix of another.
    known = sorted(_known(), key=len, reverse=True)

    def hide(text: str) -> str:
        text = without_passwords(text)
        for secret in known:
            text = text.replace(secret, REDACTED)
        return _SHAPES.sub(REDACTED, text)

    return _map_text(value, hide)


def remember(secret: str | None) -> None:
    """Redact this value too from now on: a secret that is neither in the environment nor in .netrc."""
    if secret and len(secret) >= SHORTEST:
        _remembered.add(secret)


def check_tracker_setting(key: str, value: Any) -> None:
    """Reject a secret in a tracker's settings, which a run records as they are, with interpolations resolved.

    Args:
        key: 'logger.comet.api_key'.
        value: None and '' pass: that is how a resumed run drops a recorded one.

    Raises:
        UserError: The key's name says that the value is a secret; the message does not repeat it.
    """
    if key.startswith("logger.") and value not in (None, "") and _SECRET_ARGUMENT.search(key):
        raise UserError(
            f"{key} would be recorded in plain text: leave it out (to resume a run that has it: {key}=null), and set "
            "the tracker's own environment variable instead (COMET_API_KEY, NEPTUNE_API_TOKEN, WANDB_API_KEY, ...)."
        )


def without_passwords(value: T) -> T:
    """Return a copy of `value` for a file, with passwords in URLs replaced by "***"."""
    return _map_text(value, lambda text: _IN_URL.sub(_starred, text) if "://" in text else text)


def with_passwords(value: T, where: str = "") -> T:
    """Return a copy of settings from a file, with URL passwords from the environment.

    They come from ALEXNET_URL_PASSWORD, or else from the variable of the URL's own clients: PGPASSWORD, MYSQL_PWD,
    REDISCLI_AUTH.

    Args:
        value: Plain values.
        where: Dotted key of `value`, for the message.

    Raises:
        UserError: If no variable holds a password that is needed.
    """
    if isinstance(value, dict):
        return {k: with_passwords(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [with_passwords(v, where) for v in value]  # type: ignore[return-value]
    if not isinstance(value, str) or "://" not in value:
        return value
    for password in url_passwords(value):
        remember(password)
    if PASSWORD not in value:
        return value

    def fill(found: re.Match[str]) -> str:
        if PASSWORD not in (found[2], found[4]):  # of the two forms in _IN_URL
            return found[0]
        names = [OF_ANY_URL, *(name for kind, name in _VARIABLES.items() if value.startswith(kind))]
        password = next((os.environ[name] for name in names if os.environ.get(name)), None)
        if password is None:
            raise UserError(
                f"{where or 'The URL'}={value}: passwords are not recorded; set {' or '.join(names)} in the "
                "environment, or pass the full URL again."
            )
        return f"{found[1]}:{password}" if found[1] else f"{found[3]}{password}"

    return _IN_URL.sub(fill, value)  # type: ignore[return-value]


def url_passwords(value: Any) -> set[str]:
    """Return the passwords of all URLs in text or nested settings."""
    found: set[str] = set()

    def collect(text: str) -> str:
        found.update(m[2] or m[4] for m in _IN_URL.finditer(text) if _starred(m) != m[0])
        return text

    _map_text(value, collect)
    return found


def hidden_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys that an earlier version redacted in its own files."""
    return [key for key, value in flat(config).items() if REDACTED in str(value)]


def _starred(found: re.Match[str]) -> str:
    if re.match(r"\$\\?\{", found[2] or found[4]):  # a reference to a variable, not a password
        return found[0]
    return f"{found[1]}:{PASSWORD}" if found[1] else f"{found[3]}{PASSWORD}"


def _map_text(value: T, change: Callable[[str], str]) -> T:
    if isinstance(value, dict):
        return {k: _map_text(v, change) for k, v in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(_map_text(v, change) for v in value)
    return change(value) if isinstance(value, str) else value  # type: ignore[return-value]


def _known() -> set[str]:
    named = {value for name, value in os.environ.items() if _names_a_secret(name)}
    return {secret for secret in named | _of_netrc() | _remembered if _is_secret(secret)}


def _names_a_secret(name: str) -> bool:
    return bool(_SECRET_WORDS.search(name)) and not _NOT_ITSELF.search(name) and name not in ("PWD", "OLDPWD")


def _is_secret(value: str) -> bool:
    try:
        return len(value) >= SHORTEST and not os.path.exists(os.path.expanduser(value))
    except ValueError:  # a null byte
        return True


def _of_netrc() -> set[str]:
    """Return the passwords in .netrc, where `wandb login` stores its key."""
    named = os.environ.get("NETRC")
    files = [named] if named else [os.path.expanduser(f"~/{name}") for name in (".netrc", "_netrc")]
    return {password for file in files for password in _read_netrc(file, _modified(file))}


def _modified(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=8)
def _read_netrc(file: str, modified: int) -> tuple[str, ...]:
    try:
        return tuple(password for _, _, password in netrc.netrc(file).hosts.values() if password)
    except (OSError, ValueError, netrc.NetrcParseError):  # missing or unreadable
        return ()
