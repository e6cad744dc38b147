"""Classes of settings: plain values become objects that know their keys."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import alexnet_exp
from alexnet_exp.config.compose import compose, options, plain
from alexnet_exp.config.groups import ADDED, RULES, Settings
from alexnet_exp.config.schema import at_least, checked, group, nested, null, read, rules_of, setting
from alexnet_exp.errors import UserError
from alexnet_exp.settings import flat


@group
class Engine:
    power: int = setting(at_least(1))
    gears: int | None = setting(at_least(1) | null, absent=None)
    fuel: str = setting(at_least(0), recorded="coal")


@group
class Train:
    length: int = setting(at_least(2))
    engine: Engine = nested(Engine)
    spare: Engine | None = nested(Engine, optional=True)


PLAIN: dict[str, Any] = {"length": 3, "engine": {"power": 7, "gears": 2, "fuel": 1}, "colour": "red"}


def test_settings_are_read_into_their_fields_and_other_keys_are_left_out():
    train = checked(Train, PLAIN)
    assert dataclasses.asdict(train) == {
        "length": 3, "engine": {"power": 7, "gears": 2, "fuel": 1}, "spare": None,
    }  # fmt: skip


def test_a_misspelt_or_assigned_name_is_an_error():
    train = read(Train, PLAIN)
    with pytest.raises(AttributeError):
        train.lenght  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(dataclasses.FrozenInstanceError):
        train.length = 4  # type: ignore[misc]


def test_a_missing_key_is_absent_recorded_otherwise_or_an_error():
    engine = read(Engine, {"power": 7})
    assert (engine.gears, engine.fuel) == (None, "coal")
    with pytest.raises(UserError, match=r"^The setting engine\.power is missing: set it"):
        read(Train, {"length": 3, "engine": {}})
    # A class named by `_target_` may have a default of its own.
    assert read(Engine, {"_target_": "somebody.Engine"}).power is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 1}, "invalid length=1: expected an integer >= 2."),
        ({"engine": {"power": 0}}, "invalid engine.power=0: expected an integer >= 1."),
        ({"engine": {"power": 1, "gears": "many"}}, "invalid engine.gears='many': expected an integer >= 1, or null."),
        ({"length": {"metres": 3}}, "invalid length={'metres': 3}: expected an integer >= 2."),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_with_its_dotted_key(changes: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        checked(Train, PLAIN | changes)
    assert str(caught.value) == message


def test_rules_of_a_class_keep_the_order_of_its_fields():
    inner = ["power", "gears", "fuel"]
    assert list(rules_of(Train)) == [
        "length", *(f"engine.{key}" for key in inner), *(f"spare.{key}" for key in inner)
    ]  # fmt: skip


PACKAGE = Path(alexnet_exp.__file__).parent
GROUPS = ("augment", "data", "optimizer", "scheduler", "trainer", "callbacks", "logger", "paths")
PLACES = {"folder": ["data.root=."], "imagenet": ["data.root=."], "streaming": ["data.url=."]}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in GROUPS for option in options(name)])
def test_every_setting_of_a_group_is_found_in_its_object(name: str, option: str):
    config = plain(
        compose("train", [f"{name}={option}", *(PLACES.get(option, []) if name == "data" else [])])
    )
    found = flat({name: dataclasses.asdict(read(Settings, config))[name]}, whole=RULES)
    given = {key: value for key, value in flat({name: config[name]}, whole=RULES).items() if key in RULES}
    assert given == {key: found[key] for key in given}


def test_what_older_runs_did_is_a_value_that_is_still_legal():
    assert ADDED.keys() <= RULES.keys()
    assert all(RULES[key].legal(value) for key, value in ADDED.items())


# Of a checkpoint, of a command line before the check, and settings that a benchmark changes.
PLAIN_SETTINGS = ("runs/evaluate/data.py", "runs/train/resume.py", "runs/benchmark/subject.py")


def test_code_reads_settings_from_objects_not_from_nested_dicts():
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            # config["trainer"]["max_epochs"]; writing what is recorded is fine.
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Load)
                and _names_group(node.value)
            ):
                found.add(f"{file.relative_to(PACKAGE).as_posix()}:{node.lineno} {ast.unparse(node)}")
    assert not {place for place in found if not place.startswith(PLAIN_SETTINGS)}
    assert found  # the search works


def _names_group(node: ast.AST) -> bool:
    group = node.slice if isinstance(node, ast.Subscript) else None
    return isinstance(group, ast.Constant) and group.value in GROUPS
