"""The line of each epoch, and the table of layers before the first."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from alexnet_exp.models.summary import LayerRow
from alexnet_exp.training.callbacks.progress import Bar, print_summary


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("limits", "of"),
    [((9, -1), "5/9"), ((-1, 15), "5/8"), ((9, 15), "5/8"), ((6, 15), "5/6"), ((-1, -1), "5")],
)
def test_the_line_of_an_epoch_shows_the_measured_throughput(
    limits: tuple[int, int], of: str, resumed: bool
) -> None:
    out = io.StringIO()
    measured: Any = SimpleNamespace(images_per_second=128.0, latest=lambda: 64.0)
    bar = Bar(Console(file=out, width=200), step_log=measured)
    trainer: Any = SimpleNamespace(
        global_step=8, current_epoch=4, max_epochs=limits[0], max_steps=limits[1], num_training_batches=2,
        accumulate_grad_batches=1,
    )  # fmt: skip
    bar._trainer = trainer
    module: Any = SimpleNamespace(reported={"train/loss": 0.5})
    bar.on_train_start(trainer, module)
    if not resumed:  # Lightning skips this hook when resuming within an epoch
        bar.on_train_epoch_start(trainer, module)
    for batch in range(2):
        bar.on_train_batch_end(trainer, module, None, SimpleNamespace(global_size=64), batch)
    bar.on_train_epoch_end(trainer, module)
    bar.on_train_end(trainer, module)
    assert out.getvalue().split() == ["epoch", of, "train/loss", "0.5000", "128", "images/s"]


@pytest.mark.parametrize("width", [80, 50, 40])
def test_the_totals_of_the_layer_table_are_never_cut_off(width: int) -> None:
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, soft_wrap=True)
    rows = [
        LayerRow("features.conv2", "LocallyConnected2d", (256, 27, 27), 114_656, 447_897_600),
        LayerRow("features.conv2_relu", "ReLU", (256, 27, 27), 0, 0),
        LayerRow("classifier.fc6", "Linear", (4096,), 37_752_832, 37_748_736),
    ]
    print_summary(rows, screen)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert ["total", "37,867,488", "485,646,336"] in [line.split() for line in lines]
    assert ("LocallyConnected2d" in "".join(lines)) == (width == 80)
    assert max(map(len, lines[:-1])) <= width
