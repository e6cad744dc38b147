"""Decide whether W&B runs online or offline, without prompting and within two seconds."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass

from alexnet_exp.errors import UserError, library_of, nearest
from alexnet_exp.tracking.redact import remember
from alexnet_exp.tracking.wandb.internals import netrc_key

MODES = ("auto", "online", "offline", "disabled")
PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class ModeChoice:
    """The chosen mode (`online`, `offline` or `disabled`) and the reason for it."""

    mode: str
    reason: str


def choose_mode(requested: str) -> ModeChoice:
    """Resolve the requested mode on this machine.

    Args:
        requested: `auto`, `online`, `offline` or `disabled`. auto follows WANDB_MODE and `wandb offline` if
            set, else it is online if an API key is configured and the server responds.

    Raises:
        UserError: If the mode is invalid, wandb is missing, or online is requested without an API key.
    """
    if requested not in MODES:
        raise UserError(
            f"invalid logger.wandb.mode={requested}: expected one of {', '.join(MODES)}.{nearest(requested, MODES)}"
        )
    wanted, reason = requested, f"logger.wandb.mode={requested}"
    if requested == "auto" and "WANDB_MODE" in os.environ:
        wanted, reason = _mode_of_environment(), f"WANDB_MODE={os.environ['WANDB_MODE']}"
    if wanted == "disabled":
        return ModeChoice(wanted, reason)  # wandb may be missing
    require_wandb()
    if wanted == "auto" and _settings_mode() in ("offline", "disabled"):
        return ModeChoice(_settings_mode(), "`wandb online` undoes the setting")
    return ModeChoice(wanted, reason) if wanted == "offline" else _online_if_possible(wanted)


def require_wandb() -> None:
    """Raise UserError if wandb cannot be imported, and disable its crash reports."""
    # The reports contain stack traces, and delay the exit by 20 s if the server hangs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError("wandb is not installed: `pip install wandb`, or train with logger=csv.") from error


def is_of_network(error: Exception) -> bool:
    """Return whether an error comes from W&B's server, its local service or its settings, rather than our code.

    Timeouts, lost connections and errors of requests derive from OSError; the service, its mailbox and the server's
    responses have classes of their own; pydantic checks settings.
    """
    libraries = ("wandb", "pydantic", "pydantic_core")
    return isinstance(error, OSError | EOFError) or library_of(error) in libraries


def forget_service() -> None:
    """Detach from a dead service (batch systems signal all processes of a job), or wandb would wait for it at exit."""
    import wandb

    with contextlib.suppress(Exception):  # it is dead already
        wandb.teardown()


def base_url() -> str:
    """Return the URL of the W&B server: WANDB_BASE_URL, the settings file, or the public one."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url


def has_api_key(url: str) -> bool:
    """Return whether wandb has a key for the server, without prompting or network access."""
    import wandb
    from wandb.errors import AuthenticationError

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        key = wandb.setup().settings.api_key or netrc_key(url)
        remember(key)
        return bool(key)
    except AuthenticationError:
        return True  # malformed: wandb.init will report it


def server_answers(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Return whether a web server responds at `url`, with any page, within `seconds`."""
    answers: list[bool] = []
    # In a thread, because name resolution has no timeout.
    probe = threading.Thread(target=lambda: answers.append(_head(url, seconds)), daemon=True)
    probe.start()
    probe.join(seconds)
    return answers == [True]


def _head(url: str, seconds: float) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500  # a proxy returns 502 to 504 if the server is down
    except urllib.error.URLError as error:
        # A bad certificate still means that a server is there; wandb decides whether to trust it.
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _online_if_possible(wanted: str) -> ModeChoice:
    url = base_url()
    if not has_api_key(url):
        if wanted == "online":
            raise UserError(
                "W&B has no API key: `wandb login` sets one, or train with logger.wandb.mode=offline."
            )
        return ModeChoice("offline", "no API key is configured (`wandb login` sets one)")
    if not server_answers(url):
        return ModeChoice("offline", f"{url} did not respond within {PROBE_SECONDS:.0f} s")
    return ModeChoice("online", f"{url} responds")


def _mode_of_environment() -> str:
    """Return WANDB_MODE, with wandb's legacy names `run` and `dryrun` translated."""
    value = os.environ["WANDB_MODE"]
    mode = {"run": "online", "shared": "online", "dryrun": "offline"}.get(value, value)
    if mode not in MODES[1:]:
        raise UserError(
            f"invalid WANDB_MODE={value} in the environment: expected one of {', '.join(MODES[1:])}."
        )
    return mode


def _settings_mode() -> str:
    import wandb

    return str(wandb.setup().settings.mode)
