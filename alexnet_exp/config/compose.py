"""Composing conf/ with Hydra, from the command line's process or from plain Python."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from alexnet_exp.config.hydra_internals import VERSION_BASE, register_resolver, store
from alexnet_exp.config.paths import expand_home
from alexnet_exp.models.spec import AlexNetConfig
from alexnet_exp.tracking.redact import with_passwords

DEFAULT_EPOCHS = 30


def conf_dir() -> Path:
    """Return the folder of the yaml files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Tell Hydra the schema of network yamls, and the resolvers that conf/ uses."""
    store(group="schema", name="alexnet", node=AlexNetConfig)
    if not OmegaConf.has_resolver("unique"):
        register_resolver("unique", lambda: secrets.token_hex(3), use_cache=True)
        register_resolver("epochs_unless", _default_epochs)
        # As oc.env, but an empty variable is none, as to W&B.
        register_resolver("or_else", lambda name, value: os.environ.get(name) or value)


def _default_epochs(max_steps: Any) -> int | None:
    """Return trainer.max_epochs where nobody sets it: a run that is measured in steps has no other end."""
    return DEFAULT_EPOCHS if max_steps == -1 else None


@contextmanager
def _hydra() -> Iterator[list[str]]:
    """Initialise Hydra for a composition; yield what a running application got by --config-dir."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    path = outer.config_loader.get_search_path().get_path() if outer else []
    try:
        with hydra.initialize_config_dir(str(conf_dir()), job_name="train", **VERSION_BASE):
            yield [element.path for element in path if element.provider == "command-line"]
    finally:
        state.hydra = outer


def compose(name: str, overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """Compose a primary configuration as the command line would.

    Args:
        name: File in conf/ without its ending: 'train'.
        overrides: As typed: 'model=alexnet', 'data.batch_size=64'.
        with_hydra: Whether Hydra's own settings are wanted, too.
    """
    register()
    with _hydra() as folders:
        path = [f"hydra.searchpath=[{','.join(map(repr, folders))}]"] if folders else []
        return hydra.compose(name, overrides=[*overrides, *path], return_hydra_config=with_hydra)


def chosen_files(hydra_config: Any) -> dict[str, str]:
    """Return which file of each of our groups a configuration was composed from.

    Args:
        hydra_config: Hydra's own settings, which know.
    """
    found = hydra_config.runtime.choices
    return {
        str(group): name if isinstance(name, str) else f"[{','.join(map(str, name))}]"
        for group, name in found.items()
        if name is not None and group != "hydra" and "/" not in str(group) and "@" not in str(group)
    }


def group(name: str, option: str) -> dict[str, Any]:
    """Compose one option of a group by itself: group('model', 'alexnet')."""
    register()
    with _hydra():
        config = hydra.compose(f"{name}/{option}")
    return plain(config)[name]


def options(name: str) -> list[str]:
    """List the options of a group, sorted."""
    return sorted(path.stem for path in (conf_dir() / name).glob("*.yaml"))


def plain(config: Any) -> Any:
    """Resolve a configuration to plain dictionaries, lists, strings and numbers, its paths and URLs ready for use."""
    return with_passwords(expand_home(OmegaConf.to_container(config, resolve=True, throw_on_missing=True)))
