"""Decide whether W&B works online or offline: without a question to the user and within two seconds."""

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
    """What W&B is going to do (`online`, `offline` or `disabled`) and the reason in words."""

    mode: str
    reason: str


def choose_mode(requested: str) -> ModeChoice:
    """Return what `requested` comes to on this machine, now.

    Args:
        requested: `auto`, `online`, `offline` or `disabled`. auto follows WANDB_MODE and `wandb offline` if
            they are set, and is else online where an API key is configured and the server answers.

    Raises:
        UserError: if the mode is unknown, wandb is missing, or online is wanted and there is no API key.
    """
    if requested not in MODES:
        raise UserError(
            f"logger.wandb.mode={requested} is not one of {', '.join(MODES)}.{nearest(requested, MODES)}"
        )
    wanted, reason = requested, f"logger.wandb.mode={requested}"
    if requested == "auto" and "WANDB_MODE" in os.environ:
        wanted, reason = _mode_of_environment(), f"WANDB_MODE={os.environ['WANDB_MODE']}"
    if wanted == "disabled":
        return ModeChoice(wanted, reason)
    require_wandb()
    if wanted == "auto" and _settings_mode() in ("offline", "disabled"):
        return ModeChoice(_settings_mode(), "`wandb online` undoes the setting")
    return ModeChoice(wanted, reason) if wanted == "offline" else _online_if_possible(wanted)


def require_wandb() -> None:
    """Raise UserError if wandb cannot be imported; make it keep its crash reports to itself."""
    # They carry stack traces, and hold up the exit for 20 s where the server hangs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError("wandb is not installed: `pip install wandb`, or train with logger=csv.") from error


def is_of_network(error: Exception) -> bool:
    """Say whether wandb raises this where its server or service is away, or a setting wrong: it has many classes.

    Timeouts, lost connections and those of requests are of OSError; the service, its mailbox and the server's answers
    have classes of their own, and settings are checked by pydantic.
    """
    return isinstance(error, OSError | EOFError) or library_of(error) in (
        "wandb",
        "pydantic",
        "pydantic_core",
    )


def forget_service() -> None:
    """Let go of a service that has died (a batch system signals all processes of a job): wandb would try at exit."""
    import wandb

    with contextlib.suppress(Exception):  # it is gone, whatever it says
        wandb.teardown()


def base_url() -> str:
    """Return the address of the W&B server: WANDB_BASE_URL, the settings file, or W&B's own."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url


def has_api_key(url: str) -> bool:
    """Say whether wandb would find a key for the server at `url`; neither asks the user nor the network."""
    import wandb
    from wandb.errors import AuthenticationError

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        key = wandb.setup().settings.api_key or netrc_key(url)
        remember(key)
        return bool(key)
    except AuthenticationError:
        return True  # there is one that cannot be right: wandb.init says so


def server_answers(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Say whether a web server answers at `url` (any page will do) before `seconds` are over."""
    answers: list[bool] = []
    # In a thread, because a name lookup knows no timeout.
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
        return error.code < 500  # a proxy says 502 to 504 for a server that is away
    except urllib.error.URLError as error:
        # Whom to trust is wandb's decision; here it counts that somebody is there.
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
        return ModeChoice("offline", f"{url} did not answer within {PROBE_SECONDS:.0f} s")
    return ModeChoice("online", f"{url} answers")


def _mode_of_environment() -> str:
    """Return WANDB_MODE in the words of today; `run` and `dryrun` are wandb's older ones."""
    value = os.environ["WANDB_MODE"]
    mode = {"run": "online", "shared": "online", "dryrun": "offline"}.get(value, value)
    if mode not in MODES[1:]:
        raise UserError(f"WANDB_MODE={value} in the environment is not one of {', '.join(MODES[1:])}.")
    return mode


def _settings_mode() -> str:
    import wandb

    return str(wandb.setup().settings.mode)
