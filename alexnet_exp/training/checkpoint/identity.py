"""Whether the data of now is the data of a checkpoint: the one place that compares them, for every verb.

Classes are matched by name. Splits are compared by count and digest (data/identity.py). What follows differs by verb:
docs/checkpoints.md has the table.
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
_KEY = "alexnet_exp/identity"  # in the store that the ranks of a run share
_MOST = 10  # names in a message
# Of the preprocessing, what another input size or another training set changes by itself.
_APART = ("image_size", "stored_size", "mean_image")


class OtherDataError(UserError):
    """The data is not what the checkpoint was trained on; nothing has been trained or changed yet."""


def own_classes(classes: Sequence[str]) -> list[str]:
    """Return the names of a checkpoint's classes without the places that its data left unused."""
    count = len(classes)
    while count and classes[count - 1] == f"unused {count - 1}":
        count -= 1
    return list(classes[:count])


# ---------------------------------------------------------------------------------------- what differs


def class_changes(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Say how the names of classes or their order have changed; None if they have not."""
    if _keys(before) == _keys(now):
        return None
    new, gone = _without(now, before), _without(before, now)
    if not (new or gone):
        return f"their order is now {_some(now)}, and was {_some(before)}"
    parts = [f"{_some(new)} {_are(new)} new"] * bool(new) + [f"{_some(gone)} {_are(gone)} gone"] * bool(gone)
    return ", ".join(parts)


def split_changes(before: Splits, now: Splits) -> dict[str, str]:
    """Say of every split that has changed in what way; what is not known on both sides has not."""
    found = {}
    for split in [*now, *(name for name in before if name not in now)]:
        was, here = before.get(split), now.get(split)
        if was is None or here is None:
            count = (was or here or {})["count"]
            found[split] = f"{split} has {count} images there and none here"
            if was is None:
                found[split] = f"{split} has no images there and {count} here"
        elif was["count"] != here["count"]:
            more = here["count"] - was["count"]
            found[split] = (
                f"{split} has {here['count']} images, {abs(more)} {'more' if more > 0 else 'fewer'}"
            )
        elif was["digest"] and here["digest"] and was["digest"] != here["digest"]:
            found[split] = f"{split} has {here['count']} images as before, but not the same ones"
        if split in found and was and here and was["origin"] and here["origin"] not in ("", was["origin"]):
            found[split] += f" (here {here['origin']}; there {was['origin']})"
    return found


def preprocessing_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings of what an image goes through differ, where both sides know them."""
    changed = [key for key in before if key in now and key not in _APART and before[key] != now[key]]
    found = [f"{key} {_short(before[key])} there and {_short(now[key])} here" for key in changed]
    if "mean_image" in before and "mean_image" in now:
        there, here = (value["mean_image"] is not None for value in (before, now))
        if there != here:
            found.append("a mean image " + ("there and none here" if there else "here and none there"))
    return found


def _short(value: Any) -> str:
    return str(
        [round(x, 4) if isinstance(x, float) else x for x in value] if isinstance(value, list) else value
    )


# ---------------------------------------------------------------------------------------- what follows


def check_same_data(
    checkpoint: Mapping[str, Any], path: Any, classes: Sequence[str], splits: Splits, in_place: bool
) -> bool:
    """Hold the data that training would continue with against what the checkpoint was trained on.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        path: Where it was read.
        classes: Of the data, in the order of their labels.
        splits: Of the data; empty where the user's own module does not know.
        in_place: Whether the run is the checkpoint's own (resume=), and not a new one (ckpt=).

    Returns:
        Whether the training images are the same, as far as both sides know.

    Raises:
        OtherDataError: The classes are others; or, in place, the images of train or val.
    """
    if changed := class_changes(own_classes(checkpoint["classes"]), classes):
        raise OtherDataError(
            f"{path} was trained on other classes: {changed}. Restore the data, or set weights={path} to start "
            "from its weights."
        )
    if not splits:
        return True
    if (recorded := checkpoint.get("splits")) is None:
        log.warning(
            "%s does not record its images (it is of an older version): only its classes are compared.", path
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
    """Say that a split is not the one that a checkpoint records; None if it is, or nothing is recorded.

    Args:
        recorded: `splits` of the checkpoint.
        path: Of it.
        split: Of the data, in use now.
        now: Its count, digest and origin.
    """
    if not recorded or split not in recorded:
        return None
    found = split_changes({split: recorded[split]}, {split: now})
    return f"These are not the {split} images that {path} records: {found[split]}" if found else None


def match_classes(found: Sequence[str], wanted: Sequence[str], path: Any = "the checkpoint") -> list[int]:
    """Return for each class of some data its number in a checkpoint, by name.

    Args:
        found: Of the data; some of the checkpoint's are enough.
        wanted: Of the checkpoint.
        path: Of it, for the message.

    Raises:
        UserError: The checkpoint lacks one.
    """
    if lacking := _without(found, wanted):
        raise UserError(
            f"The data has classes that {path} was not trained on: {_some(lacking)}. It knows "
            f"{_some(own_classes(wanted))}; remove or rename the others."
        )
    numbers = {key: number for number, key in enumerate(_keys(wanted))}
    return [numbers[key] for key in _keys(found)]


def kept_rows(there: Sequence[str], here: Sequence[str]) -> tuple[dict[int, int], str]:
    """Match the rows of a last layer by the names of their classes.

    Args:
        there: Names of the rows that are loaded.
        here: Names of the rows that are wanted.

    Returns:
        Row here -> row there of every class that both have; how the layer has changed, empty if it has not.
    """
    rows = {key: row for row, key in enumerate(_keys(there))}
    pairs = {row: rows[key] for row, key in enumerate(_keys(here)) if key in rows}
    if _keys(there) == _keys(here):
        return pairs, ""
    new, dropped = _without(here, there), _without(there, here)
    if not pairs:
        return {}, f"is new: none of the {len(there)} classes there is among the {len(here)} here"
    kept = [here[row] for row in pairs]
    parts = [("kept", kept), ("new", new), ("dropped", dropped)]
    listed = "; ".join(f"{what} {_some(names)}" for what, names in parts if names)
    return pairs, f"goes by class name ({listed if new or dropped else 'the same, in another order'})"


def check_ranks(trainer: Any, classes: Sequence[str], splits: Splits) -> None:
    """Hold the data of every rank against the first one's, through the store that the ranks share: no device waits.

    Args:
        trainer: Whose process group is up.
        classes: Of this rank's data.
        splits: Likewise.

    Raises:
        UserError: On all ranks alike; names the first rank that has other data, and its machine.
    """
    store, own = shared_store(), {"classes": list(classes), "splits": splits, "host": socket.gethostname()}
    store.set(f"{_KEY}/{trainer.global_rank}", json.dumps(own))
    if trainer.global_rank == 0:
        others = range(1, trainer.world_size)
        found = (_other_data(own, json.loads(store.get(f"{_KEY}/{r}")), r) for r in others)
        store.set(_KEY, next(filter(None, found), ""))
    if verdict := store.get(_KEY).decode():
        raise UserError(verdict)


def _other_data(first: Mapping[str, Any], other: Mapping[str, Any], rank: int) -> str | None:
    parts = [*split_changes(first["splits"], other["splits"]).values()]
    if changed := class_changes(first["classes"], other["classes"]):
        parts.insert(0, f"of its classes {changed}")
    if not parts:
        return None
    return (
        f"Rank {rank} on {other['host']} reads other data than rank 0 on {first['host']}: {'; '.join(parts)}. All "
        "ranks need the same images: update its copy."
    )


# ---------------------------------------------------------------------------------------- names


def _keys(names: Sequence[str]) -> list[tuple[str, int]]:
    """Tell apart classes of one name: two of ImageNet's are crane. Composed and decomposed letters are the same."""
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
