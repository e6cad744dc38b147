"""Run a measurement of this folder as a command: `alexnet-exp benchmark` with that measurement only.

Scripts import this module first: allocator and threads must be set up before torch is imported.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever is installed

from alexnet_exp.cli import run_hydra
from alexnet_exp.config.schema import Rule
from alexnet_exp.errors import UserError
from alexnet_exp.runs.benchmark.command import benchmark
from alexnet_exp.startup import before_torch

if TYPE_CHECKING:
    from alexnet_exp.runs.benchmark.subject import Subject
    from alexnet_exp.runs.benchmark.timing import Row

before_torch()

Settings = Mapping[str, tuple[Any, Rule]]  # key -> (default, rule)


def run(
    measure: Callable[[Subject], list[Row]],
    settings: Settings | None = None,
    arguments: list[str] | None = None,
) -> int:
    """Run `alexnet-exp benchmark` with one measurement, the function measure_NAME of NAME.py.

    Args:
        measure: The measurement.
        settings: Additional settings of this script.
        arguments: Command-line arguments; None for those of the process.

    Returns:
        Exit code.
    """
    name, settings = measure.__name__.removeprefix("measure_"), settings or {}
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(sys.modules[measure.__module__].__doc__)
        print("All other settings are as in alexnet-exp benchmark.")
        return 0

    def task(config: dict[str, Any], overrides: list[str], run_dir: Path) -> None:
        command = shlex.join(["python", f"benchmarks/{name}.py", *arguments])
        rules = {key: rule for key, (_, rule) in settings.items()}
        benchmark(config, overrides, run_dir, command, {name: measure}, rules)

    try:
        return run_hydra(
            "benchmark", task, [*(f"+{key}={value}" for key, (value, _) in settings.items()), *arguments]
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
