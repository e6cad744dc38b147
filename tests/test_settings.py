"""KEY=VALUE words and nested settings."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from alexnet_exp.settings import assigned, flat, key_of, parse, put, quote, unquoted


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=0.1", ("", "optimizer.lr", "0.1")),
        ("+a=b=c", ("+", "a", "b=c")),
        ("++a=", ("++", "a", "")),
        ("~model.dropout", ("~", "model.dropout", None)),
        ("~a=1", ("~", "a", "1")),
        ("hydra/launcher=slurm", ("", "hydra/launcher", "slurm")),
        ("data@val=folder", ("", "data@val", "folder")),
        ("alone", ("", "alone", None)),
        ("=x", ("", "", "x")),
    ],
)
def test_a_word_is_split_into_prefix_key_and_value(word: str, expected: tuple[str, str, str | None]) -> None:
    assert parse(word) == expected
    assert key_of(word) == expected[1]


def test_the_last_value_of_a_setting_wins_and_a_deleted_one_has_none() -> None:
    assert assigned(["a=1", "+b=2", "~c", "~d=4", "a=3", "word"]) == {"a": "3", "b": "2"}


@pytest.mark.parametrize("text", ["a b", "it's", "a\\", "a\\'b", "", "[1,2]", "x=y", "${z}", 'say "hi"'])
def test_hydra_reads_a_quoted_value_as_the_original_text(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quote(text)}"])
    assert str(override.value()) == text


def test_single_or_double_quotes_are_removed_once() -> None:
    assert [unquoted(v) for v in ("'a'", '"a"', "'it\\'s'", '"a\\"b"', "'a", "a'b'", "''")] == [
        "a", "a", "it's", 'a"b', "'a", "a'b'", "",
    ]  # fmt: skip


def test_nested_settings_flatten_to_dotted_keys_and_back() -> None:
    nested = {"model": {"conv1": {"k": 3}, "empty": {}}, "seed": 1, "notes": None}
    keys = {"model.conv1.k": 3, "model.empty": {}, "seed": 1, "notes": None}
    assert flat(nested) == keys
    assert flat(nested, whole=("model.conv1",))["model.conv1"] == {"k": 3}
    assert flat(nested["model"], "model.") == {k: v for k, v in keys.items() if k.startswith("model.")}
    again: dict[str, object] = {}
    for key, value in keys.items():
        put(again, key, value)
    assert again == nested
    put(again, "seed.a.b", 2)  # in the place of a plain value
    assert again["seed"] == {"a": {"b": 2}}
