from __future__ import annotations

import shutil
import sys
from typing import Any

import pytest
import torch

from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.training import automatic
from alexnet_exp.training.automatic import compile_network, settle
from alexnet_exp.zoo import create_model
from tests.training.small_runs import run, settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def settled(device: torch.device, *overrides: str, images: int = 10**8) -> dict[str, Any]:
    config, _ = settings("trainer.max_epochs=30", *overrides)
    settle(config, device, images)
    return config


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch):
    def set_to(*value: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: value)

    return set_to


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


def test_a_cpu_trains_in_float32_and_channels_first():
    config = settled(CPU)
    assert (config["trainer"]["precision"], config["channels_last"], config["compile"]) == (
        "32-true", False, False,
    )  # fmt: skip


def test_a_gpu_trains_in_bfloat16_from_ampere_on(capability):
    capability(8, 0)
    config = settled(CUDA)
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["channels_last"] is True
    capability(7, 5)
    config = settled(CUDA)
    assert config["trainer"]["precision"] == "32-true"
    assert config["channels_last"] is False


X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx2{}\n\nprocessor\t: 1\nflags\t\t: fpu sse2 avx2{}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd{}\n"


@pytest.mark.parametrize(
    ("precision", "cpu", "lacking"),
    [
        ("bf16-mixed", X86.format("", ""), "bfloat16"),
        ("bf16-true", X86.format(" avx512f", ""), "bfloat16"),
        ("16-mixed", X86.format("", ""), "bfloat16"),
        ("16-true", X86.format(" avx512_bf16", ""), "float16"),
        ("bf16-mixed", X86.format(" avx512_bf16", ""), None),
        ("bf16-mixed", X86.format(" amx_bf16", ""), None),
        ("bf16-mixed", ARM.format(" bf16"), None),
        ("bf16-mixed", ARM.format(""), "bfloat16"),
        ("32-true", X86.format("", ""), None),
        ("64-true", X86.format("", ""), None),
        ("bf16-mixed", "a system that says nothing", None),
    ],
)
def test_a_precision_that_the_cpu_emulates_is_warned_about_in_one_line(
    monkeypatch, tmp_path, caplog, precision, cpu, lacking
):
    monkeypatch.setattr(automatic, "_CPU", tmp_path / "cpuinfo")
    assert automatic.emulated(precision) is None  # there is none
    (tmp_path / "cpuinfo").write_text(cpu)
    assert automatic.emulated(precision) == lacking
    settled(CPU, f"trainer.precision={precision}")
    assert len(caplog.records) == (1 if lacking else 0)
    assert not lacking or (f"no {lacking} instructions" in caplog.text and "32-true" in caplog.text)
    caplog.clear()
    settled(CUDA, f"trainer.precision={precision}", "channels_last=false", "compile=false")
    settled(CPU)  # auto
    assert not caplog.records


def test_explicit_settings_are_kept(capability):
    capability(9, 0)
    config = settled(CUDA, "trainer.precision=32-true", "channels_last=true", "compile=true")
    assert (config["trainer"]["precision"], config["channels_last"], config["compile"]) == (
        "32-true",
        True,
        True,
    )


def test_only_long_runs_are_compiled_but_lrn_always_on_a_gpu(capability, compiler):
    capability(9, 0)
    long = ["model=alexnet_lrn", "trainer.max_epochs=90"]
    assert settled(CUDA, *long)["compile"] is True
    for short in ("trainer.max_steps=100", "trainer.limit_train_batches=3", "trainer.overfit_batches=3"):
        assert settled(CUDA, *long, short)["compile"] == "lrn"
        assert settled(CUDA, *long, "model=alexnet", short)["compile"] is False  # it has no LRN
    assert settled(CUDA, *long, "trainer.fast_dev_run=true")["compile"] is False
    assert settled(CUDA, *long, "trainer.limit_train_batches=0.01", images=10**6)["compile"] == "lrn"
    assert settled(CUDA, "model=alexnet_lrn", images=10**6)["compile"] == "lrn"


def test_on_cpu_a_long_run_compiles_only_lrn(compiler, monkeypatch):
    assert settled(CPU, "model=alexnet_lrn")["compile"] == "lrn"
    assert settled(CPU, "model=alexnet")["compile"] is False  # has none
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert settled(CPU, "model=alexnet_lrn")["compile"] is False


def test_accumulated_batches_make_a_run_longer(capability, compiler):
    capability(9, 0)
    steps = ["model=alexnet_lrn", "trainer.max_steps=1000"]
    assert settled(CUDA, *steps)["compile"] == "lrn"
    assert settled(CUDA, *steps, "trainer.accumulate_grad_batches=100000")["compile"] is True


def test_the_log_says_what_compiling_lacks(capability, compiler, monkeypatch):
    def chosen(device: torch.device) -> tuple[bool, str]:
        config, _ = settings("trainer.max_epochs=30", "model=alexnet_lrn")
        said = settle(config, device, 10**8)
        return config["compile"], said[-1]

    capability(6, 1)
    assert chosen(CUDA) == (
        False, "compile=false (compiling would pay off, but needs a GPU of compute capability 7.0 or more)"
    )  # fmt: skip
    capability(9, 0)
    assert chosen(CUDA) == (True, "compile=true")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert chosen(CUDA) == (
        False,
        "compile=false (compiling would pay off, but needs a C compiler (gcc or clang))",
    )
    assert chosen(CPU) == (False, "compile=false (compiling would pay off, but needs a C++ compiler (g++))")


def test_compiling_lrn_leaves_other_layers_eager():
    model = create_model("alexnet_lrn", num_classes=10)
    compile_network(model, "lrn")
    norms = [m for m in model.modules() if isinstance(m, LocalResponseNorm)]
    assert len(norms) == 2
    assert all(m.compiled for m in norms)


def test_the_choices_are_recorded_in_config_yaml_and_the_checkpoint(tmp_path):
    run(tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "precision: 32-true" in text
    assert "compile: false" in text
    embedded = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["config"]
    assert embedded["trainer"]["precision"] == "32-true"
    assert embedded["channels_last"] is False


def test_both_layouts_train_to_the_same_result(tmp_path):
    plain, last = (run(tmp_path / name, f"channels_last={name}") for name in ("false", "true"))
    assert plain["metrics"]["train/loss"] == pytest.approx(last["metrics"]["train/loss"], rel=1e-4)
