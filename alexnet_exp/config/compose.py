"""Compose conf/ with Hydra, inside a running Hydra application or from plain Python."""

from __future__ import annotations

import os
import re
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
    """Return the folder of the yaml files: inside the installed package, next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Register the schema of network yamls and the resolvers that conf/ uses."""
    store(group="schema", name="alexnet", node=AlexNetConfig)
    # OmegaConf refuses to register a name twice, and every composition comes through here.
    if not OmegaConf.has_resolver("unique"):
        # Cached per configuration: hydra.run.dir is resolved more than once and must not change.
        register_resolver("unique", lambda: secrets.token_hex(3), use_cache=True)
        # trainer.max_epochs by default: none where trainer.max_steps is set, which would end too early otherwise.
        register_resolver("epochs_unless", lambda max_steps: DEFAULT_EPOCHS if max_steps == -1 else None)
        # Like oc.env, but an empty variable counts as unset, as for W&B.
        register_resolver("or_else", lambda name, value: os.environ.get(name) or value)


@contextmanager
def _hydra() -> Iterator[list[str]]:
    """Initialise Hydra for a composition; yield the --config-dir folders of the running application."""
    # Hydra is a global singleton: put the application's instance aside, its jobs still need it.
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
        name: File in conf/ without its extension: 'train'.
        overrides: As typed: 'model=alexnet', 'data.batch_size=64'.
        with_hydra: Whether to include Hydra's own settings.
    """
    register()
    with _hydra() as folders:
        # repr quotes them: a folder's name may hold characters that mean something in Hydra's grammar.
        path = [f"hydra.searchpath=[{','.join(map(repr, folders))}]"] if folders else []
        overrides = [*map(with_recorded_spelling, overrides), *path]
        return hydra.compose(name, overrides=overrides, return_hydra_config=with_hydra)


def chosen_files(hydra_config: Any) -> dict[str, str]:
    """Return the yaml that was chosen in each of our config groups.

    Args:
        hydra_config: Hydra's own settings.
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
    """Resolve a configuration to plain Python values, ~ expanded, URL passwords filled in, `center` spelt `centre`."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    augment = values["augment"] if isinstance(values.get("augment"), dict) else {}
    if "center_crop" in augment:  # from a custom yaml
        augment["centre_crop"] = augment.pop("center_crop")
    for settings in (values, augment):
        for key in _CENTRE_KEYS & settings.keys():
            settings[key] = "centre" if settings[key] == "center" else settings[key]
    return with_passwords(expand_home(values))


# `center` is accepted for `centre`. Only the latter gets past the command line and `plain`, so that recorded configs,
# checkpoints and comparisons have one spelling.
_CENTRE_KEYS = {"views", "mean_image"}


def with_recorded_spelling(override: str) -> str:
    """Spell center as centre in an override: `augment.center_crop=true`, `augment.views=center,flip`."""
    key, equals, value = override.partition("=")
    if key.rpartition(".")[2] in _CENTRE_KEYS:
        value = re.sub(r"\bcenter\b", "centre", value)
    return re.sub(r"^([+~]*augment\.)center_crop$", r"\1centre_crop", key) + equals + value
