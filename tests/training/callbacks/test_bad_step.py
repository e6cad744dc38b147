"""A step whose loss or gradient is not finite is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alexnet_exp.data.loaders import Batch
from alexnet_exp.errors import UserError
from alexnet_exp.runs.train.command import train
from tests.training.small_runs import DROPOUT, checkpoint, run, settings
from tests.training.test_classifier import classifier, images

# torch's warnings: that detection is on, and the traceback of the failing forward pass.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled"),
    pytest.mark.filterwarnings("ignore:Error detected in"),
]
DIVERGES = ["optimizer.lr=1e4", "trainer.max_epochs=2", "scheduler=none", "test=false"]


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose loss stops being finite, and its error message."""
    folder = tmp_path_factory.mktemp("diverged")
    with pytest.raises(UserError) as caught:
        run(folder / "run", *DIVERGES, *DROPOUT, "augment=mixup", "label_smoothing=0.1")
    return folder / "run", str(caught.value)


def test_the_error_names_step_and_images(diverged: tuple[Path, str]) -> None:
    run_dir, said = diverged
    found = re.search(r"The loss is not finite at step (\d+) \(epoch \d\), with (train image \d+)", said)
    assert found and "resume=RUN_DIR trainer.detect_anomaly=true repeats it" in said
    assert "\n" not in said
    logged = (run_dir / "train.log").read_text()
    assert f"The images of step {found[1]}: " in logged and found[2] in logged


class Brittle(nn.Module):
    """A network whose loss is finite, but not its gradient."""

    def __init__(self, input_size: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(in_channels * input_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.last(x.flatten(1))
        return logits + (0 * logits).sqrt()  # the derivative of sqrt at 0 is infinite


def test_detect_anomaly_finds_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    config, typed = settings("trainer.detect_anomaly=true", "test=false")
    size = config["data"]["image_size"]
    config["model"] = {
        "_target_": f"{__name__}.Brittle",
        "input_size": size,
        "in_channels": 3,
        "num_classes": 10,
    }
    with pytest.raises(
        UserError, match=r"The gradient of \w+Backward0 is not finite at step 1 \(epoch 0\), with"
    ):
        train(config, typed, tmp_path, "python train.py")


def test_detect_anomaly_does_not_change_a_healthy_run(tmp_path: Path) -> None:
    run(tmp_path / "a", "trainer.detect_anomaly=true", "test=false")
    run(tmp_path / "b", "test=false")
    a, b = (checkpoint(tmp_path / name)["state_dict"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_images_of_the_first_bad_step_on_an_accelerator_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: Any = classifier()
    # Without an accelerator: pretend that reading the loss on CPU needs a sync.
    monkeypatch.setattr("alexnet_exp.training.classifier._reads_without_sync", lambda loss: False)
    x, y = images(6)
    for step, (first, last) in enumerate([(0, 2), (2, 4), (4, 6)]):
        made._trainer.global_step = step
        part = x[first:last] if step == 0 else x[first:last] / 0
        made.training_step(Batch(part, y[first:last], torch.arange(first, last), 2, 2), 0)
    with pytest.raises(
        UserError, match=r"step 2 \(epoch 0\), with image 2, image 3; .*detect_anomaly=true repeats"
    ):
        made.check_finite()


def test_the_removed_replay_command_names_its_replacement() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_exp.runs.bad_step", "bad_step.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and done.stdout == "" and "resume=RUN_DIR trainer.detect_anomaly=true" in line
