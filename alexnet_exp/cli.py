"""The command line: `alexnet-exp VERB key=value ...`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from alexnet_exp.allocator import keep_freed_memory
from alexnet_exp.application import run_hydra
from alexnet_exp.cores import limit_threads
from alexnet_exp.errors import UserError, nearest, shell_command
from alexnet_exp.utf8 import use_utf8

USAGE = """\
alexnet-exp VERB [key=value ...]     settings and flags of a verb: alexnet-exp VERB --help

  train      train and test a network: alexnet-exp train model=alexnet_lrn data=cifar10
  evaluate   scores of a checkpoint or an ensemble: alexnet-exp evaluate outputs/runs/RUN
  predict    name what is in images: alexnet-exp predict outputs/runs/RUN photos/
  figures    see what a network has learned: alexnet-exp figures outputs/runs/RUN
  prepare    make images ready for streaming, or decode them once: alexnet-exp prepare data.root=FOLDER out=chunks
  benchmark  measure speed on this machine: alexnet-exp benchmark step
  export     hand a network to another runtime: alexnet-exp export outputs/runs/RUN format=onnx
  compare    lay runs side by side: alexnet-exp compare outputs/runs
  dashboard  lay a W&B project out: alexnet-exp dashboard ENTITY/PROJECT
  models     list the networks, or the layers of one: alexnet-exp models alexnet_lrn
"""


def main(argv: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: The verb and its arguments; those of the process if None.

    Returns:
        Exit code: 0, 1 after a mistake of the user's or a failure, 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1.
    """
    if argv is None:
        use_utf8()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 1
    if "--version" in arguments:
        from alexnet_exp.version import __version__

        print(__version__)
        return 0
    if arguments[0] not in VERBS:
        print(f"error: {_unknown_verb(arguments[0])} alexnet-exp --help lists all.", file=sys.stderr)
        return 1
    keep_freed_memory()
    limit_threads()
    try:
        _check_folder()
        run = _train if arguments[0] == "train" else partial(_run, arguments[0])
        return run(arguments[1:])
    except UserError as error:
        from alexnet_exp.tracking.redact import redact

        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 1


def _unknown_verb(word: str) -> str:
    from alexnet_exp.config.words import VERBS as MEANT

    if word.startswith("-") or "=" in word:
        return f"There is no verb {word!r}: it comes first, as in alexnet-exp train {word}."
    close = f" Did you mean {MEANT[word.lower()]}?" if word.lower() in MEANT else nearest(word.lower(), VERBS)
    return f"There is no verb {word!r}.{close}"


def _check_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("The current folder is not there any more: cd into one that is.") from error


def _train(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> Any:
        from alexnet_exp.config.checks import check_config
        from alexnet_exp.config.networks import check_typed
        from alexnet_exp.runs.resume import resumed_settings

        settings = resumed_settings(config, overrides)
        if settings is None:
            return None
        is_new = settings[0] is config
        config, overrides = settings
        check_config(config)
        if is_new:
            check_typed(config["model"], overrides)
        from alexnet_exp.runs.train import train  # the check needs no torch, and answers first

        return train(config, overrides, run_dir, command)

    from alexnet_exp.runs.resume import resumed_arguments
    from alexnet_exp.training.launchers import check_processes
    from alexnet_exp.training.stopping import hold_early

    if not {"-m", "--multirun"} & set(arguments):
        hold_early()
    check_processes(arguments)
    command = shell_command([*_program(), *arguments])
    return run_hydra("train", task, resumed_arguments(arguments))


def _program() -> list[str]:
    script = Path(sys.argv[0])  # of python -m, a file of this package
    ours = script.name == "__main__.py" or script.resolve().is_relative_to(Path(__file__).parent)
    return ["python", script.name] if script.suffix == ".py" and not ours else ["alexnet-exp", "train"]


def _run(name: str, arguments: list[str]) -> int:
    """Run any verb but train."""
    from alexnet_exp.training.stopping import stopping_on_signals

    codes: list[int] = []

    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        given = {"config": config, "overrides": overrides, "run_dir": run_dir, "command": command}
        function = getattr(import_module(f"alexnet_exp.runs.{name}"), name)
        with stopping_on_signals():
            returned = function(*(given[key] for key in verb.takes))
        codes.append(returned if isinstance(returned, int) else 0)

    verb = VERBS[name]
    command = shell_command(["alexnet-exp", name, *arguments])
    return run_hydra(name, task, verb.rewrite(arguments), verb.bare_words) or max(codes, default=0)


def _appending(arguments: list[str]) -> list[str]:
    """Let `data.root=DIR` change the checkpoint's own data set where no other is chosen."""
    if any(argument.startswith("data=") for argument in arguments):
        return arguments
    return [f"+{argument}" if argument.startswith("data.") else argument for argument in arguments]


def _measuring(arguments: list[str]) -> list[str]:
    """Make step,startup a list: to Hydra it is a sweep.

    Raises:
        UserError: For what the scripts of benchmarks/ measure.
    """
    settings = [a for a in arguments if "=" in a and not a.startswith(("what=", "baseline="))]
    keys = {re.split(r"[.=]", setting.lstrip("+~"))[0] for setting in settings}
    words = [a for before, a in pairwise(["", *arguments]) if a not in settings and before[:1] != "-"]
    named = re.findall(r"\w+", " ".join(words))
    scripts = [script for script in ("baseline", "data", "lrn", "overhead") if script in named]
    if not scripts and keys & {"lrn", "workers"}:  # settings that only they have
        scripts = ["lrn" if "lrn" in keys else "data"]
    if scripts:
        commands = [shell_command(["python", f"benchmarks/{script}.py", *settings]) for script in scripts]
        raise UserError(
            f"benchmark {', '.join(scripts)} moved to scripts of the repository: run {' and '.join(commands)}"
        )
    return [re.sub(r"^(what=)?(\w+(,\w+)+)$", r"what=[\2]", argument) for argument in arguments]


def _naming_the_kind(arguments: list[str]) -> list[str]:
    """Let `data=` name a kind: for training it is a group, and here only the way to find images is needed of it."""
    return [re.sub(r"^data=(?=\w+$)", "data.kind=", argument) for argument in arguments]


@dataclass(frozen=True)
class Verb:
    """How words become the arguments of a function: for verb NAME, `alexnet_exp.runs.NAME.NAME`.

    The number that it returns, if it is one, is the exit code.

    Args:
        takes: Its arguments: some of config, overrides, run_dir and command.
        bare_words: Keys that words without '=' are values of, in this order.
        rewrite: Applied to the words first.
    """

    takes: tuple[str, ...]
    bare_words: tuple[str, ...] = ()
    rewrite: Callable[[list[str]], list[str]] = list


_FILES = ("config", "run_dir", "command")  # of verbs that make files
_ALL = ("config", "overrides", "run_dir", "command")  # they compose settings once more
VERBS = {
    "train": Verb(_ALL),
    "benchmark": Verb(_ALL, ("what",), _measuring),
    "compare": Verb(_FILES, ("runs...",)),
    "dashboard": Verb(_FILES, ("project",)),
    "evaluate": Verb(_ALL, ("ckpt...",), _appending),
    "export": Verb(_FILES, ("ckpt",)),
    "figures": Verb(_ALL, ("ckpt",), _appending),
    "models": Verb(("config",), ("name",)),
    "predict": Verb(_FILES, ("ckpt", "images...")),
    "prepare": Verb(("config",), (), _naming_the_kind),
}

if __name__ == "__main__":
    sys.exit(main())
