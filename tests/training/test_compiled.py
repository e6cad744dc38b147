"""A compiled run: how often it compiles, which batches use the kernels, and what LRN saves for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from alexnet_exp.models import LocalResponseNorm
from alexnet_exp.models.layers import norm as lrn
from alexnet_exp.training.automatic import compile_network
from tests.training.small_runs import assert_same_end, resume, run, train_until

# Traces, differentiates and partitions like inductor, but generates no kernels.
PARTITIONED = "aot_eager_decomp_partition"
GPU = ["trainer.accelerator=gpu", "trainer.devices=1"]
ON_DEVICES = pytest.mark.parametrize("own", [[], pytest.param(GPU, marks=pytest.mark.gpu, id="cuda")])


@pytest.fixture(autouse=True)
def reset_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Compile networks with a backend that counts and keeps the graphs."""
    counter, plain = CompileCounterWithBackend("eager"), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: plain(self, backend=counter, **options))
    return counter


def batch_sizes(counter: CompileCounterWithBackend) -> list[Any]:
    """Return the batch size of the images that each graph takes."""
    inputs = [
        [n.meta["example_value"] for n in g.graph.nodes if n.op == "placeholder"] for g in counter.graphs
    ]
    return [
        next(x.shape[0] for x in graph if x.dim() == 4 and x.shape[1:] == (3, 32, 32)) for graph in inputs
    ]


@ON_DEVICES
def test_a_run_compiles_once_each_for_training_validation_and_test(
    graphs: CompileCounterWithBackend, tmp_path: Path, own: list[str]
) -> None:
    # The last batches of 8 (training), 18 (validation) and 28 images (test) run eagerly.
    run(tmp_path, "compile=true", "trainer.max_epochs=3", "trainer.precision=32-true", *own)
    assert batch_sizes(graphs) == [
        32,
        32,
        32,
    ]  # test has its own graph: Lightning tests in inference mode, but validates without


def test_a_compiled_run_resumes_to_the_same_bits(graphs: CompileCounterWithBackend, tmp_path: Path) -> None:
    settings = ["compile=true", "trainer.max_epochs=2", "callbacks.checkpoint.every_n_steps=3", "test=false"]
    run(tmp_path / "whole", *settings)
    train_until(tmp_path / "parts", 11, *settings)
    resume(tmp_path / "parts")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def kept(form: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """Return the memory that a form saves for backward, as a multiple of its input."""
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        form(x).sum().backward()
    return sum(found.values()) / x.nbytes


def inputs(device: str = "cpu", batch: int = 4) -> torch.Tensor:
    x = torch.randn((batch, 96, 13, 13), generator=torch.Generator().manual_seed(0)).bfloat16()
    return x.to(device, memory_format=torch.channels_last).requires_grad_()


CONSTANTS = (5, 1e-4, 0.75, 2.0)


@pytest.mark.parametrize("backend", [PARTITIONED, pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_lrn_saves_only_its_input(backend: str) -> None:
    plain = torch.compile(lambda x: lrn.local_response_norm(x, *CONSTANTS), backend=backend)
    assert kept(plain, inputs()) > 3  # which is why it uses checkpointing
    assert kept(torch.compile(LocalResponseNorm(*CONSTANTS), backend=backend), inputs()) == 1
    network = nn.Sequential(nn.ReLU(), LocalResponseNorm(*CONSTANTS))
    assert (
        kept(torch.compile(network, backend=backend), inputs()) <= 2
    )  # the ReLU saves its output too, as in eager


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Compile LRN alone as on CUDA, on CPU."""
    counter = CompileCounterWithBackend(PARTITIONED)
    monkeypatch.setattr(lrn, "missing_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    form = lrn._compiled.__wrapped__("cuda")
    monkeypatch.setattr(lrn, "_compiled", lambda device: form)
    return counter


def test_one_cuda_kernel_per_layer_is_used_for_all_batch_sizes(as_on_cuda: CompileCounterWithBackend) -> None:
    norm, eager = LocalResponseNorm(*CONSTANTS, compiled=True), LocalResponseNorm(*CONSTANTS)
    for batch in (4, 3, 7, 2):
        x, y = inputs(batch=batch), inputs(batch=batch)
        assert kept(norm, x) == 1
        eager(y).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=2**-7, atol=1e-6)
    assert as_on_cuda.frame_count == 1
    one = inputs(batch=1)
    torch.testing.assert_close(norm(one), eager(one))
    with torch.no_grad():
        torch.testing.assert_close(norm(one), eager(one))
    assert as_on_cuda.frame_count == 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_lrn_on_cuda_is_close_to_float64_and_saves_only_its_input(dtype: torch.dtype) -> None:
    x = inputs("cuda").detach().to(dtype).requires_grad_()
    wide = x.detach().double().cpu().requires_grad_()
    assert kept(LocalResponseNorm(*CONSTANTS, compiled=True), x) == 1
    nn.LocalResponseNorm(*CONSTANTS)(wide).sum().backward()
    error = (x.grad.double().cpu() - wide.grad).abs().max() / wide.grad.abs().max()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]


def test_a_network_is_compiled_for_the_sizes_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    compile_network(nn.ReLU(), True)
    assert asked == [{"dynamic": False}]
