"""Chunks that prepare has written, against the folder that they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alexnet_exp import cores
from alexnet_exp.cli import main
from alexnet_exp.data import Folder, Streaming
from alexnet_exp.data.loaders import Batch, Loader
from alexnet_exp.data.streaming.loader import turns
from alexnet_exp.errors import UserError
from alexnet_exp.inference import load_classifier
from alexnet_exp.runs.export.check import images_to_check
from alexnet_exp.training.checkpoint.safe_load import load_safely
from tests.data.makers import write_folder
from tests.runs.evaluated_runs import evaluated
from tests.training.small_runs import SMALL

COMMON = {"batch_size": 8, "image_size": 28, "mean": [0.5] * 3, "std": [0.25] * 3, "seed": 3}


class Rank(Streaming):
    """The data as one of several ranks has it."""

    def __init__(self, url: str, rank: int = 0, world_size: int = 1, workers: int | None = 0) -> None:
        super().__init__(url, **COMMON, num_workers=workers)
        self.setup()
        if world_size > 1:
            strategy = SimpleNamespace(root_device=torch.device("cpu"))
            self.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, strategy=strategy)  # type: ignore

    def epoch(self, epoch: int = 0, split: str = "train", start: int = 0) -> list[Batch]:
        loader = self.shuffled(split)
        loader.load_state_dict({"epoch": epoch, "batches": start})
        loader.sampler.set_epoch(epoch)
        return list(loader)

    def shuffled(self, split: str = "train") -> Loader:
        return self.loader(split, shuffle=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """51 and 7 images: no share of ranks, workers and batches comes out even."""
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder, {"train/cat": 20, "train/dog": 31, "val/cat": 3, "val/dog": 4})
    return folder


@pytest.fixture(scope="module")
def url(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("chunks") / "out"
    assert main(["prepare", f"data.root={root}", f"out={out}", "num_workers=1", "chunk_mb=1"]) == 0
    return str(out)


@pytest.fixture(scope="module")
def originals(root: Path) -> dict[str, tuple[torch.Tensor, int]]:
    """Image and label of every file, as data=folder has them."""
    data = Folder(str(root), **COMMON, num_workers=0)
    data.setup()
    return {
        source.image_name(i): (data.stored_image(split, i), int(source.labels[i]))
        for split, source in data.sources.items()
        for i in range(len(source))
    }


def names(data: Rank, batches: list[Batch]) -> list[str]:
    source = data.sources["train"]
    return [source.image_name(i) for b in batches for i in b.indices[: b.size].tolist()]


@pytest.mark.parametrize(
    ("world_size", "workers"), [(1, 0), (2, 0), (3, 0), (1, 2), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_an_epoch_has_every_image_once_with_its_label(
    world_size: int, workers: int, url: str, originals: dict[str, tuple[torch.Tensor, int]]
):
    ranks = [Rank(url, rank, world_size, workers) for rank in range(world_size)] if world_size != 3 else []
    if world_size == 3:  # 8 images cannot be shared by three
        with pytest.raises(UserError, match="a multiple"):
            Rank(url, 0, 3).shuffled()
        return
    epochs = [rank.epoch() for rank in ranks]
    seen = [name for rank, batches in zip(ranks, epochs, strict=True) for name in names(rank, batches)]
    assert sorted(seen) == sorted(name for name in originals if name.startswith("train"))
    assert len({len(batches) for batches in epochs}) == 1 == len({len(rank.shuffled()) for rank in ranks})
    for step in zip(*epochs, strict=True):
        assert {batch.global_size for batch in step} == {sum(batch.size for batch in step)}
    for rank, batches in zip(ranks, epochs, strict=True):
        for batch in batches:
            for image, label, index in zip(*batch[:3], strict=True):
                pixels, wanted = originals[rank.sources["train"].image_name(int(index))]
                assert torch.equal(image, pixels) and int(label) == wanted


def test_a_plan_knows_the_images_of_each_batch_in_every_epoch(url: str):
    ranks = [Rank(url, rank, 2) for rank in range(2)]
    plan = ranks[0].shuffled().sampler
    for epoch in (0, 1):
        plan.set_epoch(epoch)
        batches = [rank.epoch(epoch) for rank in ranks]
        sizes = [batch.global_size for batch in batches[0]]
        assert [plan.images(range(i, i + 1)) for i in range(len(plan))] == sizes
        assert (plan.images(range(1, 3)), plan.smallest_batch(len(plan))) == (sum(sizes[1:3]), min(sizes))
        slices = [len(batch.indices) for rank in batches for batch in rank]
        assert plan.smallest_slice(len(plan)) == min(slices)
        assert plan.images(range(len(plan))) == 51


def test_the_order_depends_only_on_the_epoch(url: str):
    data = Rank(url)
    first, second = data.epoch(0), data.epoch(1)
    assert names(data, first) != names(data, second) != sorted(names(data, second))
    assert names(data, data.epoch(0)) == names(data, first)


@pytest.mark.parametrize(
    ("workers", "start"), [(0, 3), *(pytest.param(2, start, marks=pytest.mark.slow) for start in (1, 4, 7))]
)
def test_a_resumed_epoch_gives_the_rest_in_the_same_order(workers: int, start: int, url: str):
    data = Rank(url, workers=workers)
    whole = data.epoch(1)
    rest = data.epoch(1, start=start)
    assert names(data, rest) == names(data, whole[start:])
    assert rest


def test_a_resumed_run_uses_the_same_number_of_workers(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "available_cores", lambda: 3)
    before = Rank(url, workers=None).state_dict()
    monkeypatch.setattr(cores, "available_cores", lambda: 1)
    free, typed = Rank(url, workers=None), Rank(url, workers=2)
    for data in (free, typed):
        data.load_state_dict(before)
    assert (free.shuffled().sampler.num_workers, typed.shuffled().sampler.num_workers) == (3, 2)  # type: ignore


def test_ranks_on_different_machines_use_as_many_workers_as_rank_0(url: str, monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []

    def broadcast(number: int) -> int:
        sent.append(number)
        return sent[0]

    ranks = [Rank(url, rank, 2, workers=None) for rank in (0, 1)]
    for rank, count in zip(ranks, (3, 1), strict=True):
        monkeypatch.setattr(cores, "available_cores", lambda count=count: count)
        rank.trainer.num_devices, rank.trainer.strategy.broadcast = 1, broadcast  # type: ignore
        rank.setup("fit")
    assert sent == [3, 1]
    loaders = [rank.shuffled() for rank in ranks]
    assert [loader.sampler.num_workers for loader in loaders] == [3, 3]  # type: ignore
    assert len({len(loader) for loader in loaders}) == 1
    assert [rank.state_dict() for rank in ranks] == [{"workers": 3}] * 2


@pytest.mark.parametrize("state", [{"workers": 10**9}, {"workers": "many"}, {}, 7])
def test_a_malformed_state_does_not_change_the_number_of_workers(url: str, state: Any):
    data = Rank(url, workers=None)
    wanted = data.state_dict()
    data.load_state_dict(state)
    assert data.state_dict() == wanted


def test_a_changed_order_of_the_rest_of_an_epoch_is_warned_about(url: str, caplog: pytest.LogCaptureFixture):
    began = Rank(url).shuffled()
    began.sampler.set_epoch(1)
    began.sampler.taken = 3
    Rank(url).shuffled().load_state_dict(began.state_dict())
    began.sampler.taken = len(began)  # whole: the next epoch begins anew
    Rank(url, workers=2).shuffled().load_state_dict(began.state_dict())
    assert not caplog.records
    began.sampler.taken = 3
    Rank(url, workers=2).shuffled().load_state_dict(began.state_dict())
    assert "started with data.num_workers=1 on 1 devices and continues with 2 on 1" in caplog.text


def test_the_mean_image_is_computed_once_and_cached(
    url: str, originals: dict[str, tuple[torch.Tensor, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def mean() -> torch.Tensor | None:
        data = Streaming(
            url, cache_dir=str(tmp_path), augment={"mean_image": "centre"}, num_workers=0, **COMMON
        )
        data.setup()
        return data.pipeline.mean_image

    images = [image for name, (image, _) in originals.items() if name.startswith("train")]
    wanted = torch.stack(images).double().mean(0).float()
    first = mean()
    torch.testing.assert_close(first, wanted, rtol=1e-6, atol=0)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:200])
    torch.testing.assert_close(mean(), first, rtol=0, atol=0)  # of what is damaged, taken again
    monkeypatch.setattr(Streaming, "_compute_mean", None)
    torch.testing.assert_close(mean(), first, rtol=0, atol=0)


def test_local_chunks_are_read_in_place(url: str):
    before = sorted(Path(url).rglob("*.bin"))
    Rank(url).epoch()
    assert sorted(Path(url).rglob("*.bin")) == before != []


def test_single_images_are_read_by_index(url: str, originals: dict[str, tuple[torch.Tensor, int]]):
    data = Rank(url)
    assert torch.equal(data.stored_image("val", 5), originals[data.sources["val"].image_name(5)][0])


def test_workers_take_turns_until_each_share_is_used_up():
    assert turns([5, 3], 2) == [(0, 2), (1, 2), (0, 2), (1, 1), (0, 1)]
    assert turns([0, 3], 2) == [(1, 2), (1, 1)]


def test_a_folder_without_chunks_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"^\S+manifest\.json cannot be read \(No such file"):
        Streaming(str(tmp_path), **COMMON).setup()


@pytest.mark.slow
def test_two_ranks_train_on_chunks_and_the_checkpoint_can_be_evaluated(url: str, tmp_path: Path):
    narrow = [s for s in SMALL if not s.startswith(("data", "trainer=cpu"))]
    typed = [*narrow, "data=streaming", f"data.url={url}", "data.batch_size=8", "data.num_workers=0"]
    run = tmp_path / "run"
    assert main(["train", *typed, "trainer=ddp_cpu", f"hydra.run.dir={run}"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["devices"], result["steps"]) == ("finished", 2, 7)
    assert load_safely(run / "checkpoints" / "last.ckpt")["Streaming"] == {"workers": 0}
    again = evaluated(tmp_path / "evaluation", run, "split=val")
    assert again["metrics"]["val/top1"] == pytest.approx(result["metrics"]["val/top1"])
    assert main(["figures", str(run), "device=cpu", f"hydra.run.dir={tmp_path / 'figures'}"]) == 0
    images, where = images_to_check(load_classifier(str(run)), (), "")
    assert (len(images), where) == (7, "7 images of the val split")
