"""The command line: `alexnet-exp VERB key=value ...`."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexnet_exp.allocator import keep_freed_memory
from alexnet_exp.config.command_line import prepare
from alexnet_exp.config.messages import explain, of_composing
from alexnet_exp.errors import UserError, nearest, printable
from alexnet_exp.utf8 import use_utf8

USAGE = """\
alexnet-exp VERB [key=value ...]     settings and flags of a verb: alexnet-exp VERB --help

  train      train and test a network: alexnet-exp train model=alexnet_lrn data=cifar10
  evaluate   scores of a checkpoint or an ensemble: alexnet-exp evaluate outputs/runs/RUN
  predict    name what is in images: alexnet-exp predict outputs/runs/RUN photos/
  figures    see what a network has learned: alexnet-exp figures outputs/runs/RUN
  prepare    make images ready for streaming, or decode them once: alexnet-exp prepare data.root=FOLDER out=chunks
  benchmark  measure speed on this machine: alexnet-exp benchmark lrn
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
    if arguments[0] == "--version":
        from alexnet_exp.version import __version__

        print(__version__)
        return 0
    if arguments[0] not in VERBS:
        close = nearest(arguments[0], VERBS)
        print(
            f"error: There is no verb {arguments[0]!r}.{close} alexnet-exp --help lists all.", file=sys.stderr
        )
        return 1
    keep_freed_memory()
    try:
        return VERBS[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


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
    from alexnet_exp.training.devices import check_processes

    check_processes(arguments)
    command = shlex.join([*_program(), *arguments])
    return run_hydra("train", task, resumed_arguments(arguments))


def _models(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.models import models

        models(**config)

    return run_hydra("models", task, arguments, bare_words=("name",))


def _benchmark(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.benchmark import benchmark

        benchmark(config, overrides, run_dir, shlex.join(["alexnet-exp", "benchmark", *arguments]))

    # To Hydra data,step is a sweep; here it is a list.
    listed = [re.sub(r"^(what=)?(\w+(,\w+)+)$", r"what=[\2]", argument) for argument in arguments]
    return run_hydra("benchmark", task, listed, bare_words=("what",))


def _compare(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.compare import compare

        compare(config, run_dir, shlex.join(["alexnet-exp", "compare", *arguments]))

    return run_hydra("compare", task, arguments, bare_words=("runs...",))


def _export(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.export import export

        export(config, run_dir, shlex.join(["alexnet-exp", "export", *arguments]))

    return run_hydra("export", task, arguments, bare_words=("ckpt",))


def _evaluate(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.evaluate import evaluate

        evaluate(config, overrides, run_dir, shlex.join(["alexnet-exp", "evaluate", *arguments]))

    return run_hydra("evaluate", task, _appending(arguments), bare_words=("ckpt...",))


def _figures(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.figures import figures

        figures(config, overrides, run_dir, shlex.join(["alexnet-exp", "figures", *arguments]))

    return run_hydra("figures", task, _appending(arguments), bare_words=("ckpt",))


def _dashboard(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.dashboard import dashboard

        dashboard(config, run_dir, shlex.join(["alexnet-exp", "dashboard", *arguments]))

    return run_hydra("dashboard", task, arguments, bare_words=("project",))


def _predict(arguments: list[str]) -> int:
    codes: list[int] = []

    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.predict import predict

        codes.append(predict(config, run_dir, shlex.join(["alexnet-exp", "predict", *arguments])))

    return run_hydra("predict", task, arguments, bare_words=("ckpt", "images...")) or max(codes, default=0)


def _prepare(arguments: list[str]) -> int:
    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        from alexnet_exp.runs.prepare import prepare

        prepare(config)

    # The kind of data is a group for training; of it only the way to find images is needed here.
    kinds = [re.sub(r"^data=(?=\w+$)", "data.kind=", argument) for argument in arguments]
    return run_hydra("prepare", task, kinds)


def _appending(arguments: list[str]) -> list[str]:
    """Let `data.root=DIR` change the checkpoint's own data set where no other is chosen."""
    if any(argument.startswith("data=") for argument in arguments):
        return arguments
    return [f"+{argument}" if argument.startswith("data.") else argument for argument in arguments]


def _program() -> list[str]:
    script = Path(sys.argv[0])  # of python -m, a file of this package
    ours = script.name == "__main__.py" or script.resolve().is_relative_to(Path(__file__).parent)
    return ["python", script.name] if script.suffix == ".py" and not ours else ["alexnet-exp", "train"]


def run_hydra(
    config_name: str, task: Callable[..., Any], arguments: list[str], bare_words: tuple[str, ...] = ()
) -> int:
    """Compose conf/`config_name`.yaml with the arguments, and run a task with it.

    Args:
        config_name: Primary configuration.
        task: Called with the settings as plain values, the overrides, and the run directory.
        arguments: As typed.
        bare_words: Keys that words without '=' are values of, in this order.

    Returns:
        Exit code.
    """
    import hydra

    from alexnet_exp.config.compose import conf_dir, register
    from alexnet_exp.training.stopping import Stopped

    failures: list[Exception] = []
    register()
    typed, sys.argv = sys.argv, [sys.argv[0], *prepare(arguments, bare_words)]
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us whole, and we say them in one line
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    try:
        app(_reporting(config_name, task, failures, show_all))()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
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
    """Wrap a task for Hydra: plain settings in, errors shown where they happen and kept."""

    def wrapped(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from alexnet_exp.config.compose import plain

        app = HydraConfig.get()
        run_dir = Path(app.runtime.output_dir)
        try:
            if app.mode == RunMode.RUN:
                _check_no_sweep(app)
            return task(plain(cfg), list(app.overrides.task), run_dir)
        except Exception as error:
            failures.append(error)
            _show(error, verb, show_all)
            if app.mode == RunMode.MULTIRUN:
                raise  # the launcher marks the job as failed and goes on with the next
            return None
        finally:
            _discard_empty(run_dir)
            if app.mode == RunMode.RUN and "hydra.run.dir" not in str(app.overrides.hydra):
                _discard_empty(run_dir.parent)  # our own folder, runs/

    return wrapped


def _check_no_sweep(app: Any) -> None:
    """Refuse a file of conf/sweep without -m: the values that it tries would silently be left out."""
    typed = {override.partition("=")[0].lstrip("+~") for override in app.overrides.task}
    left_out = [key for key in app.sweeper.get("params") or {} if key not in typed]
    if left_out:
        raise UserError(f"This tries several values of {', '.join(left_out)}: say -m to run them all.")


def _discard_empty(directory: Path) -> None:
    """Remove a run's directory in which nothing was written: a run refused before it began."""
    if directory != Path.cwd():
        with contextlib.suppress(OSError):  # it holds something, or is not there
            directory.rmdir()


def _show(error: Exception, verb: str, show_all: bool) -> None:
    """Print one line for a mistake of the user's, a traceback for one of ours."""
    message = explain(error, verb)
    if message is None or show_all:
        import traceback

        traceback.print_exception(error)
    if message is not None:
        print(f"error: {printable(message)}", file=sys.stderr)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "benchmark": _benchmark,
    "compare": _compare,
    "dashboard": _dashboard,
    "evaluate": _evaluate,
    "export": _export,
    "figures": _figures,
    "predict": _predict,
    "prepare": _prepare,
    "models": _models,
}

if __name__ == "__main__":
    sys.exit(main())
