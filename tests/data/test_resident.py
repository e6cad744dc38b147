from __future__ import annotations

import threading
import time

import pytest
import torch

from alexnet_exp.data import loaders
from alexnet_exp.data.loaders import ArrayLoader, BatchPlan, ahead, choose_place
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.errors import UserError

CUDA, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


def source(count: int = 10) -> ArraySource:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return ArraySource(images, torch.arange(count) % 3, ("a", "b", "c"), "made train")


@pytest.mark.parametrize("wanted", ["auto", "device", "host", "off"])
def test_on_cpu_nothing_is_moved(wanted: str):
    assert choose_place(wanted, 10**9, torch.device("cpu")) == "off"


@pytest.mark.parametrize(("num_bytes", "place"), [(2_500, "device"), (2_501, "host")])
def test_auto_uses_up_to_a_quarter_of_the_gpu_s_free_memory(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, place: str
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 20_000))
    assert choose_place("auto", num_bytes, CUDA) == place


@pytest.mark.parametrize("wanted", ["host", "off"])
def test_the_user_s_choice_is_kept_however_little_memory_is_free(wanted: str):
    assert choose_place(wanted, 10**15, CUDA) == wanted


def test_device_may_use_all_free_gpu_memory_but_no_more(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 10**9, 80 * 10**9))
    assert choose_place("device", 2 * 10**9, CUDA) == "device"
    with pytest.raises(UserError, match=r"take 3\.0 GB, and 2\.0 GB .* use data\.resident=host"):
        choose_place("device", 3 * 10**9, CUDA)


def test_items_are_prefetched_in_order_on_another_thread():
    made: list[tuple[int, int]] = []

    def items():
        for i in range(5):
            made.append((i, threading.get_ident()))
            yield i

    coming = ahead(items())
    assert next(coming) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [i for i, _ in made] == [0, 1, 2]  # two more than were taken
    assert list(coming) == [1, 2, 3, 4]
    assert threading.get_ident() not in {thread for _, thread in made}


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("disk")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(OSError, match="disk"):
        next(coming)


def test_an_abandoned_epoch_leaves_no_thread():
    coming = ahead(iter(range(100)))
    next(coming)
    coming.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_indices_are_on_the_device_of_the_images():
    loader = ArrayLoader(source(), BatchPlan(10, 4, seed=1))
    assert loader.sampler.device == torch.device("cpu")
    for batch in loader:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
        assert torch.equal(batch.labels, batch.indices % 3)


def test_sent_batches_are_the_same_and_all_epochs_use_one_stream(monkeypatch: pytest.MonkeyPatch):
    class Mover:
        made = 0

        def __init__(self, device: torch.device) -> None:
            Mover.made += 1
            self.device = device

        def send(self, tensors: list[torch.Tensor]):
            return lambda: tensors

    entered: list[tuple[torch.device, str]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: entered.append((device, threading.current_thread().name))
    )
    monkeypatch.setattr(loaders, "Mover", Mover)
    monkeypatch.setattr(loaders, "gather_pinned", torch.Tensor.__getitem__)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    sent, plain = (ArrayLoader(source(), BatchPlan(10, 4, seed=1), to) for to in (SECOND, None))
    for epoch in range(3):
        sent.sampler.set_epoch(epoch)
        plain.sampler.set_epoch(epoch)
        for ours, theirs in zip(sent, plain, strict=True):
            assert all(map(torch.equal, ours[:3], theirs[:3])) and ours[3:] == theirs[3:]
    assert Mover.made == 1
    # Each epoch's thread sets the run's device, so it creates nothing on the first GPU.
    assert [(device, name[:7]) for device, name in entered] == [(SECOND, "batches")] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("seed", [None, 1])
def test_every_place_gives_the_same_batches(seed: int | None):
    def batches(place: str):
        own = source()
        if place == "device":
            own = ArraySource(own.images.to(CUDA), own.labels.to(CUDA), own.classes, own.name)
        loader = ArrayLoader(own, BatchPlan(10, 4, seed=seed), CUDA if place == "host" else None)
        return [tuple(x.cpu() for x in batch[:3]) for batch in loader]

    expected = batches("off")
    for place in ("device", "host"):
        for ours, theirs in zip(batches(place), expected, strict=True):
            assert all(map(torch.equal, ours, theirs))
