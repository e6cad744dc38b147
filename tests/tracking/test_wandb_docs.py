"""The sweep that docs/wandb.md walks through: a file that W&B accepts, and settings that Hydra accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from alexnet_exp.cli import main
from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain
from tests.data.makers import write_cifar10
from tests.documents import shortened
from tests.tracking.read_wandb import read_finished

PAGE = Path(__file__).parents[2] / "docs" / "wandb.md"


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (text,) = [block for block in blocks if block.startswith("program:")]
    return yaml.safe_load(text)


def test_parameters_of_the_sweep_are_settings_of_a_run(sweep: dict[str, Any]):
    chosen = []
    for key, rule in sweep["parameters"].items():
        value = rule["values"][0] if "values" in rule else rule.get("value", rule.get("min"))
        chosen.append(f"{key}={value}")
    fixed = [word for word in sweep["command"] if "=" in word]
    check_config(plain(compose("train", [*fixed, *chosen])))


def test_the_wandb_agent_passes_settings_in_hydras_grammar(sweep: dict[str, Any]):
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert "${args}" not in sweep["command"]
    assert sweep["metric"] == {"name": "val/top1", "goal": "maximize"}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # wandb's own, for the agent's settings
def test_the_agents_command_creates_the_run_that_the_agent_expects(
    sweep: dict[str, Any], no_account: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    chosen = {"model": {"value": "alexnet_tf_cifar"}, "optimizer.lr": {"value": 0.003}, "seed": {"value": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **chosen}))
    agent = {"SWEEP_ID": "abcdefgh", "RUN_ID": "ijklmnop", "SWEEP_PARAM_PATH": str(tmp_path / "config.yaml")}
    for name, value in agent.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    words = create_sweep_command(sweep["command"])
    assert words[:3] == ["${env}", "${interpreter}", "${program}"]
    words = [*words[3:-1], *create_sweep_command_args({"args": chosen})["args_no_hyphens"]]
    write_cifar10(tmp_path / "data")
    where = [f"hydra.run.dir={tmp_path / 'run'}", f"paths.data_dir={tmp_path / 'data'}"]
    assert (
        main(["train", *words, *shortened(words), *where, "logger=wandb", "logger.wandb.mode=offline"]) == 0
    )
    (folder,) = (tmp_path / "run").glob("wandb/offline-run-*")
    run = read_finished(folder)
    assert run.run_id == "ijklmnop"
    assert run.config["optimizer"]["lr"] == 0.003
    assert run.config["names"]["model"] == "alexnet_tf_cifar"
    assert "val/top1" in run.summary
    assert str(folder) in (tmp_path / "run" / "train.log").read_text()  # the line that says how to upload it
