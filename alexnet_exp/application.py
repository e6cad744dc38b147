"""From words to settings: a verb's words go through Hydra, and what goes wrong is said in one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexnet_exp.config.command_line import prepare
from alexnet_exp.config.messages import explain, of_composing
from alexnet_exp.errors import UserError, printable
from alexnet_exp.tracking.redact import redact


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
    typed, sys.argv = sys.argv, [sys.argv[0], *prepare(arguments, bare_words, config_name)]
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us whole, and we say them in one line
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    try:
        app(_reporting(config_name, task, failures, show_all))()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        if config_name != "train":  # which has said how to resume
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
    """Wrap a task for Hydra: plain settings in, errors shown where they happen and kept."""

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
            if verb == "train":  # the files of conf/ that were chosen, which compare and dashboards go by
                config["choices"] = chosen_files(app)
            return task(config, _typed(app), run_dir)
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


def _typed(app: Any) -> list[str]:
    """Return the settings as typed: reading one by one would resolve `KEY=${OTHER}` among the settings of Hydra."""
    from omegaconf import OmegaConf

    typed = OmegaConf.to_container(app.overrides.task, resolve=False)
    assert isinstance(typed, list)
    return [str(override) for override in typed]


def _check_no_sweep(app: Any) -> None:
    """Refuse a file of conf/sweep without -m: the values that it tries would silently be left out."""
    typed = {override.partition("=")[0].lstrip("+~") for override in _typed(app)}
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

        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    if message is not None:
        print(f"error: {printable(redact(message))}", file=sys.stderr)
