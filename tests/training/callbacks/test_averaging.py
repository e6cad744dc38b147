"""The moving average of the weights: same as torch's, on the training device, and without syncs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.swa_utils import AveragedModel

from alexnet_exp.training.callbacks.ema import MovingAverage, update
from alexnet_exp.training.lightning_internals import average_of


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    def learn(self) -> None:
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data += 1 if tensor.dtype == torch.long else torch.randn_like(tensor)


def training_on(device: str) -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), global_step=0)


def step(average: MovingAverage, trainer: Any, net: Net) -> None:
    trainer.global_step += 1
    for batch in range(2):  # the second only accumulates gradients: no step
        average.on_train_batch_end(trainer, net, None, None, batch)


def test_the_average_matches_torch_s_with_a_warmed_up_decay() -> None:
    net, average, trainer = Net(), MovingAverage(0.3), training_on("cpu")
    decays = {1: 2 / 11, 2: 3 / 12, 3: 0.3, 4: 0.3}  # by number of steps; 4/13 is more than 0.3
    reference = AveragedModel(
        net, avg_fn=lambda old, new, n: decays[int(n)] * old + (1 - decays[int(n)]) * new, use_buffers=True
    )
    average.setup(trainer, net, "fit")
    for _ in range(5):
        net.learn()
        step(average, trainer, net)
        reference.update_parameters(net)
    ours, torchs = average_of(average).state_dict(), reference.state_dict()
    counter = "module.layers.1.num_batches_tracked"  # torch's average of integers stays at its first value
    assert ours.pop(counter) == net.layers[1].num_batches_tracked == 5
    del torchs[counter]
    torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-6)


def test_the_average_lives_on_the_module_s_device_without_syncs() -> None:
    net, average, trainer = Net(), MovingAverage(0.9), training_on("meta")
    average.setup(trainer, net, "fit")
    net.to("meta")  # Lightning moves it only now; reading a meta tensor's value would fail
    step(average, trainer, net)
    step(average, trainer, net)
    assert {t.device.type for t in average_of(average).state_dict().values()} == {"meta"}


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_bfloat16_weights_are_averaged_in_float32(decay: float) -> None:
    average, current = [torch.tensor([1.0])], [torch.tensor([3.0], dtype=torch.bfloat16)]
    update(average, current, decay)
    torch.testing.assert_close(average, [torch.tensor([decay * 1.0 + (1.0 - decay) * 3.0])])


def test_checkpoints_use_lightning_s_key() -> None:
    assert MovingAverage(0.9).state_key == "EMAWeightAveraging"
