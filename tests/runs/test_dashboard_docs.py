"""The sweep that docs/wandb.md walks through: a file that W&B takes, and settings that Hydra takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain

PAGE = Path(__file__).parents[2] / "docs" / "wandb.md"


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (text,) = [block for block in blocks if block.startswith("program:")]
    return yaml.safe_load(text)


def test_settings_of_the_sweep_are_settings_of_a_run(sweep: dict[str, Any]):
    chosen = []
    for key, rule in sweep["parameters"].items():
        value = rule["values"][0] if "values" in rule else rule.get("value", rule.get("min"))
        chosen.append(f"{key}={value}")
    fixed = [word for word in sweep["command"] if "=" in word]
    check_config(plain(compose("train", [*fixed, *chosen])))


def test_agent_hands_settings_over_as_hydra_wants_them(sweep: dict[str, Any]):
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert "${args}" not in sweep["command"]
    assert sweep["metric"] == {"name": "val/top1", "goal": "maximize"}
