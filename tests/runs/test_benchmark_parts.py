"""The parts of the benchmark on which the validity of its results depends."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn import functional

from alexnet_exp.errors import UserError
from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs.benchmark import command as benchmark
from alexnet_exp.runs.benchmark import loop as benchmark_loop
from alexnet_exp.runs.benchmark import startup as benchmark_startup
from alexnet_exp.runs.benchmark import step as benchmark_step
from alexnet_exp.runs.benchmark import subject as benchmark_subject
from alexnet_exp.runs.benchmark import timing
from alexnet_exp.runs.benchmark.loop import RunLoader, endless_batches, step_of, variant
from alexnet_exp.runs.benchmark.step import RoomInMemory, largest_batch
from alexnet_exp.runs.benchmark.subject import HEIGHT, WIDTH, Subject, write_jpegs
from tests.runs.measured_runs import on_linux, photographs, subject, working


@pytest.fixture
def no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip garbage collection after each try: it takes a second in a process that has run many tests."""
    monkeypatch.setattr(benchmark_step, "release", lambda: None)


@pytest.mark.usefixtures("no_release")
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


@pytest.mark.usefixtures("no_release")
def test_the_search_ends_at_the_limit_or_when_nothing_fits() -> None:
    def never(size: int) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    assert largest_batch(lambda size: None, most=64) == 64
    assert largest_batch(never, 64) == 0


def test_errors_other_than_out_of_memory_are_raised() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        largest_batch(broken, 64)


def test_a_batch_that_would_fill_main_memory_is_refused_before_the_oom_killer_acts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark_step, "free_memory", lambda: 1000)
    room = RoomInMemory()
    room.check(10**6)  # nothing has been measured yet
    room.learn(16, 160)
    room.check(70)
    with pytest.raises(MemoryError, match="71 images"):
        room.check(71)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process its peak memory"
)
def test_peak_memory_only_includes_the_body() -> None:
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
def test_workers_pause_outside_their_turn(tmp_path: Path) -> None:
    with RunLoader(subject(tmp_path, *photographs(tmp_path)).fit()) as loader:
        for turn in range(2):
            assert [batch.size for batch in loader.steps(2)] == [8, 8], turn
            assert working() == [False]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("compiled", [False, "lrn"])
def test_a_step_is_compiled_as_requested_whatever_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool | str
) -> None:
    fit = subject(tmp_path, "model.features.conv1.then=[relu,lrn,max_pool]", "compile=lrn").fit()
    models: list[nn.Module] = []
    monkeypatch.setattr(benchmark_loop, "step_of", lambda model, *others: models.append(model))
    variant(fit, "32-true", "contiguous", compiled)
    (norm,) = (module for module in models[0].modules() if isinstance(module, LocalResponseNorm))
    assert norm.compiled is (compiled == "lrn")
    torch.testing.assert_close(models[0].state_dict(), fit.classifier.model.state_dict(), rtol=0, atol=0)


def test_batches_are_complete_and_augmented_differently_in_each_epoch(tmp_path: Path) -> None:
    fit = subject(tmp_path, "data.batch_size=500").fit()
    batches = endless_batches(fit)
    taken = [next(batches) for _ in range(4)]
    batches.close()
    assert [len(batch.labels) for batch in taken] == [500] * 4
    assert all(batch.images.shape == (500, 3, 32, 32) and batch.images.is_floating_point() for batch in taken)
    assert len({tuple(batch.indices[:20].tolist()) for batch in taken}) == 4


def test_a_benchmark_uploads_nothing(tmp_path: Path) -> None:
    config = subject(tmp_path, "logger=wandb", "logger.wandb.mode=online").config()
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


def test_a_measurement_that_fails_does_not_affect_the_others(tmp_path: Path) -> None:
    def refused(subject: Subject) -> list[timing.Row]:
        raise UserError("Not here.")

    def measured(subject: Subject) -> list[timing.Row]:
        return timing.rows("startup", {"a": timing.summary([1.0])})

    one = subject(tmp_path)
    rows = benchmark._measure({"step": refused, "startup": measured}, one, Console(quiet=True))
    assert [row["what"] for row in rows] == ["startup"]
    assert one.notes == ["step is not measured: Not here."]
    with pytest.raises(UserError, match=r"Not here\."):
        benchmark._measure({"step": refused}, one, Console(quiet=True))


@pytest.mark.parametrize(
    ("settings", "here"),
    [
        (["data=digits"], True),
        (["data=cifar10", "paths.data_dir=nowhere"], False),
        (["data=folder", "data.root=synthetic"], False),
        (["data=folder", "data.root=photographs"], True),
    ],
)
def test_the_first_step_is_timed_only_if_the_images_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: list[str], here: bool
) -> None:
    started: list[list[str]] = []

    def run(command: list[str]) -> None:
        started.append(command)
        (tmp_path / "first_step").write_text(str(benchmark_startup.time.time()))

    monkeypatch.setattr(benchmark_startup, "_run", run)
    one = subject(tmp_path).with_overrides(*settings)
    cases = [row["case"] for row in benchmark_startup.measure_startup(one)]
    assert ("first step of train" in cases, one.notes == []) == (here, here)
    trained = [command for command in started if "test=false" in command]
    assert len(trained) == (3 if here else 0)
    assert all({"trainer.accelerator=cpu", *settings} <= set(command) for command in trained)


def test_relative_paths_of_the_first_step_are_relative_to_the_current_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import pathlib; pathlib.Path('here').touch()"
    benchmark_startup._run([sys.executable, "-c", code])
    assert (tmp_path / "here").exists()


@pytest.mark.parametrize(("compiled", "resets"), [(True, 1), (False, 0)])
def test_kernels_are_compiled_for_the_measured_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: bool, resets: int
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    monkeypatch.setattr(benchmark_loop, "compile_network", lambda model, how: calls.append("compile"))
    variant(subject(tmp_path, "compile=false").fit(), "32-true", "contiguous", compiled)
    assert calls[-1 - resets :] == ["reset"] * resets + ["compile"]
