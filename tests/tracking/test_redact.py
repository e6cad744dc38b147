from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from alexnet_exp.config.compose import conf_dir
from alexnet_exp.tracking.redact import REDACTED as R
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
    {"command": "python train.py 'data.root=my images' --multirun lr=0.1,0.2"},
    ["client.token=null", "client.use_token=true", "client.num_tokens=3", "client.key="],
    {"token": 5, "key": -0.25, "apikey": 99999, "max_tokens": 10**7},
    [
        "model.num_tokens=100000",
        "model.key_tokens=0.123456",
        "client.token=1.25e-05",
        "+client={token: 5, n: 1}",
    ],
    "num_tokens=1000000 token=0.0001",
    {"token": None, "use_password": True, "max_tokens": 7, "keys": [], "monkey": "x", "keyboard": ["x"]},
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


WHOLE: list[tuple[Any, Any]] = [  # what a secret may look like, and what is left
    ({"password": ["ab", 1]}, {"password": R}),
    ({"session_token": 123456}, {"session_token": R}),
    (["token=123456", "key=5e5", "pwd=0123"], [f"token={R}", f"key={R}", f"pwd={R}"]),
    ({"password": 1234, "apikey": 100000}, {"password": R, "apikey": R}),
    (["+client={token: 123456}", "+a={credentials: {user: me}}"], [f"+client={R}", f"+a={R}"]),
    ("it has token=1234567, so", f"it has token={R}, so"),
    ({"credentials": {"user": "me", "word": "x"}}, {"credentials": R}),
    ({"client": {"key": "ab"}, "sshKey": "ab"}, {"client": {"key": R}, "sshKey": R}),
    (["+callbacks.client.password=ab"], [f"+callbacks.client.password={R}"]),
    (["callbacks.client.password=a,(b)[c] {d}; e"], [f"callbacks.client.password={R}"]),
    (["callbacks.client.password=[ab,cd]", "lr=0.1"], [f"callbacks.client.password={R}", "lr=0.1"]),
    (["+callbacks.client={key: ab, lr: 1}"], [f"+callbacks.client={R}"]),
    (["+c={header: 'Authorization: Bearer ab'}", "+c={a: 1\ntoken: ab}"], [f"+c={R}", f"+c={R}"]),
    (["credentials=12", "logger.secrets=3"], [f"credentials={R}", f"logger.secrets={R}"]),
    (["client.pwd='a b'"], [f"client.pwd={R}"]),
    (
        {"command": "python train.py '+client.password=a b,(c)' +client.token=ab 'data.root=my images'"},
        {"command": f"python train.py '+client.password={R}' '+client.token={R}' 'data.root=my images'"},
    ),
]


@pytest.mark.parametrize(("value", "left"), WHOLE)
def test_what_stands_under_the_key_of_a_secret_is_hidden_whole(value: Any, left: Any) -> None:
    assert redact(value) == left


def test_no_setting_that_this_package_has_is_taken_for_a_secret() -> None:
    names = {name for file in conf_dir().rglob("*.yaml") for name in keys(OmegaConf.load(file))}
    assert {"lr", "num_workers", "cache_dir", "monitor"} <= names
    for value in ("text", 3, [1], {"a": "b"}):
        settings: dict[str, Any] = dict.fromkeys(names, value)
        assert redact(settings) == settings
        assert redact([f"a.{name}={value}" for name in names]) == [f"a.{name}={value}" for name in names]


def keys(value: Any) -> Iterator[str]:
    """Yield the names of all settings of a file."""
    if isinstance(value, DictConfig):
        for name in value:
            yield str(name)
            yield from (
                ()
                if OmegaConf.is_missing(value, name) or OmegaConf.is_interpolation(value, name)
                else keys(value[name])
            )


def test_redacting_leaves_the_original_alone() -> None:
    config = {"a": [{"token": "x", "lr": 0.1}], "b": "c"}
    assert redact(config) == {"a": [{"token": "[redacted]", "lr": 0.1}], "b": "c"}
    assert config == {"a": [{"token": "x", "lr": 0.1}], "b": "c"}
