"""Local response normalisation: exact, in every layout and precision, and memory-efficient in the backward pass."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest
import slow_reference
import torch
from torch import nn

from alexnet_exp.models import LocalResponseNorm
from alexnet_exp.models.layers import local_response_norm, missing_compiler
from alexnet_exp.models.layers import norm as lrn

CONSTANTS = [
    (5, 1e-4, 0.75, 2.0),  # the original
    (5, 5e-4, 0.75, 2.0),  # the paper's formula
    (9, 1e-3, 0.75, 1.0),  # cuda-convnet, TensorFlow's tutorial
    (11, 11.0, 0.5, 1.0),  # TensorFlow's defaults
    (4, 0.5, 0.6, 1.5),  # an even window and an exponent that needs pow
    (1, 2.0, 0.75, 1.0),
]


def images(*shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("constants", CONSTANTS)
def test_lrn_matches_a_loop_over_the_formula_in_float64(constants: tuple[int, float, float, float]):
    x = images(2, 7, 3, 2)
    expected = torch.from_numpy(slow_reference.lrn(x.numpy(), *constants))
    torch.testing.assert_close(LocalResponseNorm(*constants)(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(local_response_norm(x, *constants), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constants", CONSTANTS)
def test_lrn_and_its_gradient_match_torch(constants: tuple[int, float, float, float]):
    x, grad = images(3, 12, 4, 5).requires_grad_(), images(3, 12, 4, 5)
    expected = nn.LocalResponseNorm(*constants)(x)
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    ours = LocalResponseNorm(*constants)(x)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, x, grad)[0], expected_grad, rtol=1e-10, atol=1e-12)


def test_lrn_with_undivided_alpha_is_tensorflows():
    x = images(2, 14, 3, 3)
    expected = slow_reference.tensorflow_lrn(x.numpy(), radius=5, bias=1.0, alpha=1.0, beta=0.5)
    torch.testing.assert_close(LocalResponseNorm(11, 11.0, 0.5, 1.0)(x), torch.from_numpy(expected))
    expected = slow_reference.tensorflow_lrn(x.numpy(), radius=2, bias=1.0, alpha=2e-5, beta=0.75)
    torch.testing.assert_close(LocalResponseNorm(5, 1e-4, 0.75, 1.0)(x), torch.from_numpy(expected))


def test_defaults_are_torchs():
    x = images(2, 8, 3, 3, scale=300.0)
    torch.testing.assert_close(LocalResponseNorm(5)(x), nn.LocalResponseNorm(5)(x))


@pytest.mark.parametrize("constants", [(5, 0.3, 0.75, 2.0), (4, 0.5, 0.6, 1.5), (3, 1.0, 0.5, 1.0)])
@pytest.mark.parametrize("groups", [1, 2])
def test_lrn_passes_gradcheck(constants: tuple[int, float, float, float], groups: int):
    x = images(2, 6, 2, 2, scale=1.0).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(*constants, groups=groups), x)


def test_towers_are_normalised_separately():
    x = images(2, 8, 3, 3)
    both = LocalResponseNorm(5, 1.0, groups=2)(x)
    alone = LocalResponseNorm(5, 1.0)
    torch.testing.assert_close(both, torch.cat([alone(x[:, :4]), alone(x[:, 4:])], 1))
    assert not torch.equal(both, alone(x))
    torch.testing.assert_close(local_response_norm(x, 5, 1.0, 0.75, 1.0, groups=2), both)


def test_a_batch_gives_the_same_in_one_piece_or_many(monkeypatch: pytest.MonkeyPatch):
    x, grad = images(5, 6, 4, 4).requires_grad_(), images(5, 6, 4, 4)
    norm = LocalResponseNorm(5, 1.0)
    results = []
    for piece in (1, 2 * 6 * 4 * 4, 2**18):  # one image, two images and a rest, all
        monkeypatch.setattr(lrn, "_PIECE", piece)
        out = norm(x)
        results.append((out, torch.autograd.grad(out, x, grad)[0]))
    for out, gradient in results[1:]:
        torch.testing.assert_close(out, results[0][0], rtol=0, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=0)


def test_an_empty_batch_stays_empty():
    x = torch.empty(0, 6, 4, 4, requires_grad=True)
    LocalResponseNorm()(x).sum().backward()
    assert x.grad.shape == (0, 6, 4, 4)


def test_channels_last_gives_the_same_values_and_keeps_its_layout():
    x, grad = images(3, 8, 5, 4), images(3, 8, 5, 4)
    norm = LocalResponseNorm(5, 1.0)
    plain = x.clone().requires_grad_()
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    expected, out = norm(plain), norm(last)
    expected.backward(grad)
    out.backward(grad)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert last.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(last.grad, plain.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    x = images(2, 8, 3, 3, scale=300.0).to(dtype).requires_grad_()  # squares overflow float16
    norm = LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    out = norm(x)
    out.float().sum().backward()
    wide = x.detach().float().requires_grad_()
    exact = norm(wide)
    exact.sum().backward()
    assert out.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(x.grad, wide.grad.to(dtype), rtol=0, atol=0)


def test_under_autocast_a_bfloat16_map_stays_bfloat16_and_exact():
    x = images(2, 8, 3, 3, scale=30.0).bfloat16()
    expected = nn.LocalResponseNorm(5, 1e-2, 0.75, 2.0)(x.float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = LocalResponseNorm(5, 1e-2, 0.75, 2.0)(x)
        plain = local_response_norm(x, 5, 1e-2, 0.75, 2.0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(plain, expected, rtol=0, atol=0)


def test_the_backward_pass_keeps_only_the_input():
    x = images(2, 8, 3, 3).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        LocalResponseNorm()(x)
    assert sum(kept) == x.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_compiled_gives_the_same_values_and_gradients(groups: int):
    eager, compiled = (
        LocalResponseNorm(5, 1.0, groups=groups),
        LocalResponseNorm(5, 1.0, groups=groups, compiled=True),
    )
    for batch in (3, 2):  # the last batch of an epoch may be smaller
        x, grad = images(batch, 8, 4, 4).requires_grad_(), images(batch, 8, 4, 4)
        expected = eager(x)
        (expected_grad,) = torch.autograd.grad(expected, x, grad)
        out = compiled(x)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out, x, grad)[0], expected_grad)


def test_compiled_without_a_compiler_warns_and_stays_eager(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    lrn._compiled.cache_clear()
    x = images(2, 8, 3, 3)
    with pytest.warns(UserWarning, match="needs a C\\+\\+ compiler"):
        out = LocalResponseNorm(compiled=True)(x)
    assert torch.equal(out, LocalResponseNorm()(x))
    lrn._compiled.cache_clear()


@pytest.mark.parametrize(
    ("device", "platform", "environment", "asked"),
    [
        ("cpu", "linux", {}, ["g++"]),
        ("cpu", "darwin", {}, ["clang++"]),
        ("cpu", "linux", {"CXX": "icpx"}, ["icpx"]),
        ("cuda", "linux", {"CXX": "icpx"}, ["gcc", "clang"]),
        ("cuda", "linux", {"CC": "icx"}, ["icx"]),
        ("mps", "darwin", {}, []),
    ],
)
def test_missing_compiler_looks_for_the_one_that_torch_would_call(
    monkeypatch: pytest.MonkeyPatch, device: str, platform: str, environment: dict[str, str], asked: list[str]
):
    looked: list[str] = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(shutil, "which", lambda name: looked.append(name))  # finds nothing
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bool(missing_compiler(device)) is bool(asked)
    assert looked == asked
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == asked[-1] else None)
    assert not asked or missing_compiler(device) is None


def test_export_uses_plain_operations():
    norm, x = LocalResponseNorm(5, 1.0), images(3, 8, 4, 4)
    exported = torch.export.export(norm, (x,))
    assert "rsqrt" in exported.graph_module.code
    assert "autograd" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), norm(x))


# ------------------------------------------------------------------------------------------------ devices


def in_float64(
    x: torch.Tensor, grad: torch.Tensor, constants: tuple[int, float, float, float], groups: int
) -> list[torch.Tensor]:
    """Return torch's own norm of each tower, and its gradient, in float64 on the CPU."""
    x = x.detach().double().cpu().requires_grad_()
    out = torch.cat([nn.LocalResponseNorm(*constants)(tower) for tower in x.chunk(groups, 1)], 1)
    return [out.detach(), torch.autograd.grad(out, x, grad.double().cpu())[0]]


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# In half precision, one unit in the last place.
ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("device", DEVICES)
def test_every_device_and_precision_is_close_to_float64_and_deterministic(
    device: str, dtype: torch.dtype, layout: torch.memory_format, groups: int
):
    constants = (5, 1e-2, 0.75, 2.0)
    norm = LocalResponseNorm(*constants, groups=groups)
    x, grad = (
        images(3, 16, 9, 9, scale=scale).to(device, dtype, memory_format=layout) for scale in (30.0, 1.0)
    )
    results = []
    for _ in range(2):
        leaf = x.detach().requires_grad_()
        out = norm(leaf)
        out.backward(grad)
        assert out.dtype == leaf.grad.dtype == dtype
        assert out.is_contiguous(memory_format=layout)
        results.append((out.detach(), leaf.grad))
    for ours, again, exact in zip(*results, in_float64(x, grad, constants, groups), strict=True):
        assert torch.equal(ours, again)
        error = (ours.double().cpu() - exact).abs().max() / exact.abs().max()
        assert error < ERRORS[dtype]


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", DEVICES)
def test_under_autocast_the_output_of_a_convolution_is_normalised_in_float32(device: str):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 16, 3).to(device), LocalResponseNorm(5, 1.0, 0.75, 2.0)
    with torch.autocast(device, torch.bfloat16):
        mapped = conv(images(2, 3, 9, 9).float().to(device))
        mapped.retain_grad()
        out = norm(mapped)
    assert mapped.dtype == out.dtype == torch.bfloat16
    grad = images(*out.shape, scale=1.0).to(out)
    out.backward(grad)
    exact_out, exact_grad = in_float64(mapped, grad, (5, 1.0, 0.75, 2.0), 1)
    # Exact but for the last rounding: a squared bfloat16 would be off by 2^-8 before the sum.
    torch.testing.assert_close(out.cpu(), exact_out.bfloat16(), rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(mapped.grad.double().cpu(), exact_grad, rtol=2**-7, atol=1e-4)
    assert conv.weight.grad.isfinite().all()
