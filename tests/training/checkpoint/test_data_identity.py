"""Differences between the data of a checkpoint and the current data, and between the ranks of a run."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alexnet_exp.errors import UserError
from alexnet_exp.training.checkpoint import identity
from alexnet_exp.training.checkpoint.identity import class_changes, kept_rows, match_classes, split_changes


def split(count: int, digest: str | None = "a", origin: str = "") -> dict[str, Any]:
    return {"count": count, "digest": digest, "origin": origin}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (split(3), split(3), None),
        (split(3), split(4), "val has 4 images, 1 more"),
        (split(3), split(1), "val has 1 images, 2 fewer"),
        (split(3), split(3, "b"), "val still has 3 images, but different ones"),
        (split(3), split(3, None), None),  # unknown
        (split(3, origin="cut at 0.1"), split(4, origin="val folder"),
         "val has 4 images, 1 more (now val folder; before cut at 0.1)"),
        (split(3), None, "val is missing (it had 3 images)"),
        (None, split(3), "val is new (3 images)"),
    ],
)  # fmt: skip
def test_the_change_of_a_split_is_described(
    before: dict[str, Any] | None, now: dict[str, Any] | None, said: str | None
) -> None:
    given = [{} if about is None else {"val": about} for about in (before, now)]
    assert split_changes(*given).get("val") == said


def test_changed_classes_are_named() -> None:
    assert class_changes(["a", "b"], ["a", "b"]) is None
    assert class_changes(["a", "b"], ["b", "c", "d"]) == "c, d are new, a is gone"
    assert class_changes(["a", "b"], ["b", "a"]) == "their order is now b, a; it was a, b"
    many = [f"class {i}" for i in range(30)]
    assert (class_changes(many, []) or "").endswith("class 9 and 20 more are gone")


def test_two_classes_of_the_same_name_stay_distinct() -> None:
    there = ["crane", "maillot", "crane", "dog"]
    assert match_classes(["crane", "dog", "crane"], there) == [0, 3, 2]
    assert kept_rows(there, ["crane", "crane", "cat"])[0] == {0: 0, 1: 2}
    with pytest.raises(UserError, match=r"not trained on: crane\. Remove"):
        match_classes(["crane"] * 3, there)


def ranks(monkeypatch: pytest.MonkeyPatch, *splits: dict[str, Any]) -> list[str]:
    """Let ranks compare these splits; return the error of each rank."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(identity, "shared_store", lambda: store)

    def check(rank: int) -> str:
        try:
            trainer = SimpleNamespace(global_rank=rank, world_size=len(splits))
            identity.check_ranks(trainer, ["ant", "bee"], splits[rank])
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(splits)) as pool:
        return list(pool.map(check, range(len(splits))))


def test_a_rank_with_a_stale_copy_of_the_data_is_named_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"train": split(9), "val": split(3)}
    assert ranks(monkeypatch, whole, whole, whole) == [""] * 3
    found = ranks(monkeypatch, whole, whole, {"train": split(8, "b"), "val": split(3)})
    assert len(set(found)) == 1
    here = socket.gethostname()
    assert found[0].startswith(
        f"Rank 2 on {here} reads different data than rank 0 on {here}: train has 8 images, 1 fewer."
    )
