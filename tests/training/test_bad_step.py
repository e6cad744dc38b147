"""A step whose loss or gradient is not finite is named, kept, and can be made again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alexnet_exp.data.loaders import Batch
from alexnet_exp.errors import UserError
from alexnet_exp.runs.bad_step import main, make_again
from alexnet_exp.runs.train import train
from tests.training.small_runs import DROPOUT, checkpoint, run, settings
from tests.training.test_classifier import classifier, images

# What torch says to whoever switches it on, and where the forward pass was that it complains of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled"),
    pytest.mark.filterwarnings("ignore:Error detected in"),
]
DIVERGES = ["optimizer.lr=1e4", "trainer.max_epochs=2", "scheduler=none", "test=false"]


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose loss stops being finite, and what it said."""
    folder = tmp_path_factory.mktemp("diverged")
    with pytest.raises(UserError) as caught:
        run(folder / "run", *DIVERGES, *DROPOUT, "augment=mixup", "label_smoothing=0.1")
    return folder / "run", str(caught.value)


def test_the_error_names_step_images_and_file(diverged: tuple[Path, str]) -> None:
    run_dir, said = diverged
    kept = torch.load(run_dir / "bad_step.pt", weights_only=True)
    bad = [n for n, loss in zip(kept["names"], kept["losses"], strict=False) if not loss.isfinite()]
    assert bad and all(name.startswith("train image ") for name in bad)
    assert f"The loss is not finite at step {kept['step']} (epoch {kept['epoch']}), with {bad[0]}" in said
    assert f"python -m alexnet_exp.runs.bad_step {run_dir / 'bad_step.pt'} makes the step again" in said
    assert "\n" not in said
    assert all(name in (run_dir / "train.log").read_text() for name in bad)


def test_the_file_makes_the_step_again(diverged: tuple[Path, str]) -> None:
    again = make_again(diverged[0] / "bad_step.pt")
    assert not again.recorded.isfinite().all()
    torch.testing.assert_close(again.losses.detach(), again.recorded, rtol=0, atol=0, equal_nan=True)
    assert again.first is not None and again.first.split()[0] in ("weights", "output")


def test_the_command_says_what_the_step_was(
    diverged: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(diverged[0] / "bad_step.pt")]) == 0
    out = capsys.readouterr().out
    assert "not finite first: " in out and "train image " in out


def test_another_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "test=false")
    assert main([str(tmp_path / "checkpoints" / "last.ckpt")]) == 1
    assert capsys.readouterr().err.endswith("holds no step: bad_step.pt of a run is wanted.\n")
    assert main([str(tmp_path / "nothing.pt")]) == 1
    assert capsys.readouterr().err.startswith("error: There is no checkpoint")


class Brittle(nn.Module):
    """A network whose loss stays finite, and whose gradient does not once an image is black enough."""

    def __init__(self, input_size: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(in_channels * input_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.last(x.flatten(1))
        return logits + (0 * logits).sqrt()  # the slope of a root at zero is infinite


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
    with pytest.raises(UserError, match=r"if you trust it, add trust=\["):
        make_again(tmp_path / "bad_step.pt")
    again = make_again(tmp_path / "bad_step.pt", (__name__,))
    assert again.first == "gradient of last.bias" or again.first == "gradient of last.weight"
    assert torch.equal(again.losses.detach(), again.recorded)


def test_detect_anomaly_leaves_a_healthy_run_as_it_is(tmp_path: Path) -> None:
    run(tmp_path / "a", "trainer.detect_anomaly=true", "test=false")
    run(tmp_path / "b", "test=false")
    a, b = (checkpoint(tmp_path / name)["state_dict"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_on_an_accelerator_the_images_of_the_first_bad_step_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: Any = classifier()
    # There is no accelerator here: the processor's losses are taken as if looking at them took long.
    monkeypatch.setattr("alexnet_exp.training.classifier._waits_for_nothing", lambda loss: False)
    x, y = images(6)
    for step, (first, last) in enumerate([(0, 2), (2, 4), (4, 6)]):
        made._trainer.global_step = step
        part = x[first:last] if step == 0 else x[first:last] / 0
        made.training_step(Batch(part, y[first:last], torch.arange(first, last), 2, 2), 0)
    with pytest.raises(
        UserError, match=r"step 2 \(epoch 0\), with image 2, image 3; .*detect_anomaly=true comes"
    ):
        made.check_finite()


def test_a_full_disk_does_not_hide_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alexnet_exp.training.bad_step.torch.save", full)
    with pytest.raises(UserError, match="The loss is not finite at step") as caught:
        run(tmp_path, *DIVERGES)
    assert "bad_step.pt" not in str(caught.value) and not (tmp_path / "bad_step.pt").exists()


def test_the_module_can_be_run_as_the_message_says(diverged: tuple[Path, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_exp.runs.bad_step"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "RUN_DIR/bad_step.pt" in done.stdout and done.stderr == ""
