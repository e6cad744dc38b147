"""The parts of the benchmark that decide whether its figures can be believed."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs import benchmark_loop, benchmark_step, benchmark_subject
from alexnet_exp.runs.benchmark_loop import step_of, variant
from alexnet_exp.runs.benchmark_step import RoomInMemory, largest_batch
from alexnet_exp.runs.benchmark_subject import HEIGHT, WIDTH, Subject, write_jpegs
from alexnet_exp.runs.benchmark_workers import RunLoader, endless_batches
from tests.runs.worker_states import on_linux, photographs, working

OPTIONS = {"repeats": 2, "steps": 3}


def subject(tmp_path: Path, *overrides: str) -> Subject:
    settings = ["model=alexnet_cifar", "data=digits", "logger=none", *overrides]
    return Subject(OPTIONS, settings, "cpu", tmp_path)


@pytest.mark.parametrize("capacity", [1, 7, 100, 1000])
def test_the_largest_batch_is_found_by_running_out_of_memory(capacity: int) -> None:
    tried: list[int] = []

    def try_batch(size: int) -> None:
        tried.append(size)
        if size > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    found = largest_batch(try_batch, 16_384)
    assert capacity * 15 / 16 <= found <= capacity
    assert any(size > capacity for size in tried)
    assert len(tried) < 20


def test_the_search_ends_at_the_most_and_where_nothing_fits() -> None:
    def never(size: int) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    assert largest_batch(lambda size: None, most=64) == 64
    assert largest_batch(never, 64) == 0


def test_another_error_than_memory_is_not_hidden() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        largest_batch(broken, 64)


def test_a_batch_that_would_fill_main_memory_is_refused_ahead_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark_step, "free_memory", lambda: 1000)
    room = RoomInMemory()
    room.check(10**6)  # nothing is known yet
    room.learn(16, 160)
    room.check(70)
    with pytest.raises(MemoryError, match="71 images"):
        room.check(71)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process its peak memory"
)
def test_peak_memory_is_that_of_the_body() -> None:
    with benchmark_step.peak_memory("cpu") as first:
        torch.ones(2**24)  # 64 MiB
    with benchmark_step.peak_memory("cpu") as second:
        torch.ones(2**10)
    assert 60 * 2**20 < first[0] < 90 * 2**20
    assert second[0] < 30 * 2**20


def test_the_hand_written_step_is_plain_sgd() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    reference = nn.Linear(12, 3)
    reference.load_state_dict(model[1].state_dict())
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    loss = step_of(model, torch.optim.SGD(model.parameters(), lr=0.1), "32-true")(images, labels)
    expected = functional.cross_entropy(reference(images.flatten(1)), labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    assert reference.weight.grad is not None
    torch.testing.assert_close(model[1].weight, reference.weight - 0.1 * reference.weight.grad)


@on_linux
def test_our_own_workers_pause_when_it_is_not_their_turn(tmp_path: Path) -> None:
    with RunLoader(subject(tmp_path, *photographs(tmp_path)).fit()) as loader:
        for turn in range(2):
            assert [batch.size for batch in loader.steps(2)] == [8, 8], turn
            assert working() == [False]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("compiled", [False, "lrn"])
def test_a_step_is_compiled_as_it_says_whatever_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool | str
) -> None:
    fit = subject(tmp_path, "model.features.conv1.then=[relu,lrn,max_pool]", "compile=lrn").fit()
    models: list[nn.Module] = []
    monkeypatch.setattr(benchmark_loop, "step_of", lambda model, *others: models.append(model))
    variant(fit, "32-true", "contiguous", compiled)
    (norm,) = (module for module in models[0].modules() if isinstance(module, LocalResponseNorm))
    assert norm.compiled is (compiled == "lrn")
    torch.testing.assert_close(models[0].state_dict(), fit.classifier.model.state_dict(), rtol=0, atol=0)


def test_batches_are_whole_and_augmented_anew_in_each_epoch(tmp_path: Path) -> None:
    fit = subject(tmp_path, "data.batch_size=500").fit()
    batches = endless_batches(fit)
    taken = [next(batches) for _ in range(4)]
    batches.close()
    assert [len(batch.labels) for batch in taken] == [500] * 4
    assert all(batch.images.shape == (500, 3, 32, 32) and batch.images.is_floating_point() for batch in taken)
    assert len({tuple(batch.indices[:20].tolist()) for batch in taken}) == 4


def test_nothing_of_a_benchmark_leaves_the_machine(tmp_path: Path) -> None:
    config = Subject(OPTIONS, ["logger=wandb", "logger.wandb.mode=online"], "cpu", tmp_path).config()
    assert config["logger"]["wandb"]["mode"] == "offline"
    assert config["trainer"]["accelerator"] == "cpu" and config["trainer"]["devices"] == 1


def test_synthetic_photographs_are_as_large_as_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_subject, "FILES_PER_CLASS", 2)
    files = sorted(write_jpegs(tmp_path / "jpegs").rglob("train/*/*.jpg"))
    assert len({path.read_bytes() for path in files}) == len(files) == 8
    for path in files:
        assert 40_000 < path.stat().st_size < 100_000
        with Image.open(path) as picture:
            assert picture.size == (WIDTH, HEIGHT)
