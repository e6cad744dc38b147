"""Secrets are recognised by their value, never by their key; files keep settings unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.errors import UserError
from alexnet_exp.tracking import redact as module
from alexnet_exp.tracking.redact import redact, url_passwords, with_passwords, without_passwords

VARIABLES = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "MY_SERVICE_TOKEN": "value-of-the-variable",
    "DB_PASSWORD": "correct horse",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "GOOGLE_CREDENTIALS": '{"private_key": "x"}',
    "REDISCLI_AUTH": "redis-password",
}


@pytest.fixture(autouse=True)
def _no_other_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module, "_remembered", set())


@pytest.mark.parametrize("name", VARIABLES)
def test_the_value_of_a_secret_variable_is_redacted_everywhere(name: str, monkeypatch: pytest.MonkeyPatch):
    value = VARIABLES[name]
    monkeypatch.setenv(name, value)
    shown = {"notes": f"before {value} after", "list": [f"notes={value}"], "n": 3, "pair": ("a", value)}
    hidden = {
        "notes": "before [redacted] after",
        "list": ["notes=[redacted]"],
        "n": 3,
        "pair": ("a", "[redacted]"),
    }
    assert redact(shown) == hidden
    assert shown["notes"] == f"before {value} after"  # redact returns a copy
    assert without_passwords(shown) == shown  # files keep the value


HARMLESS: dict[str, str] = {
    "TOKENIZERS_PARALLELISM": "disabled-as-a-word",
    "API_TOKEN": "short",
    "SSH_KEY_PATH": "/nowhere/that/is",
    "MONKEYPATCH": "a-long-value",
    "KEYBOARD": "a-long-value",
    "PWD": "a-long-value",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_other_variables_are_not_secret(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, HARMLESS[name])
    assert redact(f"x {HARMLESS[name]} y") == f"x {HARMLESS[name]} y"


def test_an_existing_path_is_not_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CREDENTIALS_DIR", "/mnt/not-there-at-all")
    monkeypatch.setenv("SERVICE_CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("OTHER_CREDENTIALS", "~")
    for path in ("/mnt/not-there-at-all/flowers", f"{tmp_path}/flowers"):
        assert redact({"root": path}) == {"root": path}


@pytest.mark.parametrize(
    "settings",
    [
        {"class_token": "cls", "pos_key": "sine", "tokens": ["a", "b"], "num_tokens": 3},
        {"api_key": "x" * 20, "password": "hunter22-typed", "credentials": {"user": "me"}},
        {"root": "/data/flowers-0123456789abcdef0123456789abcdef01234567", "notes": "a" * 40},
        ["logger.api_key=hunter22-typed", "+client={token: 123456}", "model.class_token=mean-of-all"],
        {"url": "https://example.org:8080/a@b", "mail": "http://host:5000 or me@host"},
    ],
)
def test_nothing_is_redacted_because_of_its_key_or_length(settings: Any):
    assert redact(settings) == settings == without_passwords(settings)


URLS = {
    "s3://me:hunter2@host/images": "s3://me:***@host/images",
    "postgresql+psycopg2://me:pass/word@host:5432/db": "postgresql+psycopg2://me:***@host:5432/db",
    "mysql://me:p@ss@host/db": "mysql://me:***@host/db",
    r"+url=s3\://me\:hunter2@host/x\=1": r"+url=s3\://me\:***@host/x\=1",  # as Hydra's sweeper writes it
    "redis://:hunter2@host": "redis://:***@host",
    "postgresql://host/db?user=me&password=hunter2&sslmode=off": (
        "postgresql://host/db?user=me&password=***&sslmode=off"
    ),
    "data.url='s3://me:hunter2@host/a','s3://me:hunter3@host/b'": (
        "data.url='s3://me:***@host/a','s3://me:***@host/b'"
    ),
    "cannot open mysql://me:12345@host/db: no route": "cannot open mysql://me:***@host/db: no route",
    "s3://me:${oc.env:MINE}@host": "s3://me:${oc.env:MINE}@host",  # names a variable
}


@pytest.mark.parametrize("url", URLS)
def test_only_the_password_of_a_url_is_redacted(url: str):
    assert redact([url]) == without_passwords([url]) == [URLS[url]]
    assert without_passwords(URLS[url]) == URLS[url]
    assert bool(url_passwords({"a": [url]})) == (url != URLS[url])


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("s3://me:***@host/x", "ALEXNET_URL_PASSWORD"),
        ("postgresql+asyncpg://me:***@host/x", "PGPASSWORD"),
        ("mysql://me:***@host/x", "MYSQL_PWD"),
        ("redis://:***@host/0", "REDISCLI_AUTH"),
        ("postgresql://host/db?password=***", "PGPASSWORD"),
    ],
)
def test_the_password_is_read_from_the_environment(url: str, variable: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        UserError, match=rf"^data\.url=.*passwords are not recorded; set .*{variable}.* in the environment"
    ):
        with_passwords({"data": {"url": url}})
    monkeypatch.setenv(variable, "hunter2")
    assert with_passwords({"data": {"url": url, "n": 1}}) == {
        "data": {"url": url.replace("***", "hunter2"), "n": 1}
    }
    monkeypatch.setenv("ALEXNET_URL_PASSWORD", "first")
    assert "first" in with_passwords({"a": [url]})["a"][0]


def test_a_password_in_use_is_redacted_outside_its_url_too():
    with_passwords({"url": "s3://me:hunter22-typed@host"})
    assert redact("the server refuses hunter22-typed") == "the server refuses [redacted]"


def test_the_key_in_netrc_is_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = "fedcba9876543210" * 2 + "fedcba98"
    (tmp_path / "mine").write_text(f"machine api.wandb.ai\n  login user\n  password {key}\n")
    assert redact(f"key {key}") == f"key {key}"
    monkeypatch.setenv("NETRC", str(tmp_path / "mine"))
    assert redact(f"key {key}") == "key [redacted]"


@pytest.mark.parametrize(
    "text",
    [
        f"local-{'b' * 40}",
        "wandb_v1_abcDEF123456_abcDEF1234567890",
        "AKIAABCDEFGHIJKLMNOP",
        f"ghp_{'a' * 36}",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_keys_in_an_unmistakable_format_are_redacted(text: str):
    assert redact(f"it is {text}, yes") == "it is [redacted], yes"
    assert without_passwords(text) == text
