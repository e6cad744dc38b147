"""Freeze layers, for some epochs or for the whole run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from alexnet_exp.errors import UserError
from alexnet_exp.training.layer_names import match_layers
from alexnet_exp.training.lightning_internals import can_rewrap, epochs_ended, rewrap
from alexnet_exp.training.optim.build import start_momentum

log = logging.getLogger(__name__)


class FreezeLayers(Callback):
    """Keep layers as they are: no gradients, no updates, and batch norm and dropout as in evaluation.

    The optimizer holds the parameters of frozen layers from the start. It skips whatever has no gradient, so neither
    momentum nor weight decay moves them, and parameter groups, schedules and checkpoints are the same before and
    after the layers thaw. Whether they are frozen depends on the number of finished epochs alone, so a resumed run
    needs no state of its own.

    Args:
        network: The network to be trained.
        keys: Layers or blocks of layers, as `match_layers` takes them; everything inside them is frozen, too.
        epochs: Thaw after this many epochs; None: never.

    Raises:
        UserError: If a layer does not exist, or nothing would be frozen, or nothing would be left to train.
    """

    def __init__(self, network: nn.Module, keys: Sequence[str], epochs: int | None) -> None:
        modules = [name for name, _ in network.named_modules() if name]
        found = match_layers(keys, modules, "freeze=")
        self.keys, self.epochs = list(keys), epochs
        # By name: trainer.sync_batchnorm replaces modules before training starts.
        self.names = [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]
        self._is_frozen = False
        self._parameters: list[nn.Parameter] = []
        self._silenced: list[str] = []  # modules in evaluation mode because of this callback
        inside = {id(p) for name in self.names for p in network.get_submodule(name).parameters()}
        trained = [p for p in network.parameters() if p.requires_grad]
        self.num_frozen = sum(p.numel() for p in trained if id(p) in inside)
        self.num_parameters = sum(p.numel() for p in network.parameters())
        if not inside and not any(list(network.get_submodule(name).buffers()) for name in self.names):
            raise UserError(
                f"freeze=[{','.join(keys)}] names only layers without weights: there is nothing to freeze."
            )
        if all(id(p) in inside for p in trained):
            raise UserError(f"freeze=[{','.join(keys)}] leaves nothing to train: leave out the last layer.")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not can_rewrap(trainer):
            raise UserError(
                f"freeze does not support {type(trainer.strategy).__name__}: set trainer.strategy=ddp."
            )
        if self.epochs is None:
            # configure_optimizers refuses batches too small for any batch norm that normalises by its batch.
            self._evaluate(_network(pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train(_network(pl_module))  # until training starts, since Lightning warns of this mode

    # Both: an epoch that is resumed in the middle does not start again.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, _network(pl_module))
        if self._is_frozen:
            log.info("%s.", self._described(trainer.max_epochs))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        was_frozen = self._is_frozen
        self._update(trainer, _network(pl_module))
        if was_frozen and not self._is_frozen:
            log.info("Thawed after %s: %s.", _epochs(epochs_ended(trainer)), ", ".join(self.keys))

    def freeze(self, network: nn.Module) -> None:
        """Freeze the layers of a network."""
        self._evaluate(network)
        inside = [p for name in self.names for p in network.get_submodule(name).parameters()]
        # A custom network may have frozen some itself: those do not thaw.
        self._parameters = [p for p in inside if p.requires_grad]
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def thaw(self, network: nn.Module) -> None:
        """Undo `freeze`."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._parameters = []
        self._train(network)

    def _update(self, trainer: Trainer, network: nn.Module) -> None:
        wanted = self.epochs is None or epochs_ended(trainer) < self.epochs
        if wanted == self._is_frozen:
            return
        if wanted:
            self.freeze(network)
        else:
            self.thaw(network)
            start_momentum(trainer.optimizers[0])
        self._is_frozen = wanted
        rewrap(trainer)

    def _evaluate(self, network: nn.Module) -> None:
        """Put the layers in evaluation mode; Lightning keeps the mode of every module across validation."""
        modules = dict(network.named_modules())
        inside = [name for name in modules if any(f"{name}.".startswith(f"{outer}.") for outer in self.names)]
        self._silenced = [name for name in inside if modules[name].training]
        for name in self._silenced:
            modules[name].training = False

    def _train(self, network: nn.Module) -> None:
        for name in self._silenced:
            network.get_submodule(name).training = True
        self._silenced = []

    def _described(self, max_epochs: int | None) -> str:
        lasts = self.epochs is None or (max_epochs not in (None, -1) and self.epochs >= max_epochs)
        how_long = "the whole run" if lasts else _epochs(self.epochs)
        what = f"{', '.join(self.keys)} ({self.num_frozen:,} of {self.num_parameters:,} parameters)"
        return f"Frozen for {how_long}: {what}"


def _epochs(count: int | None) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def _network(module: LightningModule) -> nn.Module:
    network = module.model
    assert isinstance(network, nn.Module)
    return network
