"""The network of a checkpoint, built again from the settings that the checkpoint carries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from alexnet_exp.errors import UserError
from alexnet_exp.targets import build, check_trust
from alexnet_exp.tracking.redact import REDACTED, hidden_keys
from alexnet_exp.training.restore import first_mismatch


def network_of(checkpoint: dict[str, Any], trust: Iterable[str] = ()) -> nn.Module:
    """Build the network of a checkpoint with its weights (the averaged ones where the run averaged them).

    Raises:
        UserError: If it is of a class that is neither ours nor trusted, or the weights do not fit it.
    """
    config = checkpoint["config"]["model"]
    check_trust(config, trust, "model")
    if hidden := hidden_keys({"model": config}):
        raise UserError(
            f"The checkpoint has {hidden[0]} as {REDACTED}, as an older version kept it: train it on with "
            f"resume=RUN {hidden[0]}=VALUE, which writes it down."
        )
    weights = {
        k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")
    }
    if str(config.get("_target_")).startswith("alexnet_exp."):
        _check_sizes(config, checkpoint, weights)
    # The network's first weights are drawn, and the caller's randomness is not ours.
    with torch.random.fork_rng(devices=[]):
        model = _built(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The checkpoint's weights do not fit its own network: {reason}") from error
    return model


def _check_sizes(config: dict[str, Any], checkpoint: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Refuse a network that its own weights do not fit, before there is memory for it: it may claim any size.

    Raises:
        UserError: Says what does not fit.
    """
    recorded, classes = checkpoint["preprocessing"], len(checkpoint["classes"])
    with torch.device("meta"):
        model = _built(config).eval()
        if problem := first_mismatch(model.state_dict(), weights):
            raise UserError(f"The checkpoint's weights do not fit its own network: {problem}.")
        size, channels = recorded["image_size"], recorded["channels"]
        try:
            found = model(torch.empty(1, channels, size, size)).shape[1:]
        except Exception as error:  # torch's own, of many kinds
            reason = f"{error} ".splitlines()[0].strip().rstrip(".")
            raise UserError(
                f"The checkpoint's network cannot take its images of {size} pixels ({reason})."
            ) from error
    if tuple(found) != (classes,):
        raise UserError(
            f"The checkpoint names {classes} classes, and its network gives {list(found)} values."
        )


def _built(config: dict[str, Any]) -> nn.Module:
    try:
        model = build(config)
    except UserError:
        raise
    except Exception as error:  # the settings are anybody's, and have not been checked
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"The checkpoint's network cannot be built ({reason}).") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"The checkpoint's model is no network but {config['_target_']}.")
    return model
