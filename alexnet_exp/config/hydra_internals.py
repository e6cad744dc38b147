"""Hydra's private names that we use, and the differences between Hydra 1.3 and 1.4; neither warns.

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

__all__ = ["get_args_parser"]  # re-exported

_HAS_1_4 = tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)

# For hydra.initialize_config_dir: 1.3 warns if it is missing, 1.4 if it is passed.
VERSION_BASE: dict[str, Any] = {} if _HAS_1_4 else {"version_base": "1.3"}
# For hydra.main; 1.4 only instantiates callbacks on this list.
MAIN: dict[str, Any] = (
    {"execution_whitelist": ["alexnet_exp.config.paths.HomeDirectories"]} if _HAS_1_4 else VERSION_BASE
)


def basic_sweeper() -> tuple[Any, Any]:
    """Return Hydra's own sweeper and its config class.

    Call it only from a plugin: Hydra 1.3 reloads this module during plugin discovery, and classes imported before that
    can no longer be instantiated.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf

    return BasicSweeper, BasicSweeperConf


def store(group: str, name: str, node: Any, **more: Any) -> None:
    """Store a configuration, replacing any of the same name; 1.4 requires `replace` for that."""
    replace: dict[str, Any] = {"replace": True} if _HAS_1_4 else {}
    ConfigStore.instance().store(group=group, name=name, node=node, **replace, **more)


def register_resolver(name: str, resolver: Callable[..., Any], use_cache: bool = False) -> None:
    """Register an OmegaConf resolver: 2.4 renamed the function, and 2.3 has a legacy one of the new name."""
    register: Any = OmegaConf.register_resolver if _HAS_1_4 else OmegaConf.register_new_resolver
    register(name, resolver, use_cache=use_cache)


def known_flags() -> list[str]:
    """List the flags of Hydra's command line: --multirun, -m."""
    return [flag for action in get_args_parser()._actions for flag in action.option_strings]


def error_of(job: JobReturn) -> Any:
    """Return the error of a failed job; the public `return_value` would print and raise it."""
    return job._return_value
