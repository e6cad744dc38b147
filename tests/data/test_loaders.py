from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from alexnet_exp.data.datasets.folder import scan
from alexnet_exp.data.decode import decode, stored
from alexnet_exp.data.loaders import ArrayLoader, Batch, BatchPlan, FileLoader
from alexnet_exp.data.sources import ArraySource
from tests.data.makers import write_folder

Loader = ArrayLoader | FileLoader
COUNT = 22  # images in the loaders' tests: batches of 5, 5, 5, 5, 2


def numbered(count: int) -> ArraySource:
    """Return images whose pixels and labels are their index: image i is filled with i."""
    numbers = torch.arange(count)
    images = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return ArraySource(images, numbers, tuple(map(str, range(count))), "made train")


def ids(batches: list[Batch]) -> list[list[int]]:
    return [batch.indices[: batch.size].tolist() for batch in batches]


@pytest.fixture(params=["array", "files, no workers", "files, 2 workers"])
def make_loader(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Loader]:
    """Return a function that makes a new loader of the same 22 images."""
    if request.param == "array":
        return lambda: ArrayLoader(numbered(COUNT), BatchPlan(COUNT, 5, seed=0))
    write_folder(tmp_path, {"train/a": 11, "train/b": 11}, size=(9, 8), extension="png")
    source, workers = scan(str(tmp_path))["train"], 2 if "2" in request.param else 0
    return lambda: FileLoader(source, BatchPlan(COUNT, 5, seed=0), 3, stored_size=8, num_workers=workers)


# ------------------------------------------------------------------------------------------------ BatchPlan

SIZES = [(1, 1), (1, 8), (3, 8), (7, 3), (16, 4), (17, 4), (22, 5), (97, 32)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("num_images", "batch_size"), SIZES)
@pytest.mark.parametrize("seed", [None, 0])
def test_ranks_share_the_batches_of_one_device(
    num_images: int, batch_size: int, world_size: int, seed: int | None
):
    alone = list(BatchPlan(num_images, batch_size, seed))
    ranks = [list(BatchPlan(num_images, batch_size, seed, rank, world_size)) for rank in range(world_size)]
    assert {len(slices) for slices in ranks} == {len(alone)}
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([part.indices[: part.size] for part in parts]), whole.indices)
        assert {part.global_size for part in parts} == {len(whole.indices)} == {whole.size}
        sizes = [part.size for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize(("num_images", "batch_size"), SIZES)
def test_every_image_is_seen_once_per_epoch(num_images: int, batch_size: int, world_size: int):
    ranks = [BatchPlan(num_images, batch_size, 3, rank, world_size) for rank in range(world_size)]
    seen = [i for plan in ranks for part in plan for i in part.indices[: part.size].tolist()]
    assert sorted(seen) == list(range(num_images))


@pytest.mark.parametrize(("num_images", "batch_size"), SIZES)
def test_all_batches_but_the_last_are_full(num_images: int, batch_size: int):
    plan = BatchPlan(num_images, batch_size, 0)
    sizes = [len(part.indices) for part in plan]
    assert len(plan) == len(sizes)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sum(sizes) == num_images


def test_rank_with_an_empty_slice_steps_with_a_dummy_image():
    parts = [next(iter(BatchPlan(1, 8, 0, rank, 3))) for rank in range(3)]
    assert sorted(part.size for part in parts) == [0, 0, 1]
    assert [part.indices.tolist() for part in parts] == [[0]] * 3


def test_without_a_seed_images_come_in_file_order():
    plan = BatchPlan(10, 4)
    plan.set_epoch(3)
    assert [part.indices.tolist() for part in plan] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_order_depends_only_on_seed_and_epoch():
    def order(seed: int, epoch: int, batch_size: int = 8) -> list[int]:
        plan = BatchPlan(50, batch_size, seed)
        plan.set_epoch(epoch)
        return torch.cat([part.indices for part in plan]).tolist()

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == order(0, 0, batch_size=11) == first
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


# ------------------------------------------------------------------------------------------------ batches


def test_an_array_batch_holds_the_images_and_labels_of_its_indices():
    loader = ArrayLoader(numbered(COUNT), BatchPlan(COUNT, 5, seed=0))
    for batch in loader:
        assert batch.images.dtype == torch.uint8
        assert batch.images[:, 0, 1, 1].tolist() == batch.labels.tolist() == batch.indices.tolist()
    assert (batch.size, batch.global_size, batch.images.shape) == (2, 2, (2, 1, 2, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_batch_holds_the_decoded_images_of_its_indices(
    tmp_path: Path, channels: int, num_workers: int
):
    write_folder(tmp_path, {"train/a": 4, "train/b": 3}, size=(20, 12))
    source = scan(str(tmp_path))["train"]
    seen = []
    for batch in FileLoader(
        source, BatchPlan(7, 3, seed=0), channels, stored_size=8, num_workers=num_workers
    ):
        expected = [stored(decode(source.paths[i], channels), 8) for i in batch.indices]
        assert torch.equal(batch.images, torch.stack(expected))
        assert batch.images.shape[1:] == (channels, 8, 8)
        assert torch.equal(batch.labels, source.labels[batch.indices])
        assert batch.size == batch.global_size == len(batch.labels)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(7))


def test_the_loader_follows_its_plan_through_the_epochs(make_loader: Callable[[], Loader]):
    loader, plan = make_loader(), BatchPlan(COUNT, 5, seed=0)
    for epoch in (0, 1, 4, 1):
        loader.sampler.set_epoch(epoch)
        plan.set_epoch(epoch)
        assert ids(list(loader)) == [part.indices.tolist() for part in plan]
    assert len(loader) == 5


def test_the_epoch_can_be_set_after_iter_as_lightning_does(make_loader: Callable[[], Loader]):
    loader = make_loader()
    loader.sampler.set_epoch(2)
    expected = ids(list(loader))
    loader.sampler.set_epoch(0)
    batches = iter(loader)
    loader.sampler.set_epoch(2)
    assert ids(list(batches)) == expected


def test_loading_does_not_change_torch_s_global_random_state(make_loader: Callable[[], Loader]):
    loader = make_loader()
    before = torch.get_rng_state()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------ position


def saved(loader: Loader) -> dict[str, int]:
    return json.loads(json.dumps(loader.state_dict()))  # plain values only


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 5])
def test_loader_resumes_in_the_middle_of_an_epoch(make_loader: Callable[[], Loader], taken: int):
    whole, stopped, resumed = make_loader(), make_loader(), make_loader()
    whole.sampler.set_epoch(2)
    stopped.sampler.set_epoch(2)
    passed = list(islice(stopped, taken))
    resumed.load_state_dict(saved(stopped))
    resumed.sampler.set_epoch(2)
    rest = list(resumed)
    assert ids(passed) + ids(rest) == ids(list(whole))
    assert len(rest) == 5 - taken
    for epoch in (3, 2):  # whole epochs again
        whole.sampler.set_epoch(epoch)
        resumed.sampler.set_epoch(epoch)
        assert ids(list(resumed)) == ids(list(whole))


@pytest.mark.parametrize("taken", [2, 5])
def test_the_next_epoch_starts_at_its_first_batch(make_loader: Callable[[], Loader], taken: int):
    stopped, resumed, whole = make_loader(), make_loader(), make_loader()
    list(islice(stopped, taken))  # limit_train_batches may end an epoch early, but the next one is complete
    resumed.load_state_dict(saved(stopped))
    for loader in (stopped, resumed, whole):
        loader.sampler.set_epoch(1)
    assert ids(list(stopped)) == ids(list(resumed)) == ids(list(whole))


def test_position_before_the_first_batch_is_saved(make_loader: Callable[[], Loader]):
    loader = make_loader()
    assert loader.state_dict() == {"epoch": 0, "batches": 0}
    list(loader)
    assert loader.state_dict() == {"epoch": 0, "batches": 5}
    loader.sampler.set_epoch(1)
    iter(loader)
    assert loader.state_dict() == {"epoch": 1, "batches": 0}


@pytest.mark.parametrize("epoch_first", [True, False])
def test_loaded_position_is_saved_again_before_the_first_batch(epoch_first: bool):
    loader = ArrayLoader(numbered(COUNT), BatchPlan(COUNT, 5, seed=0))
    if epoch_first:
        loader.sampler.set_epoch(4)
    loader.load_state_dict({"epoch": 4, "batches": 3})
    loader.sampler.set_epoch(4)
    assert loader.state_dict() == {"epoch": 4, "batches": 3}
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 4, "batches": 4}


def test_a_run_can_be_stopped_and_resumed_after_every_batch():
    whole = ids(list(ArrayLoader(numbered(COUNT), BatchPlan(COUNT, 5, seed=0))))
    state, got = {"epoch": 0, "batches": 0}, []
    for _ in range(5):
        loader = ArrayLoader(numbered(COUNT), BatchPlan(COUNT, 5, seed=0))
        loader.load_state_dict(state)
        got += ids([next(iter(loader))])
        state = saved(loader)
    assert got == whole


def test_ranks_resume_at_the_same_batch():
    def loader(rank: int) -> ArrayLoader:
        return ArrayLoader(numbered(COUNT), BatchPlan(COUNT, 5, 0, rank, 2))

    whole = ids(list(ArrayLoader(numbered(COUNT), BatchPlan(COUNT, 5, seed=0))))
    parts = []
    for rank in range(2):
        resumed = loader(rank)
        resumed.load_state_dict({"epoch": 0, "batches": 3})
        parts.append(ids(list(resumed)))
    assert [a + b for a, b in zip(*parts, strict=True)] == whole[3:]
