"""What a W&B run says of itself at its start: settings, environment, code, and what each metric is drawn over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_exp.tracking.code_state import code_state
from alexnet_exp.tracking.environment import versions
from alexnet_exp.tracking.redact import redact

if TYPE_CHECKING:
    from wandb import Run

X_AXES = {
    "train/*": "epoch",
    "val/*": "epoch",
    "test/*": "epoch",
    "train/loss_step": "step",
    "lr": "step",
    "images_per_second": "step",
}


def describe(run: Run, config: dict[str, Any], save_code: bool) -> None:
    """Record what is known before the first step, without secrets.

    Args:
        run: Just begun.
        config: The resolved configuration.
        save_code: Whether the uncommitted changes of the checkout are kept.
    """
    code = code_state()
    environment: dict[str, Any] = {**versions()}
    if code is not None:
        environment |= {"git_commit": code.commit, "git_dirty": code.dirty}
    run.config.update({**redact(config), "_environment": environment}, allow_val_change=True)
    if code is not None and code.diff and save_code:
        path = Path(run.dir) / "code.diff"
        path.write_text(code.diff, encoding="utf-8")
        run.save(str(path), base_path=run.dir, policy="now")
    for axis in ("epoch", "step"):
        run.define_metric(axis, hidden=True)
    for metric, axis in X_AXES.items():
        run.define_metric(metric, step_metric=axis)
