"""What is used of Hydra's private parts, and what differs between Hydra 1.3 and 1.4; no warning under either.

tests/config/test_hydra_internals.py fails for each name that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

__all__ = ["get_args_parser"]  # which others take from here

_HAS_1_4 = tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)

# For hydra.initialize_config_dir: 1.3 warns where it is missing, and 1.4 where it is given.
VERSION_BASE: dict[str, Any] = {} if _HAS_1_4 else {"version_base": "1.3"}
# For hydra.main, too; 1.4 wants to be told what its settings may start beside launchers and sweepers.
MAIN: dict[str, Any] = (
    {"execution_whitelist": ["alexnet_exp.config.paths.HomeDirectories"]} if _HAS_1_4 else VERSION_BASE
)


def basic_sweeper() -> tuple[Any, Any]:
    """Return Hydra's own sweeper and its settings.

    Not before Hydra looks for plugins: 1.3 loads their module anew then, and no object of the old class can be made.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf

    return BasicSweeper, BasicSweeperConf


def store(group: str, name: str, node: Any, **more: Any) -> None:
    """Give Hydra a configuration, perhaps in place of another of that name; 1.4 wants to hear that it may be."""
    replace: dict[str, Any] = {"replace": True} if _HAS_1_4 else {}
    ConfigStore.instance().store(group=group, name=name, node=node, **replace, **more)


def register_resolver(name: str, resolver: Callable[..., Any], use_cache: bool = False) -> None:
    """Give OmegaConf a resolver; 2.4 has renamed the function, and 2.3 has an older one of the new name."""
    register: Any = OmegaConf.register_resolver if _HAS_1_4 else OmegaConf.register_new_resolver
    register(name, resolver, use_cache=use_cache)


def known_flags() -> list[str]:
    """Return every flag of Hydra's command line: --multirun, -m."""
    return [flag for action in get_args_parser()._actions for flag in action.option_strings]


def error_of(job: JobReturn) -> Any:
    """Return why a job has failed; its public `return_value` would print it and raise it."""
    return job._return_value
