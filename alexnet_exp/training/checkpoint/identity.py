"""Compare the current data with that of a checkpoint; the only place that does so, for all verbs.

Classes are matched by name, splits by count and digest (data/identity.py). How each verb reacts is listed in
docs/checkpoints.md.
"""

from __future__ import annotations

import json
import logging
import socket
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_exp.errors import UserError
from alexnet_exp.torch_internals import shared_store

log = logging.getLogger(__name__)
Splits = Mapping[str, Mapping[str, Any]]  # as data/identity.py returns them
_TRAINED_ON = ("train", "val")
_KEY = "alexnet_exp/identity"  # in the store shared by the ranks
_MOST = 10  # names listed in a message
# Preprocessing keys that merely follow from a different input size or training set.
_IGNORED = ("image_size", "stored_size", "mean_image")


class OtherDataError(UserError):
    """The data differs from the checkpoint's; raised before anything is trained or written."""


def own_classes(classes: Sequence[str]) -> list[str]:
    """Return a checkpoint's class names without the trailing "unused N" placeholders."""
    # With model.num_classes above the number of classes, every logit still needs a name (runs/train/fit.py).
    count = len(classes)
    while count and classes[count - 1] == f"unused {count - 1}":
        count -= 1
    return list(classes[:count])


# ---------------------------------------------------------------------------------------- describing differences


def class_changes(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Describe how class names or their order have changed; None if they have not."""
    if _keys(before) == _keys(now):
        return None
    new, gone = _without(now, before), _without(before, now)
    if not (new or gone):
        return f"their order is now {_some(now)}; it was {_some(before)}"
    parts = [f"{_some(new)} {_are(new)} new"] * bool(new) + [f"{_some(gone)} {_are(gone)} gone"] * bool(gone)
    return ", ".join(parts)


def split_changes(before: Splits, now: Splits) -> dict[str, str]:
    """Describe the change of every split that has changed; unknown digests count as unchanged."""
    found = {}
    for split in [*now, *(name for name in before if name not in now)]:
        was, here = before.get(split), now.get(split)
        if was is None or here is None:
            count = (was or here or {})["count"]
            found[split] = f"{split} is missing (it had {count} images)"
            if was is None:
                found[split] = f"{split} is new ({count} images)"
        elif was["count"] != here["count"]:
            more = here["count"] - was["count"]
            found[split] = (
                f"{split} has {here['count']} images, {abs(more)} {'more' if more > 0 else 'fewer'}"
            )
        elif was["digest"] and here["digest"] and was["digest"] != here["digest"]:
            found[split] = f"{split} still has {here['count']} images, but different ones"
        if split in found and was and here and was["origin"] and here["origin"] not in ("", was["origin"]):
            found[split] += f" (now {here['origin']}; before {was['origin']})"
    return found


def preprocessing_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the preprocessing settings that differ, as far as both sides have them."""
    changed = [key for key in before if key in now and key not in _IGNORED and before[key] != now[key]]
    found = [f"{key} is {_short(now[key])} and was {_short(before[key])}" for key in changed]
    if "mean_image" in before and "mean_image" in now:
        there, here = (value["mean_image"] is not None for value in (before, now))
        if there != here:
            found.append(
                "the mean image was subtracted then, but not now" if there else "the mean image is new"
            )
    return found


def _short(value: Any) -> str:
    return str(
        [round(x, 4) if isinstance(x, float) else x for x in value] if isinstance(value, list) else value
    )


# ---------------------------------------------------------------------------------------- acting on them


def check_same_data(
    checkpoint: Mapping[str, Any], path: Any, classes: Sequence[str], splits: Splits, in_place: bool
) -> bool:
    """Check that training would continue on the data of the checkpoint.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        path: Its file.
        classes: Class names of the data, in label order.
        splits: Splits of the data; empty if a custom data module does not provide them.
        in_place: Whether the checkpoint's own run is resumed (resume=), rather than a new one started (ckpt=).

    Returns:
        Whether the training images are the same, as far as known.

    Raises:
        OtherDataError: If the classes differ or, in place, the images of train or val.
    """
    if changed := class_changes(own_classes(checkpoint["classes"]), classes):
        raise OtherDataError(
            f"{path} was trained on different classes: {changed}. Restore the data, or set weights={path} to start "
            "from its weights."
        )
    if not splits:
        return True
    if (recorded := checkpoint.get("splits")) is None:
        log.warning(
            "%s is from an older version and does not record its images: only its classes are compared.", path
        )
        return True
    found = split_changes(recorded, splits)
    trained_on = [found[split] for split in _TRAINED_ON if split in found]
    if in_place and trained_on:
        raise OtherDataError(
            f"The images have changed since {path} was written: {'; '.join(trained_on)}. Restore them, or set "
            f"ckpt={path} to continue in a new run."
        )
    if found:
        log.warning("The images have changed since %s was written: %s.", path, "; ".join(found.values()))
    return "train" not in found


def changed_split(recorded: Splits | None, path: Any, split: str, now: Mapping[str, Any]) -> str | None:
    """Describe how a split differs from the one recorded in a checkpoint; None if equal or not recorded.

    Args:
        recorded: `splits` of the checkpoint.
        path: Its file.
        split: Name of the split.
        now: Its current count, digest and origin.
    """
    if not recorded or split not in recorded:
        return None
    found = split_changes({split: recorded[split]}, {split: now})
    return f"The {split} images differ from those that {path} records: {found[split]}" if found else None


def match_classes(found: Sequence[str], wanted: Sequence[str], path: Any = "the checkpoint") -> list[int]:
    """Return the label that each class of a data set has in a checkpoint, matched by name.

    Args:
        found: Classes of the data; a subset is allowed.
        wanted: Classes of the checkpoint.
        path: Its file, for the message.

    Raises:
        UserError: If the checkpoint lacks one of the classes.
    """
    if lacking := _without(found, wanted):
        raise UserError(
            f"The data has classes that {path} was not trained on: {_some(lacking)}. Remove them, or rename them to "
            f"classes of the checkpoint: {_some(own_classes(wanted))}."
        )
    numbers = {key: number for number, key in enumerate(_keys(wanted))}
    return [numbers[key] for key in _keys(found)]


def kept_rows(there: Sequence[str], here: Sequence[str]) -> tuple[dict[int, int], str]:
    """Match the rows of a classification layer by class name.

    Args:
        there: Class names of the loaded rows.
        here: Class names of the wanted rows.

    Returns:
        Row here -> row there for each common class; a description of the change, empty if there is none.
    """
    rows = {key: row for row, key in enumerate(_keys(there))}
    pairs = {row: rows[key] for row, key in enumerate(_keys(here)) if key in rows}
    if _keys(there) == _keys(here):
        return pairs, ""
    new, dropped = _without(here, there), _without(there, here)
    if not pairs:
        return {}, f"is reinitialised: none of its {len(there)} classes is among the {len(here)} here"
    kept = [here[row] for row in pairs]
    parts = [("kept", kept), ("new", new), ("dropped", dropped)]
    listed = "; ".join(f"{what} {_some(names)}" for what, names in parts if names)
    return (
        pairs,
        f"is matched by class name ({listed if new or dropped else 'same classes, different order'})",
    )


def check_ranks(trainer: Any, classes: Sequence[str], splits: Splits) -> None:
    """Check that every rank has the data of rank 0. Uses the ranks' shared store, so no device syncs.

    Args:
        trainer: With an initialised process group.
        classes: Classes of this rank's data.
        splits: Its splits.

    Raises:
        UserError: On all ranks; names the first rank with different data, and its host.
    """
    store, own = shared_store(), {"classes": list(classes), "splits": splits, "host": socket.gethostname()}
    store.set(f"{_KEY}/{trainer.global_rank}", json.dumps(own))
    if trainer.global_rank == 0:
        others = range(1, trainer.world_size)
        # Lazy: each `get` waits for its rank, and the first rank that differs ends the search.
        found = (_other_data(own, json.loads(store.get(f"{_KEY}/{r}")), r) for r in others)
        store.set(_KEY, next(filter(None, found), ""))
    if verdict := store.get(_KEY).decode():  # waits for rank 0
        raise UserError(verdict)


def _other_data(first: Mapping[str, Any], other: Mapping[str, Any], rank: int) -> str | None:
    parts = [*split_changes(first["splits"], other["splits"]).values()]
    if changed := class_changes(first["classes"], other["classes"]):
        parts.insert(0, f"of its classes {changed}")
    if not parts:
        return None
    return (
        f"Rank {rank} on {other['host']} reads different data than rank 0 on {first['host']}: {'; '.join(parts)}. All "
        "ranks need the same images: update its copy."
    )


# ---------------------------------------------------------------------------------------- names


def _keys(names: Sequence[str]) -> list[tuple[str, int]]:
    """Number repeated names (ImageNet has two classes named crane), and normalise Unicode: composed = decomposed."""
    seen: dict[str, int] = {}
    keys = []
    for name in (unicodedata.normalize("NFC", name) for name in names):
        seen[name] = seen.get(name, -1) + 1
        keys.append((name, seen[name]))
    return keys


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(_keys(others))
    return [name for name, key in zip(names, _keys(names), strict=True) if key not in known]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
