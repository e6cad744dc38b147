"""Groups of duplicate images: whether they leak between splits, and which of them to exclude."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from alexnet_exp.runs.inspect.look import Look
from alexnet_exp.runs.inspect.near import LEAST_SIDE, near_pairs


@dataclass(frozen=True)
class Group:
    """A group of duplicates.

    Args:
        members: Their indices, ascending, which puts train before val and test.
        exact: All have the same bytes (in memory: the same pixels).
        leaks: Some are in train, others in val or test.
        conflicts: Their labels differ.
    """

    members: list[int]
    exact: bool
    leaks: bool
    conflicts: bool


def find_groups(look: Look) -> list[Group]:
    """Return all groups of duplicates: leaks first, then those with different labels, then exact ones."""
    same = defaultdict(list)
    for index, record in enumerate(look.records):
        if not record.error:
            same[record.sha256].append(index)
    # Compare one image of each set of exact copies; tiny images carry too little to compare.
    firsts = np.array([members[0] for members in same.values()], dtype=int)
    least = look.sizes()[firsts].min(1)
    firsts = firsts[(least == 0) | (least >= LEAST_SIDE)]  # 0: size unknown
    pairs = near_pairs(look.small[firsts], look.hashes[firsts], look.contrasts[firsts])
    links = [(members[0], other) for members in same.values() for other in members[1:]]
    links += zip(firsts[pairs.left].tolist(), firsts[pairs.right].tolist(), strict=True)
    groups = [_group(members, look) for members in _connected(links)]
    return sorted(groups, key=lambda g: (not g.leaks, not g.conflicts, not g.exact, g.members))


def _connected(links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of a graph, each ascending (union-find)."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]  # path halving
        return node

    for left, right in links:
        parent[root(left)] = root(right)
    found = defaultdict(list)
    for node in sorted(parent):
        found[root(node)].append(node)
    return list(found.values())


def _group(members: list[int], look: Look) -> Group:
    splits = {look.splits[i] for i in members}
    return Group(
        members,
        exact=len({look.records[i].sha256 for i in members}) == 1,
        leaks="train" in splits and len(splits) > 1,
        conflicts=len({int(look.labels[i]) for i in members}) > 1,
    )


def leaked(groups: Iterable[Group], look: Look) -> dict[str, int]:
    """Return how many images of each split but train have a copy in train."""
    counts = {split: 0 for split in look.sources if split != "train"}
    for group in groups:
        for index in group.members if group.leaks else ():
            if look.splits[index] != "train":
                counts[look.splits[index]] += 1
    return counts


def to_leave_out(groups: Iterable[Group], look: Look) -> list[int]:
    """Return the training images to exclude, to remove all leaks, repetitions and conflicting labels from train.

    Val and test are left alone. Of duplicates within train the first is kept, or none if their labels differ: there is
    no telling which label is right.
    """
    chosen = []
    for group in groups:
        in_train = [i for i in group.members if look.splits[i] == "train"]
        chosen += in_train if group.leaks or group.conflicts else in_train[1:]
    return sorted(chosen)
