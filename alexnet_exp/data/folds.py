"""k-fold cross-validation: assign every training image, or group of images, to a fold."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alexnet_exp.data.randomness import permutation
from alexnet_exp.data.sources import ArraySource, FileSource, draw
from alexnet_exp.errors import UserError, printable, unreadable

log = logging.getLogger(__name__)
Source = ArraySource | FileSource


def fold_of_each(source: Source, folds: int, seed: int, groups: str | None = None) -> Tensor:
    """Return the fold of every image, int64 (N,) in 0 .. `folds` - 1, stratified by class.

    The files of a class are sorted by a hash of their names (in-memory images are shuffled) and cut into contiguous
    parts, one per fold. Adding or removing a file therefore moves at most one image between neighbouring folds. A hash
    of the class name chooses the fold that takes the first part, so that remainders do not all end up in one fold.

    Args:
        source: The training images.
        folds: Number of folds, 2 or more.
        seed: Selects the order.
        groups: See `groups_of`; all images of a group share a fold.

    Raises:
        UserError: As `groups_of`, or if there are fewer groups than folds.
    """
    names = source.names() if isinstance(source, FileSource) else None
    if groups is not None:
        return _grouped(source.labels, groups_of(source, groups), folds, seed)
    found = torch.empty(len(source), dtype=torch.long)
    for label, name in enumerate(source.classes):
        members = torch.nonzero(source.labels == label).flatten()
        count = len(members)
        if names is None:
            order = members[permutation(count, "folds", seed, label)]
        else:
            # dtype, because a class may be empty, and torch.tensor([]) holds floats.
            order = torch.tensor(
                sorted(members.tolist(), key=lambda i: draw(names[i], "folds", seed)), dtype=torch.long
            )
        first = int(draw(name, "folds", seed) * folds)
        found[order] = (torch.arange(count) * folds // max(1, count) + first) % folds
    return found


def groups_of(source: Source, wanted: str) -> list[str]:
    """Return the group of every image; an image without one forms its own group.

    Args:
        source: The images.
        wanted: A csv file with lines NAME,GROUP, or a regular expression that is searched in the name and whose first
            capture group names the image's group. Names are relative to the data set's folder: train/cup/17_b.jpg.

    Raises:
        UserError: If the file cannot be read, the expression is invalid, or no image has a group.
    """
    names = [source.image_name(i).replace(os.sep, "/") for i in range(len(source))]
    path = os.path.expanduser(wanted)
    # A .csv that does not exist is an error to report, not an expression without a match.
    group_of = _table(path).get if os.path.isfile(path) or path.endswith(".csv") else _pattern(wanted)
    found = [group_of(name) for name in names]
    alone = [name for name, group in zip(names, found, strict=True) if group is None]
    if len(alone) == len(names):
        raise UserError(f"data.groups={wanted} matches no training image (such as {names[0]}).")
    if alone:
        log.warning("data.groups: %d of %d training images have no group, such as %s: each forms its own group.",
                    len(alone), len(names), printable(alone[0]))  # fmt: skip
    return [
        f"image {name}" if group is None else f"group {group}"
        for name, group in zip(names, found, strict=True)
    ]


def _table(path: str) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise unreadable(path, error) from error
    except csv.Error as error:
        raise UserError(f"data.groups={path}: not a csv file ({error}).") from error
    if wrong := next((row for row in rows if len(row) != 2), None):
        raise UserError(f"invalid line in data.groups={path}: expected NAME,GROUP, not {','.join(wrong)}.")
    return {row[0]: row[1] for row in rows}


def _pattern(wanted: str) -> Callable[[str], str | None]:
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise UserError(
            f"invalid data.groups={wanted}: expected a csv file or a regular expression ({error})."
        ) from error
    if not pattern.groups:
        raise UserError(
            f"data.groups={wanted}: put parentheses around the part that names the group, as in '(.*)_[0-9]+'."
        )

    def group_of(name: str) -> str | None:
        match = pattern.search(name)
        return match and match[1]

    return group_of


def _grouped(labels: Tensor, groups: Sequence[str], folds: int, seed: int) -> Tensor:
    """Assign whole groups to folds greedily: largest group first, to the fold where its classes are rarest so far."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    if len(members) < folds:
        raise UserError(f"data.groups makes {len(members)} groups, too few for data.folds={folds}.")
    sizes = torch.bincount(labels).double()
    placed = torch.zeros(folds, len(sizes), dtype=torch.float64)  # images of each class in each fold so far
    found = torch.empty(len(labels), dtype=torch.long)
    for group in sorted(members, key=lambda g: (-len(members[g]), draw(g, "folds", seed))):
        classes, counts = labels[members[group]].unique(return_counts=True)
        # Growth of the sum of squared class shares, which is smallest for balanced folds; ties: the smallest fold.
        cost = (placed[:, classes] * (counts / sizes[classes] ** 2)).sum(1)
        chosen = min(range(folds), key=lambda f: (float(cost[f]), float(placed[f].sum()), f))
        placed[chosen, classes] += counts
        found[members[group]] = chosen
    return found
