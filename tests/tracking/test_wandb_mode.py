"""Online or offline: decided without a prompt and without a long wait."""

from __future__ import annotations

import http.server
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import wandb
from read_wandb import finished
from wandb.errors import AuthenticationError, CommError, UsageError
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from alexnet_exp.errors import UserError
from alexnet_exp.tracking.wandb.logger import WandbTracker
from alexnet_exp.tracking.wandb.mode import ModeChoice, choose_mode, server_answers

pytestmark = pytest.mark.usefixtures("no_account")
Make = Callable[..., WandbTracker]
CLOSED_URL = "http://127.0.0.1:9"  # as in conftest.py: nobody listens there
KEY = "0123456789" * 4


def test_auto_without_a_key_is_offline_and_says_how_to_sync(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tracker: Make
) -> None:
    caplog.set_level(logging.INFO)
    logger = tracker(tmp_path / "a run", mode="auto")
    logger.finish()
    assert logger.mode == "offline"
    assert "no API key" in caplog.text
    assert f"wandb sync '{logger.run_dir_sync}'" in caplog.text


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_an_unreachable_server_means_offline_within_seconds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    tracker: Make,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    caplog.set_level(logging.INFO)
    start = time.monotonic()
    logger = tracker(tmp_path, mode=mode)
    assert time.monotonic() - start < 15
    assert logger.mode == "offline"
    assert f"{CLOSED_URL} did not respond" in caplog.text
    logger.log_metrics({"lr": 0.5}, step=0)
    assert finished(logger).metric_rows() == [{"lr": 0.5, "step": 0}]


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch, status: int, answer: Callable[[bytes], object]
) -> Iterator[http.server.ThreadingHTTPServer]:
    """Act as W&B's server on this machine: every request gets `status`, and `answer` of its body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.dumps(answer(self.rfile.read(int(self.headers["Content-Length"] or 0)))).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
        server.shutdown()


@pytest.fixture
def refusing_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that responds, but rejects every key."""
    refusal = {"errors": [{"message": "user is not logged in"}], "data": None}
    with serving(monkeypatch, 401, lambda asked: refusal):
        yield os.environ["WANDB_BASE_URL"]


def test_auto_falls_back_to_offline_if_the_server_rejects_the_run(
    tmp_path: Path, refusing_server: str, tracker: Make
) -> None:
    assert server_answers(refusing_server)
    logger = tracker(tmp_path, mode="auto", run_id="abcd1234")
    logger.log_metrics({"lr": 0.5}, step=0)
    assert logger.mode == "offline"
    run = finished(logger)
    assert (run.run_id, run.metric_rows()) == ("abcd1234", [{"lr": 0.5, "step": 0}])
    assert len(list(tmp_path.glob("wandb/*run-*-*/*.wandb"))) == 1  # nothing is left of the attempt


def test_online_with_a_rejected_key_is_an_error(tmp_path: Path, refusing_server: str, tracker: Make) -> None:
    with pytest.raises(UserError, match="wandb login"):
        tracker(tmp_path, mode="online")


NETWORK: list[Exception] = [  # what wandb is known or documented to raise
    CommError("Error uploading run: returned error 502"),
    AuthenticationError("the server is being mended"),
    UsageError("No API key configured."),
    wandb.Error("an answer of no known kind\nand more"),
    TimeoutError(),
    ConnectionRefusedError(111, "Connection refused"),
    EOFError(),
    HandleAbandonedError(),
    MailboxClosedError(),
    WandbServiceConnectionError("Failed to connect to the service"),
    WandbApiFailedError("the service is away"),
    requests.exceptions.ReadTimeout("timed out"),
]


class Started:
    """A W&B run whose service dies at the first row."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def log(self, row: object) -> None:
        raise self.error


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, Exception | None], None]:
    """Make the server respond, but starting a run, online or offline, fail."""

    def fail(there: Exception, offline: Exception | None = None) -> None:
        def start(tracker: WandbTracker, mode: str, about: object) -> Started:
            error = there if mode == "online" else offline
            if error is not None:
                raise error
            return Started(there)

        monkeypatch.setattr(WandbTracker, "_init", start)

    for name, stand_in in {
        "choose_mode": lambda mode: ModeChoice("online", "it answers"),
        "describe": lambda *_: None,
        "forget_service": lambda: None,
    }.items():
        monkeypatch.setattr(f"alexnet_exp.tracking.wandb.logger.{name}", stand_in)
    return fail


@pytest.mark.parametrize("error", NETWORK, ids=lambda error: type(error).__name__)
def test_any_network_error_falls_back_to_offline(
    error: Exception,
    online: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    tracker: Make,
) -> None:
    caplog.set_level(logging.INFO)
    online(error)
    logger = tracker(tmp_path, mode="auto")
    assert logger.mode == "offline"
    (line,) = caplog.messages
    assert line.startswith(f"W&B offline ({CLOSED_URL} failed: ") and "To upload it later: wandb sync" in line
    assert "\n" not in line and "failed: )" not in line
    logger.log_metrics({"lr": 0.5}, step=0)
    logger.log_metrics({"lr": 0.5}, step=1)
    assert ["stopped recording" in message for message in caplog.messages] == [False, True]


def test_our_own_bugs_are_not_mistaken_for_network_errors(
    online: Callable[..., None], tmp_path: Path, tracker: Make
) -> None:
    online(KeyError("lr"))
    with pytest.raises(KeyError):
        tracker(tmp_path, mode="auto")


def test_a_failed_offline_start_is_a_one_line_error(
    online: Callable[..., None], tmp_path: Path, tracker: Make
) -> None:
    online(CommError("away"), UsageError("Invalid project name 'a/b'"))
    with pytest.raises(UserError, match=r"cannot start a run \(Invalid project name 'a/b'\)"):
        tracker(tmp_path, mode="auto")


@pytest.fixture
def disconnecting_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server that accepts a run; shutting it down simulates a lost connection."""
    project = {"id": "1", "name": "alexnet_exp", "entity": {"id": "2", "name": "me"}}
    bucket = {"id": "3", "name": "abcd1234", "displayName": "run", "config": "{}", "project": project}
    taken_on = {"upsertBucket": {"bucket": bucket, "inserted": True}}
    monkeypatch.setattr("alexnet_exp.tracking.wandb.logger.FINISH_SECONDS", 2.0)
    with serving(
        monkeypatch, 200, lambda asked: {"data": taken_on if b"upsertBucket" in asked else {}}
    ) as server:
        yield server


@pytest.mark.slow
def test_a_lost_connection_costs_nothing_but_the_upload(
    tmp_path: Path,
    disconnecting_server: http.server.ThreadingHTTPServer,
    tracker: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = tracker(tmp_path, mode="online", run_id="abcd1234")
    assert logger.mode == "online"
    disconnecting_server.shutdown()
    disconnecting_server.server_close()
    start = time.monotonic()
    for step in range(3):
        logger.log_metrics({"lr": 0.5}, step=step)
    sync = logger.run_dir_sync
    logger.finish()
    assert time.monotonic() - start < 15
    assert f"To upload it later: wandb sync {sync}" in caplog.text
    assert sync is not None and list(sync.glob("run-abcd1234.wandb"))  # what `wandb sync` needs


def test_online_without_a_key_is_an_error_that_names_both_ways_out(tmp_path: Path, tracker: Make) -> None:
    with pytest.raises(UserError, match=r"wandb login.*mode=offline"):
        tracker(tmp_path / "run", mode="online")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")]
)
def test_auto_follows_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    assert choose_mode("auto").mode == mode
    assert f"WANDB_MODE={value}" in choose_mode("auto").reason


def test_a_typed_mode_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode("offline").mode == "offline"


def test_auto_follows_the_wandb_offline_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = offline\n")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("alexnet_exp.tracking.wandb.mode.server_answers", lambda url: True)
    assert choose_mode("auto").mode == "offline"
    assert choose_mode("online").mode == "online"


def test_a_key_in_netrc_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("alexnet_exp.tracking.wandb.mode.server_answers", lambda url: True)
    assert choose_mode("auto").mode == "offline"
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
    assert choose_mode("auto").mode == "online"


def test_a_server_that_never_answers_costs_no_more_than_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not server_answers(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.3)
        assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("source", ["argument", "environment"])
def test_an_unknown_mode_is_an_error(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    if source == "environment":
        monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r"ofline.*: expected one of"):
        choose_mode("ofline" if source == "argument" else "auto")


def test_a_missing_package_is_an_error_that_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        choose_mode("auto")
    assert choose_mode("disabled").mode == "disabled"  # needs no package
