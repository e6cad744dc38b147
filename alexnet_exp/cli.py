"""The command line: `alexnet-exp VERB key=value ...`."""

from __future__ import annotations

import contextlib
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

from alexnet_exp.config.messages import explain, of_composing
from alexnet_exp.config.overrides import prepare
from alexnet_exp.errors import UserError, nearest, printable, shell_command
from alexnet_exp.settings import assigned, key_of, parse
from alexnet_exp.startup import before_torch, use_utf8
from alexnet_exp.tracking.redact import redact

USAGE = """\
alexnet-exp VERB [key=value ...]     settings and flags of a verb: alexnet-exp VERB --help

  train      train and test a network: alexnet-exp train model=alexnet_lrn data=cifar10
  inspect    check a data set for duplicates, leaks and sizes: alexnet-exp inspect data=folder data.root=FOLDER
  evaluate   score a checkpoint or an ensemble: alexnet-exp evaluate outputs/runs/RUN
  predict    classify images: alexnet-exp predict outputs/runs/RUN photos/
  figures    show what a network has learned: alexnet-exp figures outputs/runs/RUN
  prepare    write images as chunks for streaming, or decode them once: alexnet-exp prepare data.root=FOLDER out=chunks
  benchmark  measure speed on this machine: alexnet-exp benchmark step
  export     convert a network for another runtime: alexnet-exp export outputs/runs/RUN format=onnx
  compare    compare runs: alexnet-exp compare outputs/runs
  reproduce  run published results again: alexnet-exp reproduce convnet_80sec seeds=3
  dashboard  set up the dashboard of a W&B project: alexnet-exp dashboard ENTITY/PROJECT
  models     list the networks, or the layers of one: alexnet-exp models alexnet_lrn
"""


def main(argv: list[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: The verb and its arguments; None for sys.argv.

    Returns:
        Exit code: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM or SIGUSR1.
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
    before_torch()
    try:
        os.getcwd()
    except OSError:
        print("error: The current folder has been removed: cd to one that exists.", file=sys.stderr)
        return 1
    try:
        run = _train if arguments[0] == "train" else partial(_run, arguments[0])
        return run(arguments[1:])
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 1


def _unknown_verb(word: str) -> str:
    from alexnet_exp.config.words import VERBS as MEANT

    if word.startswith("-") or "=" in word:
        return f"{word!r} is not a verb: put one first, as in alexnet-exp train {word}."
    close = f" Did you mean {MEANT[word.lower()]}?" if word.lower() in MEANT else nearest(word.lower(), VERBS)
    return f"There is no verb {word!r}.{close}"


def _train(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> Any:
        from alexnet_exp.config.checks import check_config, check_typed
        from alexnet_exp.runs.train.resume import resumed_settings

        settings = resumed_settings(config, overrides)
        if settings is None:
            return None
        is_new = settings[0] is config
        config, overrides = settings
        check_config(config)
        if is_new:
            check_typed(config["model"], overrides)
        # It imports torch: the checks come first, since they answer at once.
        from alexnet_exp.runs.train.command import train

        return train(config, overrides, run_dir, command)

    from alexnet_exp.runs.train.offline import with_weights_at_hand
    from alexnet_exp.runs.train.resume import resumed_arguments
    from alexnet_exp.training.launch.external import check_processes
    from alexnet_exp.training.launch.signals import hold_early

    if not {"-m", "--multirun"} & set(arguments):
        hold_early()
    check_processes(arguments)
    arguments = with_weights_at_hand(arguments)
    command = shell_command([*_program(), *arguments])
    return run_hydra("train", task, resumed_arguments(arguments))


def _program() -> list[str]:
    script = Path(sys.argv[0])  # under python -m, a file of this package
    ours = script.name == "__main__.py" or script.resolve().is_relative_to(Path(__file__).parent)
    return ["python", script.name] if script.suffix == ".py" and not ours else ["alexnet-exp", "train"]


def _run(name: str, arguments: list[str]) -> int:
    """Run any verb except train."""
    from alexnet_exp.training.launch.signals import stopping_on_signals

    codes: list[int] = []

    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        given = {"config": config, "overrides": overrides, "run_dir": run_dir, "command": command}
        with stopping_on_signals():
            returned = _function(name)(*(given[key] for key in verb.takes))
        codes.append(returned if isinstance(returned, int) else 0)

    verb = VERBS[name]
    command = shell_command(["alexnet-exp", name, *arguments])
    return run_hydra(name, task, verb.rewrite(arguments), verb.bare_words) or max(codes, default=0)


def _function(verb: str) -> Callable[..., Any]:
    """Import the function of a verb: runs/VERB.py or runs/VERB/command.py, under the verb's name."""
    module = import_module(f"alexnet_exp.runs.{verb}")
    if hasattr(module, "__path__"):
        module = import_module(f"{module.__name__}.command")
    function: Callable[..., Any] = getattr(module, verb)
    return function


def _appending(arguments: list[str]) -> list[str]:
    """Let `data.root=DIR` apply to the checkpoint's own data set unless another is chosen."""
    if "data" in assigned(arguments):
        return arguments
    return [f"+{argument}" if argument.startswith("data.") else argument for argument in arguments]


def _measuring(arguments: list[str]) -> list[str]:
    """Turn step,startup into a list: Hydra would read it as a sweep.

    Raises:
        UserError: For a benchmark that moved to benchmarks/.
    """
    settings = [a for a in arguments if "=" in a and key_of(a) not in ("what", "baseline")]
    keys = {parse(setting).group for setting in settings}
    words = [a for before, a in pairwise(["", *arguments]) if a not in settings and before[:1] != "-"]
    named = re.findall(r"\w+", " ".join(words))
    scripts = [script for script in ("baseline", "data", "lrn", "overhead") if script in named]
    if not scripts and keys & {"lrn", "workers"}:  # settings that only these scripts have
        scripts = ["lrn" if "lrn" in keys else "data"]
    if scripts:
        commands = [shell_command(["python", f"benchmarks/{script}.py", *settings]) for script in scripts]
        raise UserError(
            f"benchmark {', '.join(scripts)} moved to scripts in the repository: run {' and '.join(commands)}"
        )
    return [re.sub(r"^(what=)?(\w+(,\w+)+)$", r"what=[\2]", argument) for argument in arguments]


def _naming_the_kind(arguments: list[str]) -> list[str]:
    """Turn `data=` into `data.kind=`: not the config group of training, only how to find images."""
    return [re.sub(r"^data=(?=\w+$)", "data.kind=", argument) for argument in arguments]


@dataclass(frozen=True)
class Verb:
    """How a command line maps to the arguments of a verb's function; see `_function`.

    An int that the function returns is the exit code.

    Args:
        takes: Its arguments: some of config, overrides, run_dir and command.
        bare_words: Keys for words without '=', in order.
        rewrite: Applied to the command line first.
    """

    takes: tuple[str, ...]
    bare_words: tuple[str, ...] = ()
    rewrite: Callable[[list[str]], list[str]] = list


_FILES = ("config", "run_dir", "command")  # of verbs that write files
_ALL = ("config", "overrides", "run_dir", "command")  # of verbs that compose a second config
VERBS = {
    "train": Verb(_ALL),
    "benchmark": Verb(_ALL, ("what",), _measuring),
    "compare": Verb(_FILES, ("runs...",)),
    "dashboard": Verb(_FILES, ("project",)),
    "evaluate": Verb(_ALL, ("ckpt...",), _appending),
    "export": Verb(_FILES, ("ckpt",)),
    "figures": Verb(_ALL, ("ckpt",), _appending),
    "inspect": Verb(_FILES),
    "models": Verb(("config",), ("name",)),
    "predict": Verb(_FILES, ("ckpt", "images...")),
    "prepare": Verb(("config",), (), _naming_the_kind),
    "reproduce": Verb(_ALL, ("names...",)),
}


def run_hydra(
    config_name: str, task: Callable[..., Any], arguments: list[str], bare_words: tuple[str, ...] = ()
) -> int:
    """Compose conf/`config_name`.yaml with the arguments, and run a task with it.

    Args:
        config_name: Primary configuration.
        task: Called with the settings as plain values, the overrides, and the run directory.
        arguments: As typed.
        bare_words: Keys for words without '=', in order.

    Returns:
        Exit code.
    """
    import hydra

    from alexnet_exp.config.compose import conf_dir, register
    from alexnet_exp.config.hydra_internals import MAIN
    from alexnet_exp.training.launch.signals import Stopped

    failures: list[Exception] = []
    register()
    typed, sys.argv = sys.argv, [sys.argv[0], *prepare(arguments, bare_words, config_name)]
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own traceback and exits
    app = hydra.main(config_path=str(conf_dir()), config_name=config_name, **MAIN)
    try:
        app(_reporting(config_name, task, failures, show_all))()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        if config_name != "train":  # train has printed how to resume
            print("interrupted" if stop.exit_code == 130 else stop, file=sys.stderr)
        return stop.exit_code
    except Exception as error:
        if error not in failures:
            _show(of_composing(error, arguments), config_name, show_all)
        return 1
    finally:
        sys.argv = typed
        if not show_all:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    return 1 if failures else 0


def _reporting(
    verb: str, task: Callable[..., Any], failures: list[Exception], show_all: bool
) -> Callable[[Any], Any]:
    """Wrap a task for Hydra: pass plain settings, print errors where they occur, and collect them."""

    def wrapped(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from alexnet_exp.config.compose import chosen_files, plain

        app = HydraConfig.get()
        run_dir = Path(app.runtime.output_dir)
        try:
            if app.mode == RunMode.RUN:
                _check_no_sweep(app)
            config = plain(cfg)
            if verb == "train":  # compare and dashboards group runs by the chosen yamls
                config["choices"] = chosen_files(app)
            return task(config, _typed(app), run_dir)
        except Exception as error:
            failures.append(error)
            _show(error, verb, show_all)
            if app.mode == RunMode.MULTIRUN:
                raise  # the launcher marks the job as failed and runs the next
            return None
        finally:
            _discard_empty(run_dir)
            if app.mode == RunMode.RUN and "hydra.run.dir" not in str(app.overrides.hydra):
                _discard_empty(run_dir.parent)  # our own folder, runs/

    return wrapped


def _typed(app: Any) -> list[str]:
    """Return the overrides as typed; item access would resolve `KEY=${OTHER}` within Hydra's own settings."""
    from omegaconf import OmegaConf

    typed = OmegaConf.to_container(app.overrides.task, resolve=False)
    assert isinstance(typed, list)
    return [str(override) for override in typed]


def _check_no_sweep(app: Any) -> None:
    """Reject sweep=NAME without -m: its values would silently be ignored."""
    typed = {key_of(override) for override in _typed(app)}
    left_out = [key for key in app.sweeper.get("params") or {} if key not in typed]
    if left_out:
        raise UserError(f"This sweeps over {', '.join(left_out)}: add -m to run all values.")


def _discard_empty(directory: Path) -> None:
    """Remove the empty directory of a run that was rejected before it began."""
    if directory != Path.cwd():
        with contextlib.suppress(OSError):  # not empty, or missing
            directory.rmdir()


def _show(error: Exception, verb: str, show_all: bool) -> None:
    """Print one line for a user error, a traceback for a bug."""
    message = explain(error, verb)
    if message is None or show_all:
        import traceback

        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    if message is not None:
        print(f"error: {printable(redact(message))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
