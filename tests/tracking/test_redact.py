from __future__ import annotations

from typing import Any

import pytest

from alexnet_exp.tracking.redact import redact

SECRETS = [
    {"api_key": "x"},
    {"WANDB_API_KEY": "x"},
    {"accessToken": "x"},
    {"nested": [{"db": {"password": "x"}}]},
    "a" * 40,
    [f"local-{'b' * 40}"],
    "key wandb_v1_abcDEF123456_abcDEF1234567890",
    "https://user:pass@example.org/repo.git",
    "AKIAABCDEFGHIJKLMNOP",
    "logger.api_key=hunter22",
    "before value-of-the-variable after",
]
HARMLESS = [
    {"lr": 0.1, "epochs": 90, "none": None, "flag": True},
    {"classes": ["token", "secret", "password"], "api_key": "", "num_tokens": 3, "token": None},
    {"commit": "a" * 40, "git": {"sha": "0" * 40}},
    {"tokenizer": "words", "url": "https://example.org:8080/a@b"},
    ["model=alexnet_lrn", "optimizer.lr=0.1", "f" * 64, ("a", 1)],
    "",
    3.5,
]


@pytest.mark.parametrize("value", SECRETS)
def test_secrets_are_redacted(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "value-of-the-variable")
    hidden = redact(value)
    assert "[redacted]" in str(hidden)
    assert type(hidden) is type(value)
    for secret in ("'x'", "a" * 40, "b" * 40, "abcDEF", "pass@", "AKIA", "hunter", "value-of"):
        assert secret not in str(hidden)


@pytest.mark.parametrize("value", HARMLESS)
def test_everything_else_stays_as_it_is(value: Any) -> None:
    assert redact(value) == value


def test_redacting_leaves_the_original_alone() -> None:
    config = {"a": [{"token": "x", "lr": 0.1}], "b": "c"}
    assert redact(config) == {"a": [{"token": "[redacted]", "lr": 0.1}], "b": "c"}
    assert config == {"a": [{"token": "x", "lr": 0.1}], "b": "c"}
