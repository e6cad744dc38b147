"""The settings of `alexnet-exp benchmark` beside those of the run that it measures; without torch, for quick errors."""

from __future__ import annotations

from typing import Any

from alexnet_exp.config.schema import (
    Rule,
    at_least,
    choice,
    flag,
    group,
    list_of,
    name,
    nested,
    null,
    setting,
)


def several(rule: Rule) -> Rule:
    return rule | Rule("a list of them", lambda v: v != [] and list_of(rule).legal(v))


def as_list(value: Any) -> list[Any]:
    """Return what `several` accepts as a list."""
    return value if isinstance(value, list) else [value]


@group
class Step:
    """What is combined in `benchmark step`."""

    model: str | list[str] | None = setting(several(name) | null)
    precision: str | list[str] = setting(several(choice("32-true", "bf16-mixed", "16-mixed")))
    layout: str | list[str] = setting(several(choice("contiguous", "channels_last")))
    compile: bool | list[bool] = setting(several(flag))
    batch_size: int | str | list[int | str] | None = setting(several(at_least(1) | choice("auto")) | null)


@group
class Benchmark:
    """Keys of conf/benchmark.yaml; the choices of its `what` depend on the measurements."""

    what: str | list[str]
    repeats: int = setting(at_least(1))
    steps: int = setting(at_least(1))
    threads: int | None = setting(at_least(1) | null)
    device: str = setting(choice("auto", "cpu", "cuda"))
    step: Step = nested(Step)
