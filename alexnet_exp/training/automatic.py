"""What `auto` means on this machine: precision, layout and compilation, chosen once and recorded in config.yaml.

A resumed run reads the choices from there, so that it goes on with the same arithmetic on another machine.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alexnet_exp.models.layers import LocalResponseNorm, missing_compiler
from alexnet_exp.models.summary import LayerRow, layer_table
from alexnet_exp.targets import build
from alexnet_exp.tracking.log import log

# Compiling takes 10 s to a minute. A run of less arithmetic than this does not win it back: about two minutes of
# training on a data-centre GPU, a quarter of an hour on two CPU cores. On CUDA local response normalisation is compiled
# in every run: that takes seconds, and its eager form takes longer than the rest of a step.
_LONG_RUN_FLOPS = {"cuda": 1e16, "cpu": 2e14}

_CPU = Path("/proc/cpuinfo")
# Flags of Linux (x86, then ARM) for the instructions that oneDNN computes in 16 bits with; one of them is enough.
_INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def settle(config: dict[str, Any], device: torch.device, num_images: int) -> list[str]:
    """Replace every `auto` of precision, channels_last and compile.

    Args:
        config: Settings of a run whose network is complete; changed in place.
        device: That trains.
        num_images: Training images, for the length of the run.

    Returns:
        A phrase for every choice that is not the plain one, for the log, and for what is missing for one.
    """
    said = settle_arithmetic(config, device)
    if config["compile"] == "auto":
        wanted = _worth_compiling(config, device, num_images)
        lacking = _lacking(device) if wanted else None
        config["compile"] = False if lacking else wanted
        if wanted:
            why = f" (compiling would pay, and needs {lacking})" if lacking else ""
            said.append(f"compile={str(config['compile']).lower()}{why}")
    return said


def settle_arithmetic(config: dict[str, Any], device: torch.device) -> list[str]:
    """Replace `auto` of precision and channels_last.

    Args:
        config: Changed in place.
        device: That trains.

    Returns:
        As `settle`.
    """
    said = []
    trainer = config["trainer"]
    if trainer["precision"] == "auto":
        trainer["precision"] = _precision(device)
        if trainer["precision"] != "32-true":
            said.append(f"trainer.precision={trainer['precision']}")
    elif device.type == "cpu" and (dtype := emulated(str(trainer["precision"]))):
        log.warning(
            "trainer.precision=%s: this CPU has no instructions for %s and emulates it, many times slower than "
            "float32; set trainer.precision=32-true.", trainer["precision"], dtype,
        )  # fmt: skip
    if config["channels_last"] == "auto":
        # On a CPU oneDNN chooses layouts for itself, and channels-last convolutions in bfloat16 can be much slower.
        config["channels_last"] = device.type == "cuda" and trainer["precision"] != "32-true"
        if config["channels_last"]:
            said.append("channels_last=true")
    return said


def use_fast_matmul(device: torch.device) -> None:
    """Let CUDA multiply float32 in TF32: 10 bits of mantissa, accumulated in float32; convolutions do by default."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def compile_network(model: nn.Module, how: bool | str) -> None:
    """Compile in place: the whole network (True), its local response normalisation alone ('lrn'), or nothing."""
    if how is True:
        # With sizes that vary, the last batch of an epoch would have slower kernels made, for all batches after it.
        model.compile(dynamic=False)
    elif how == "lrn":
        for module in model.modules():
            if isinstance(module, LocalResponseNorm):
                module.compiled = True


def emulated(precision: str) -> str | None:
    """Return the 16-bit dtype of a precision of Lightning's that this CPU has no instructions for.

    None: it has them, nothing is computed in 16 bits, or the system does not say (other than Linux).
    """
    # On CPU Lightning takes bfloat16 for 16-mixed as well.
    dtype = (
        "float16" if precision == "16-true" else "bfloat16" if precision.startswith(("bf16", "16")) else None
    )
    if dtype is None or not _CPU.exists():
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _CPU.read_text(), re.MULTILINE)
    return dtype if flags and not _INSTRUCTIONS[dtype] & set(flags[1].split()) else None


def _precision(device: torch.device) -> str:
    # bfloat16 before Ampere is emulated, and slower than float32.
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16-mixed" if fast else "32-true"


def _worth_compiling(config: Mapping[str, Any], device: torch.device, num_images: int) -> bool | str:
    """Return what is worth compiling in a run of this length; see `compile_network`."""
    least = _LONG_RUN_FLOPS.get(device.type)
    if least is None or sys.platform != "linux" or config["trainer"]["fast_dev_run"]:
        return False
    rows = _layers(config)
    # Forward, and twice that backward; a multiply-add is two operations.
    flops = 6.0 * sum(row.multiply_adds for row in rows) * _training_images(config, num_images)
    is_long, on_cuda = flops >= least, device.type == "cuda"
    if is_long and on_cuda:
        return True
    has_lrn = any(row.type == LocalResponseNorm.__name__ for row in rows)
    return "lrn" if has_lrn and (is_long or on_cuda) else False


def _lacking(device: torch.device) -> str | None:
    """Return what compiling needs and this machine has not; None if it has all."""
    # Triton has no code for GPUs before Volta.
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return "a GPU of compute capability 7.0 or more"
    return missing_compiler(device.type)


def _training_images(config: Mapping[str, Any], num_images: int) -> float:
    """Estimate how many images a run will train on, counting every epoch."""
    trainer, batch_size = config["trainer"], config["data"]["batch_size"]
    limit = trainer["overfit_batches"] or trainer["limit_train_batches"]
    epoch = num_images * limit if isinstance(limit, float) else min(num_images, limit * batch_size)
    endless = trainer["max_epochs"] in (None, -1)
    images = float("inf") if endless else epoch * trainer["max_epochs"]
    step = batch_size * trainer["accumulate_grad_batches"]
    return min(images, trainer["max_steps"] * step) if trainer["max_steps"] > 0 else images


def _layers(config: Mapping[str, Any]) -> list[LayerRow]:
    model = config["model"]
    size = model.get("input_size", config["data"]["image_size"])
    with torch.device("meta"):
        network = build(model)
    return layer_table(network, (model.get("in_channels", 3), size, size))
