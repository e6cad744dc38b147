"""Read the fenced blocks of a document, and make the commands in them short enough to test."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.cli import main
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.config.overrides import prepare
from alexnet_exp.runs.train.offline import with_weights_at_hand

VERB = re.compile(r"^(?:PYTHONPATH=\. )?(python train\.py|alexnet-exp)(?= )")
# Overrides that make any run short; keys that a configuration lacks are skipped.
SHORT = {
    "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.strategy": "auto", "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1,
    "data.batch_size": 2, "data.val_size": 10, "data.num_workers": 0, "compile": "false",
    "callbacks.model_summary.enabled": "false",
}  # fmt: skip


# Overrides that make any benchmark short.
BRIEF = [
    "repeats=1",
    "steps=1",
    "data.batch_size=2",
    "data.val_size=10",
    "step.precision=32-true",
    "step.layout=contiguous",
]


@dataclass
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    reason: str | None  # why it is not run

    @property
    def file(self) -> str | None:
        """Return the path that a comment at the top names, if one does."""
        named = re.match(r"(?:# @package .*\n)?# (\S+\.(?:py|yaml))\n", self.text)
        return named[1] if named else None


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a document; '<!-- not run: WHY -->' before one excludes it from the tests."""
    found = re.findall(r"(?:<!-- not run: (.+?) -->\n)?```(\w+)\n(.*?)```", text, re.DOTALL)
    return [Block(language, body, reason or None) for reason, language, body in found]


def download_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make experiment=finetune find neither a connection nor downloaded weights."""
    for name in ("_connected", "_downloaded"):
        monkeypatch.setattr(f"alexnet_exp.runs.train.offline.{name}", lambda: False)


def shortened(arguments: list[str]) -> list[str]:
    """Return overrides that make a training run take a second, whatever it trains."""
    arguments = with_weights_at_hand(arguments)
    typed = [a.split(",")[0] if "-m" in arguments else a for a in arguments if not a.startswith("-")]
    typed = [a for a in typed if a != "my_conf" and not a.startswith(("hydra.", "sweep.resume="))]
    own = [f"hydra.searchpath=[file://{Path('my_conf').absolute()}]"] if "my_conf" in arguments else []
    config = plain(compose("train", [*prepare(typed), *own]))
    short = [f"{key}={value}" for key, value in SHORT.items() if _has(config, key)]
    if config["trainer"]["sync_batchnorm"]:
        short.append("trainer.sync_batchnorm=false")  # torch supports it only on GPUs
    if not any(a.startswith("logger") for a in typed):
        short.append("logger=none")
    return [*short, *narrow(config["model"])]


def _has(config: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def narrow(model: dict[str, Any]) -> list[str]:
    """Return overrides that make a large network narrow."""
    if model["input_size"] < 64:
        return []
    convs = [f"model.features.{name}.out_channels=8" for name in model.get("features", {})]
    layers = model.get("classifier", {}).items()
    return [
        *convs,
        *(f"model.classifier.{name}.out_features=16" for name, layer in layers if layer["out_features"]),
    ]


def brief(arguments: list[str]) -> list[str]:
    """Return overrides that make a benchmark take seconds, whatever it measures."""
    own = ("repeats", "steps", "step.", "what")
    of_a_run = [a for a in arguments if "=" in a and not a.startswith(own)]
    return [*BRIEF, *narrow(plain(compose("train", of_a_run))["model"])]


def arguments_of(command: str) -> list[str]:
    """Return the arguments of `main` for a line of a document."""
    words = shlex.split(VERB.sub("", command), comments=True)
    return ["train", *words] if "train.py" in command else words


def exit_code(arguments: list[str]) -> int:
    """Run a command."""
    try:
        return main(arguments)
    except SystemExit as end:  # Hydra exits after --help
        return int(end.code or 0)
