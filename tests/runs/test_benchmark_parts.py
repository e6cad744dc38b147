"""The parts of the benchmark that decide whether its figures can be believed."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from alexnet_exp.config.compose import group
from alexnet_exp.data.cache import DecodedSource
from alexnet_exp.data.sources import ArraySource, FileSource
from alexnet_exp.data.streaming import StreamSource
from alexnet_exp.errors import UserError
from alexnet_exp.models.layers import LocalResponseNorm
from alexnet_exp.runs import benchmark_loop, benchmark_memory, benchmark_turns
from alexnet_exp.runs.benchmark_images import HEIGHT, WIDTH, write_jpegs
from alexnet_exp.runs.benchmark_loop import step_of, variant
from alexnet_exp.runs.benchmark_memory import RoomOnProcessor, largest_batch
from alexnet_exp.runs.benchmark_plain import PilImages, PlainLoader, transform_of
from alexnet_exp.runs.benchmark_subject import Subject, endless_batches
from alexnet_exp.runs.benchmark_turns import Turns, take_turns
from alexnet_exp.runs.benchmark_workers import RunLoader
from tests.data.makers import write_folder

OPTIONS = {"repeats": 2, "steps": 3, "workers": 1}


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


def test_the_processor_refuses_a_batch_ahead_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_memory, "free_memory", lambda: 1000)
    room = RoomOnProcessor()
    room.check(10**6)  # nothing is known yet
    room.learn(16, 160)
    room.check(70)
    with pytest.raises(MemoryError, match="71 images"):
        room.check(71)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process its peak memory"
)
def test_peak_memory_is_that_of_the_body() -> None:
    with benchmark_memory.peak_memory("cpu") as first:
        torch.ones(2**24)  # 64 MiB
    with benchmark_memory.peak_memory("cpu") as second:
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


@pytest.mark.parametrize("augment", ["none", "flip_crop", "paper"])
def test_torchvision_prepares_the_images_that_ours_are_compared_with(tmp_path: Path, augment: str) -> None:
    fit = subject(tmp_path, f"augment={augment}", "model.input_size=40").fit()
    images = PilImages(fit.data.sources["train"], transform_of(fit.data, fit.config["augment"]))
    image, label = images[5]
    assert len(images) == len(fit.data.sources["train"]) and label == int(fit.data.sources["train"].labels[5])
    assert image.shape == (3, 40, 40)
    if augment == "none":  # the same picture, up to Pillow's rounding
        ours = fit.data.pipeline.evaluate(fit.data.sources["train"].images[5:6])[0]
        assert (image - ours).abs().mean() < 0.05


def test_an_augmentation_without_a_counterpart_is_refused(tmp_path: Path) -> None:
    one = subject(tmp_path, "augment=none", "augment.whiten=true")
    with pytest.raises(UserError, match=r"augment.whiten is not compared with torchvision's"):
        transform_of(one.fit().data, one.config()["augment"])


@pytest.mark.parametrize(("size", "crop"), [(29, 29), (40, 32)])
def test_a_crop_is_no_larger_than_the_stored_image(size: int, crop: int) -> None:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    source = ArraySource(pixels, torch.zeros(1), ("a",), "black train")
    preprocess = SimpleNamespace(image_size=size, mean=[0.5] * 3, std=[0.5] * 3)
    data: Any = SimpleNamespace(preprocess=preprocess, sources={"train": source}, channels=3)
    transform = transform_of(data, group("augment", "paper"))
    assert f"RandomCrop(size=({crop}, {crop})" in str(transform)
    assert PilImages(source, transform)[0][0].shape == (3, size, size)


def test_of_decoded_images_the_other_side_reads_the_files(tmp_path: Path) -> None:
    for shade in (10, 20, 30):
        Image.new("RGB", (8, 4), (shade,) * 3).save(tmp_path / f"{shade}.png")
    paths = tuple(str(tmp_path / f"{shade}.png") for shade in (10, 20, 30))
    files = FileSource(paths, torch.tensor([0, 1, 2]), ("a", "b", "c"), "shades train", str(tmp_path))
    pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    decoded = DecodedSource(pixels, files.labels, files.classes, files.name, files=files)
    seen: list[Any] = []
    cut = decoded.subset(torch.tensor([2, 0, 1])).first(2)
    images = PilImages(
        cut, lambda picture: seen.append((picture.size, picture.getpixel((0, 0)))) or pixels[0]
    )
    assert [images[i][1] for i in range(len(images))] == [2, 0]
    assert seen == [((8, 4), (30,) * 3), ((8, 4), (10,) * 3)]
    preprocess = SimpleNamespace(image_size=4, mean=[0.5], std=[0.5])
    data: Any = SimpleNamespace(preprocess=preprocess, sources={"train": cut}, stored_size=4, channels=1)
    transform = transform_of(data, group("augment", "none"))
    assert transform(Image.new("RGB", (8, 6))).shape == (1, 4, 4), "the strip is cut, not squeezed, and grey"
    assert "CenterCrop" in str(transform)


def test_images_in_chunks_are_refused(tmp_path: Path) -> None:
    source = StreamSource(("a",), torch.zeros(1), ("a",), "chunks train", "s3://b", "0")
    with pytest.raises(UserError, match="data=streaming is not compared with torchvision's loader"):
        PilImages(source, lambda picture: torch.zeros(1))


def test_grey_images_pass_through_pillow() -> None:
    source = ArraySource(torch.full((1, 1, 4, 4), 7, dtype=torch.uint8), torch.zeros(1), ("a",), "grey train")
    seen: list[Any] = []
    images = PilImages(source, lambda picture: seen.append(picture) or torch.zeros(1))
    images[0]
    assert isinstance(seen[0], Image.Image) and seen[0].mode == "L" and seen[0].getpixel((0, 0)) == 7


class _Slow(Dataset):
    """Says in a file that an image was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with open(self.folder / str(os.getpid()), "a") as file:
            file.write(".")
        time.sleep(0.01)
        return torch.zeros(1), 0

    def asked(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


def test_the_workers_of_the_other_side_stand_still_when_it_is_not_their_turn(tmp_path: Path) -> None:
    dataset = _Slow(tmp_path)
    with PlainLoader(dataset, 2, 1, torch.device("cpu")) as loader:
        for turn in range(2):
            assert len(list(loader.steps(3))) == 3, turn
            time.sleep(0.05)
            before = dataset.asked()
            time.sleep(0.2)
            assert dataset.asked() == before
    assert all(not Path(f"/proc/{path.name}/stat").exists() for path in tmp_path.iterdir())


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """Return the settings of a run that decodes 40 files with a process of its own."""
    write_folder(tmp_path / "images", {f"{split}/{c}": 20 for split in ("train", "val") for c in "ab"})
    return [
        "data=folder",
        f"data.root={tmp_path / 'images'}",
        "data.cache=off",
        "data.num_workers=1",
        "data.batch_size=8",
    ]


def working() -> list[bool]:
    """Tell of each worker whether it may work; those that were just stopped are given a moment."""
    for _ in range(100):
        states = [
            Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]
            for child in multiprocessing.active_children()
        ]
        if set(states) <= {"T"}:
            break
        time.sleep(0.01)
    return [state != "T" for state in states]


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells what a process does.")


@on_linux
def test_our_own_workers_stand_still_when_it_is_not_their_turn(
    tmp_path: Path, photographs: list[str]
) -> None:
    with RunLoader(subject(tmp_path, *photographs).fit()) as loader:
        for turn in range(2):
            assert [batch.size for batch in loader.steps(2)] == [8, 8], turn
            assert working() == [False]
    assert not multiprocessing.active_children()


@on_linux
def test_the_workers_of_trainer_stand_still_in_the_turns_of_the_others(
    tmp_path: Path, photographs: list[str]
) -> None:
    one = subject(tmp_path, *photographs)
    seen: list[list[bool]] = []
    times = take_turns(one.fit(), lambda steps: seen.append(working()), one)
    assert times["ours"]["n"] == 2
    assert len(seen) >= 4 and all(states and not any(states) for states in seen)
    assert not multiprocessing.active_children()


def test_what_a_turn_of_the_others_happens_in_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    @contextmanager
    def around() -> Iterator[None]:
        passes(100)
        yield
        passes(100)

    monkeypatch.setattr(benchmark_turns, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    turns = Turns(passes, steps=3, repeats=1, wait=lambda: None, around=around)
    assert turns._others_turn() == 3.0
    assert now[0] == 100 + 1 + 3 + 100


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


def test_turns_have_the_same_steps_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def other(steps: int) -> None:
        asked.append(steps)
        now[0] += 0.02 * steps

    monkeypatch.setattr(benchmark_turns, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    one = subject(tmp_path, "data.batch_size=200")  # 1,262 images: 6 batches an epoch, so turns of 2 steps
    asked: list[int] = []
    fit = one.fit()
    times = take_turns(fit, other, one)
    assert asked == [1, 2] * (len(asked) // 2) and len(asked) >= 6  # the first turn warms up
    assert fit.trainer.global_step == sum(asked)
    assert times["theirs"]["median_seconds"] == pytest.approx(0.02)
    assert times["ours"]["n"] == times["theirs"]["n"] == 2


def test_an_epoch_too_short_for_turns_is_refused(tmp_path: Path) -> None:
    one = subject(tmp_path, "data.batch_size=1000")
    with pytest.raises(UserError, match="An epoch of 1 batches is too short"):
        take_turns(one.fit(), lambda steps: None, one)


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
    monkeypatch.setattr("alexnet_exp.runs.benchmark_images.FILES_PER_CLASS", 2)
    files = sorted(write_jpegs(tmp_path / "jpegs").rglob("train/*/*.jpg"))
    assert len({path.read_bytes() for path in files}) == len(files) == 8
    for path in files:
        assert 40_000 < path.stat().st_size < 100_000
        with Image.open(path) as picture:
            assert picture.size == (WIDTH, HEIGHT)
