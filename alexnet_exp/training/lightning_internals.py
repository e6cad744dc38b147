"""What is switched off in Lightning by private names; tests/training/test_lightning_internals.py holds each of them."""

from __future__ import annotations

from lightning import Trainer


def leave_signals_to_us(trainer: Trainer) -> None:
    """Take Lightning's own handling of signals out of a trainer; training/stopping.py does it.

    Args:
        trainer: Not run yet.
    """
    # Its handler of SIGTERM calls a collective operation from inside the signal, and ranks hang in it.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # On several devices it asks before every step whether the first rank has had one, which waits for the device.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
