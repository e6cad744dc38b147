"""Every file of conf/sweep, and every command of docs/sweeps.md, results in jobs that the command line accepts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import hydra
import pytest

from alexnet_exp.cli import main
from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, conf_dir, options, plain, register
from alexnet_exp.config.hydra_internals import VERSION_BASE
from alexnet_exp.config.overrides import prepare
from hydra_plugins.alexnet_exp_plugins import GridSweeper
from tests.sweeps.searches import parsed

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"
FILES = [name for name in options("sweep") if name != "none"]
COMMANDS = re.findall(r"^python train\.py (-m .+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def swept(arguments: list[str]) -> tuple[Any, list[list[str]]]:
    """Return hydra's settings for a sweep, and overrides in which every value of it occurs."""
    register()
    settings = [a for a in prepare(arguments) if not a.startswith("-")]
    fixed = [a for a in settings if not parsed(a)[0].is_sweep_override()]
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        app = hydra.compose("train", fixed, return_hydra_config=True).hydra
    params = dict(app.sweeper.params or {})
    mine = [a for a in settings if not a.startswith(("hydra.", "hydra/", "sweep.resume"))]
    overrides = parsed(*[f"{key}={values}" for key, values in params.items()], *mine)
    if "Optuna" in app.sweeper._target_:
        from alexnet_exp.sweeps.optuna.space import read_space

        return app, read_space(overrides).examples()
    (jobs,) = GridSweeper.split_arguments(overrides, None)
    return app, jobs


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_sweep_is_described_and_composes_valid_jobs(name: str):
    lines = (conf_dir() / "sweep" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert f"# Command:  python train.py -m sweep={name}" in lines
    assert [line[2:].split(":")[0] for line in lines if re.match(r"# [A-Z][a-z]+: ", line)] == [
        "Command", "Shows", "Measured",
    ]  # fmt: skip
    _, jobs = swept(["-m", f"sweep={name}"])
    for job in (jobs[0], jobs[-1]):
        config = plain(compose("train", job))
        check_config(config)
        assert config["data"]["_target_"] == "alexnet_exp.data.CIFAR10"


@pytest.mark.parametrize(
    ("name", "count"),
    [("lr_wd", 16), ("lrn_order", 15), ("optimizers", 15), ("alexnets_cifar10", None)],
)
def test_a_grid_has_the_expected_number_of_jobs(name: str, count: int | None):
    models = [model for model in options("model") if model.startswith("alexnet_")]
    assert len(swept(["-m", f"sweep={name}"])[1]) == (count or 3 * len(models))


def test_both_blocks_change_their_order_together():
    _, jobs = swept(["-m", "sweep=lrn_order"])
    orders = []
    for job in jobs[::3]:
        features = plain(compose("train", job))["model"]["features"]
        assert features["conv1"]["then"] == features["conv2"]["then"]
        orders.append(features["conv1"]["then"])
    assert sum("lrn" in order for order in orders) == 3
    assert len({tuple(order) for order in orders}) == 5


def test_overrides_win_over_a_shipped_sweep():
    _, jobs = swept(["-m", "sweep=lr_wd", "data=digits", "optimizer.lr=0.5,0.6"])
    assert len(jobs) == 2 * 4
    config = plain(compose("train", jobs[0]))
    assert (config["optimizer"]["lr"], config["data"]["_target_"]) == (0.5, "alexnet_exp.data.Digits")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_composes_valid_jobs(command: str):
    app, jobs = swept(shlex.split(command))
    assert jobs
    check_config(plain(compose("train", jobs[-1])))
    if "Optuna" in app.sweeper._target_:
        from alexnet_exp.sweeps.optuna.study import check_sweeper

        check_sweeper(app.sweeper, compose("train", jobs[0]))


def test_the_page_names_every_setting_and_every_shipped_sweep():
    from hydra_plugins.alexnet_exp_plugins import OptunaConfig, ProcessesConfig

    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `hydra\.(\w+\.\w+)` \| `?([^|`]+?)`? \|", text, re.MULTILINE))
    for part, settings in (("launcher", ProcessesConfig()), ("sweeper", OptunaConfig())):
        for key, value in vars(settings).items():
            if key != "_target_":
                assert rows[f"{part}.{key}"] == ("null" if value is None else str(value))
    assert {f"sweep={name}" for name in FILES} <= set(re.findall(r"sweep=\w+", text))


@pytest.mark.parametrize(
    "typed",
    [
        ["optimizer.lr=0.1,0.2", "hydra.launcher.max_parallel=0"],
        ["hydra/sweeper=optuna", "optimizer.lr=interval(0.01,0.1)", "hydra.sweeper.sampler=tpr"],
        ["hydra/sweeper=optuna", "optimizer.lr=interval(0.01,0.1)", "hydra.sweeper.pruner_arguments={x: 1}"],
    ],
)
def test_a_sweep_rejected_before_its_first_job_leaves_no_directory(
    typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "-m", "data=digits", *typed, f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()
