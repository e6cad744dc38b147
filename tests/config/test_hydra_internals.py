"""Hydra's private names, and differences between its versions: warnings are errors here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from alexnet_exp.cli import main
from alexnet_exp.config.compose import conf_dir, register
from alexnet_exp.config.hydra_internals import (
    VERSION_BASE,
    basic_sweeper,
    error_of,
    get_args_parser,
    known_flags,
    register_resolver,
    store,
)
from hydra_plugins.alexnet_exp_plugins import GridSweeper


def test_known_flags_are_those_of_the_parser() -> None:
    known = known_flags()
    assert {"--multirun", "-m", "--cfg", "-c", "--config-dir", "--help"} <= set(known)
    parsed = get_args_parser().parse_args(["-m", "--config-dir", "mine", "a=1"])
    assert (parsed.multirun, parsed.config_dir, parsed.overrides) == (True, "mine", ["a=1"])


def test_the_error_of_a_failed_job_is_read_silently(capsys: pytest.CaptureFixture[str]) -> None:
    job = JobReturn(overrides=["a=1"], status=JobStatus.FAILED)
    job.return_value = ValueError("no luck")
    assert str(error_of(job)) == "no luck"
    with pytest.raises(ValueError, match="no luck"):
        _ = job.return_value
    assert "a=1" in capsys.readouterr().err  # printed only by the public property


def test_our_grid_sweeper_replaces_hydras_and_calls_its_methods() -> None:
    Plugins.instance()  # loads all plugins
    node = ConfigStore.instance().load("hydra/sweeper/basic.yaml").node
    assert node._target_ == f"{GridSweeper.__module__}.GridSweeper"
    sweeper: Any = hydra.utils.get_class(node._target_)(max_batch_size=None)
    assert isinstance(sweeper, basic_sweeper()[0]) and "sweep" in vars(basic_sweeper()[0])
    assert callable(sweeper.split_arguments) and callable(sweeper.validate_batch_is_legal)
    assert [sweeper.hydra_context, sweeper.config, sweeper.launcher] == [None] * 3


def test_storing_a_config_twice_keeps_the_second() -> None:
    for value in (1, 2):
        store(group="trial", name="twice", node={"value": value}, provider="test")
    assert ConfigStore.instance().load("trial/twice.yaml").node == {"value": 2}
    register()
    register()


def test_a_cached_resolver_is_called_once() -> None:
    calls: list[str] = []
    register_resolver("seen", lambda word: calls.append(word) or len(calls), use_cache=True)
    try:
        config = OmegaConf.create({"a": "${seen:x}", "b": "${seen:x}"})
        assert (config.a, config.b, config.a, calls) == (1, 1, 1, ["x"])
    finally:
        OmegaConf.clear_resolver("seen")


def test_hydra_starts_without_a_warning() -> None:
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        assert hydra.compose("models").name is None


def test_a_command_runs_without_a_warning(tmp_path: Path) -> None:
    assert main(["models", "name=alexnet", f"hydra.run.dir={tmp_path}"]) == 0
