"""`experiment=finetune` without a network connection: fine-tune a network that ships with the package instead.

The choice is made before the settings are composed and recorded as what it is, another experiment. A run, its
directory and its resumption therefore name the network that was trained, whatever the connection was or will be.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from alexnet_exp.config.overrides import resumed_directory
from alexnet_exp.settings import assigned, key_of, unquoted
from alexnet_exp.tracking.run_directory import RunDirectory

_DOWNLOADS, _SHIPS = "finetune", "finetune_small"
_SERVER = "https://download.pytorch.org"
_FILE = "alexnet-owt-*.pth"  # torchvision's name, with a hash


def with_weights_at_hand(arguments: list[str]) -> list[str]:
    """Replace `experiment=finetune` by `experiment=finetune_small` if its weights cannot be had, and say so.

    Args:
        arguments: As typed. A run that is resumed keeps what it has chosen, and a typed network or typed weights are
            never replaced.
    """
    typed = assigned(arguments)
    if unquoted(typed.get("experiment", "")) != _DOWNLOADS or {"model", "weights", "ckpt"} & typed.keys():
        return arguments
    resumed = resumed_directory(arguments)
    if resumed and (Path(resumed) / "overrides.yaml").exists():
        if f"experiment={_SHIPS}" not in RunDirectory(resumed).overrides():
            return arguments
    elif _downloaded() or _connected():
        return arguments
    else:
        print(
            f"No network connection, so torchvision's weights cannot be downloaded: experiment={_SHIPS} fine-tunes "
            "a network that ships with this package instead.",
            file=sys.stderr,
        )
    return [f"experiment={_SHIPS}" if key_of(a) == "experiment" and "=" in a else a for a in arguments]


def _connected() -> bool:
    from alexnet_exp.tracking.wandb.mode import server_answers

    return server_answers(_SERVER)


def _downloaded() -> bool:
    """Return whether torch has the file in its cache, as torch.hub.get_dir finds it, without importing torch."""
    cache = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"
    )
    return any(Path(os.path.expanduser(cache), "hub", "checkpoints").glob(_FILE))
