"""Resolve `auto` for this machine: precision, memory format and compilation, chosen once and recorded in config.yaml.

A resumed run reads them from there, so it keeps the same arithmetic even on a different machine.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alexnet_exp.config.groups import Settings
from alexnet_exp.config.schema import read
from alexnet_exp.models.layers import LocalResponseNorm, missing_compiler
from alexnet_exp.models.summary import LayerRow, layer_table
from alexnet_exp.targets import build
from alexnet_exp.tracking.log import log

# Compiling takes 10 s to a minute, which only pays off above this much arithmetic: about two minutes of training on a
# data-centre GPU, a quarter of an hour on two CPU cores. On CUDA, local response normalisation is always compiled: it
# takes seconds, and the eager version is slower than the rest of the training step.
_LONG_RUN_FLOPS = {"cuda": 1e16, "cpu": 2e14}

_CPU = Path("/proc/cpuinfo")
# Linux CPU flags (x86, then ARM) for the 16-bit instructions that oneDNN uses; any one of them is enough.
_INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def settle(config: dict[str, Any], device: torch.device, num_images: int) -> list[str]:
    """Replace every `auto` of precision, channels_last and compile.

    Args:
        config: Run settings with the network filled in; changed in place.
        device: Training device.
        num_images: Size of the training set, to estimate the length of the run.

    Returns:
        Non-default choices, one phrase each for the log; also what is missing where compiling would pay off.
    """
    choices, settings = settle_arithmetic(config, device), read(Settings, config)
    if settings.compile == "auto":
        wanted = _worth_compiling(settings, device, num_images)
        lacking = _missing_for_compile(device) if wanted else None
        config["compile"] = False if lacking else wanted
        if wanted:
            why = f" (compiling would pay off, but needs {lacking})" if lacking else ""
            choices.append(f"compile={str(config['compile']).lower()}{why}")
    return choices


def settle_arithmetic(config: dict[str, Any], device: torch.device) -> list[str]:
    """Replace `auto` of precision and channels_last.

    Args:
        config: Changed in place.
        device: Training device.

    Returns:
        See `settle`.
    """
    settings, choices = read(Settings, config), []
    precision = settings.trainer.precision
    if precision == "auto":
        precision = config["trainer"]["precision"] = _precision(device)
        if precision != "32-true":
            choices.append(f"trainer.precision={precision}")
    elif device.type == "cpu" and (dtype := emulated(str(precision))):
        log.warning(
            "trainer.precision=%s: this CPU has no %s instructions and emulates them, many times slower than "
            "float32; set trainer.precision=32-true.", precision, dtype,
        )  # fmt: skip
    if settings.channels_last == "auto":
        # On CPU oneDNN picks its own layouts, and channels-last convolutions in bfloat16 can be much slower.
        config["channels_last"] = device.type == "cuda" and precision != "32-true"
        if config["channels_last"]:
            choices.append("channels_last=true")
    return choices


def use_fast_matmul(device: torch.device) -> None:
    """Use TF32 for float32 matmuls on CUDA (10-bit mantissa, float32 accumulation); convolutions do by default."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def compile_network(model: nn.Module, how: bool | str) -> None:
    """Compile in place: the whole network (True), only its local response normalisation ('lrn'), or nothing (False)."""
    if how is True:
        # With dynamic shapes, the short last batch of an epoch would slow down all later batches.
        model.compile(dynamic=False)
    elif how == "lrn":
        for module in model.modules():
            if isinstance(module, LocalResponseNorm):
                module.compiled = True


def emulated(precision: str) -> str | None:
    """Return the 16-bit dtype that a Lightning precision uses, if this CPU can only emulate it.

    None if the CPU has the instructions, if nothing runs in 16 bits, or if the flags are unknown (not Linux).
    """
    # On CPU Lightning runs 16-mixed in bfloat16, too.
    dtype = (
        "float16" if precision == "16-true" else "bfloat16" if precision.startswith(("bf16", "16")) else None
    )
    if dtype is None or not _CPU.exists():
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _CPU.read_text(), re.MULTILINE)
    return dtype if flags and not _INSTRUCTIONS[dtype] & set(flags[1].split()) else None


def _precision(device: torch.device) -> str:
    # Before Ampere, bfloat16 is emulated and slower than float32.
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16-mixed" if fast else "32-true"


def _worth_compiling(settings: Settings, device: torch.device, num_images: int) -> bool | str:
    """Return the `compile_network` mode that pays off in a run of this length."""
    least = _LONG_RUN_FLOPS.get(device.type)
    if least is None or sys.platform != "linux" or settings.trainer.fast_dev_run:
        return False
    rows = _layers(settings)
    # The backward pass costs twice the forward pass; a multiply-add is two operations.
    flops = 6.0 * sum(row.multiply_adds for row in rows) * _training_images(settings, num_images)
    is_long, on_cuda = flops >= least, device.type == "cuda"
    if is_long and on_cuda:
        return True
    has_lrn = any(row.type == LocalResponseNorm.__name__ for row in rows)
    return "lrn" if has_lrn and (is_long or on_cuda) else False


def _missing_for_compile(device: torch.device) -> str | None:
    """Return what this machine lacks for compiling, or None."""
    # Triton does not support GPUs before Volta.
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return "a GPU of compute capability 7.0 or more"
    return missing_compiler(device.type)


def _training_images(settings: Settings, num_images: int) -> float:
    """Estimate how many images a run trains on, summed over its epochs."""
    trainer, batch_size = settings.trainer, settings.data.batch_size
    limit = trainer.overfit_batches or trainer.limit_train_batches
    epoch = num_images * limit if isinstance(limit, float) else min(num_images, limit * batch_size)
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    images = float("inf") if epochs == -1 else epoch * epochs
    step = batch_size * trainer.accumulate_grad_batches
    return min(images, trainer.max_steps * step) if trainer.max_steps > 0 else images


def _layers(settings: Settings) -> list[LayerRow]:
    model = settings.model
    size = model.get("input_size", settings.data.image_size)
    with torch.device("meta"):
        network = build(model)
    return layer_table(network, (model.get("in_channels", 3), size, size))
