"""Report the findings: on the terminal, as csv files, as a list for data.exclude, and on a page."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from alexnet_exp.data.decode import decode
from alexnet_exp.data.identity import facts
from alexnet_exp.data.module import ImageData
from alexnet_exp.data.sources import ArraySource
from alexnet_exp.errors import printable
from alexnet_exp.files import text_file, write_atomically
from alexnet_exp.report.details import origin
from alexnet_exp.report.html import number, percent, write_html
from alexnet_exp.report.pictures import to_pil
from alexnet_exp.runs.inspect.duplicates import Group, leaked, to_leave_out
from alexnet_exp.runs.inspect.look import Look
from alexnet_exp.runs.inspect.near import PLAIN
from alexnet_exp.tracking.redact import redact

MAX_GROUPS, MAX_MEMBERS = 60, 6  # on the page
MAX_ROWS = 30  # classes, and unreadable files
MAX_LINES = 5  # leaks on the terminal
NUM_AUGMENTED = 64
THUMBNAIL = 128  # pixels


class Findings(NamedTuple):
    """Everything that is reported.

    Args:
        look: All images.
        groups: Groups of duplicates.
        leaks: Number of images with a copy in train, per other split.
        left_out: Training images listed in exclude.txt.
        notes: Warnings from the search for files: which were left out, and why.
    """

    look: Look
    groups: list[Group]
    leaks: dict[str, int]
    left_out: list[int]
    notes: list[str]

    @classmethod
    def of(cls, look: Look, groups: list[Group], notes: list[str]) -> Findings:
        return cls(look, groups, leaked(groups, look), to_leave_out(groups, look), notes)

    @property
    def unreadable(self) -> list[int]:
        return [i for i, record in enumerate(self.look.records) if record.error]

    @property
    def plain(self) -> list[int]:
        """Images of nearly uniform colour, for which near duplicates cannot be detected."""
        flat = np.flatnonzero(self.look.contrasts < PLAIN).tolist()
        return [i for i in flat if not self.look.records[i].error]


# ------------------------------------------------------------------------------------------------ terminal


def summary(found: Findings) -> Iterator[str]:
    """Yield the lines to print after those of the splits."""
    look = found.look
    known = look.sizes()[[not record.error for record in look.records]]
    if len(known):
        least, middle, most = (np.quantile(known, q, axis=0, method="nearest") for q in (0, 0.5, 1))
        same = (least == most).all()
        yield f"sizes       {_size(middle)}" + ("" if same else f" (median), {_size(least)} to {_size(most)}")
    if look.of_files:
        yield f"formats     {_counted(_formats(look))}"
    yield f"mean, std   {_numbers(look.mean)}; {_numbers(look.std)}"
    if found.unreadable:
        first = found.unreadable[0]
        name, why = printable(look.name(first)), look.records[first].error.rstrip(".")
        yield f"unreadable  {len(found.unreadable):,}: {name} {why}{', ...' if len(found.unreadable) > 1 else ''}"
    if found.plain:
        first_name = printable(look.name(found.plain[0]))
        yield f"plain       {len(found.plain):,} of nearly uniform colour, such as {first_name}"
    yield f"duplicates  {_duplicates(found.groups)}"
    yield f"leaks       {leaks_text(found)}"
    leaking = [group for group in found.groups if group.leaks]
    for group in leaking[:MAX_LINES]:
        other = next(i for i in group.members if look.splits[i] != "train")
        names = printable(f"{look.name(group.members[0])} and {look.name(other)}")
        yield f"            {names} ({'exact' if group.exact else 'near'})"
    if len(leaking) > MAX_LINES:
        yield f"            ... and {len(leaking) - MAX_LINES:,} more in duplicates.csv"


def leaks_text(found: Findings) -> str:
    """Return '3 of 36 val and 2 of 40 test images are also in train'."""
    parts = [f"{n:,} of {len(found.look.sources[s]):,} {s}" for s, n in found.leaks.items() if n]
    if not parts:
        return "none" if found.leaks else "none: there is only one split"
    return f"{' and '.join(parts)} images are also in train"


def _duplicates(groups: Sequence[Group]) -> str:
    if not groups:
        return "none"
    parts = []
    for kind, exact in (("exact", True), ("near", False)):
        if sizes := [len(group.members) for group in groups if group.exact == exact]:
            plural = "s" * (len(sizes) > 1)
            parts.append(f"{len(sizes):,} group{plural} of {kind} copies ({sum(sizes):,} images)")
    differ = sum(group.conflicts for group in groups)
    return ", ".join(parts) + (f"; {differ:,} with different labels" if differ else "")


def _size(size: np.ndarray) -> str:
    return f"{size[0]:,} x {size[1]:,}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _formats(look: Look) -> Counter[str]:
    return Counter(f"{r.header.format} {r.header.mode}".strip() for r in look.records if r.header)


def _counted(counts: Counter[str], most: int = 8) -> str:
    named = [f"{name} ({n:,})" for name, n in counts.most_common(most)]
    return ", ".join(named) + (", ..." if len(counts) > most else "") if named else "none"


# ------------------------------------------------------------------------------------------------ files


def write_tables(folder: Path, found: Findings) -> bool:
    """Write images.csv, duplicates.csv, and exclude.txt if there are training files to exclude.

    Returns:
        Whether exclude.txt was written.
    """
    look = found.look
    with text_file(folder / "images.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["split", "image", "class", "width", "height", "format", "mode", "orientation", "bytes", "sha256", "hash",
             "error"]
        )  # fmt: skip
        for i, (record, (width, height)) in enumerate(zip(look.records, look.sizes().tolist(), strict=True)):
            header = record.header
            fields = [header.format, header.mode, header.orientation] if header else ["", "", ""]
            bits = "" if record.error else f"{int(look.hashes[i]):016x}"
            writer.writerow(
                [look.splits[i], look.name(i), look.label(i), width or "", height or "", *fields,
                 record.num_bytes or "", record.sha256, bits, record.error]
            )  # fmt: skip
    with text_file(folder / "duplicates.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["group", "kind", "leak", "labels_differ", "split", "image", "class", "bits", "difference"]
        )
        for count, group in enumerate(found.groups, start=1):
            kind = ["exact" if group.exact else "near", int(group.leaks), int(group.conflicts)]
            for i in group.members:
                difference = _difference(look, group.members[0], i)
                writer.writerow([count, *kind, look.splits[i], look.name(i), look.label(i), *difference])
    # A list with one name per line cannot hold names with line breaks.
    names = [name for i in found.left_out if not set(name := look.name(i)) & set("\r\n")]
    if not (look.of_files and names):
        return False
    text = "".join(f"{name}\n" for name in names)
    write_atomically(folder / "exclude.txt", text.encode("utf-8", "surrogateescape"))
    return True


def _difference(look: Look, left: int, right: int) -> tuple[int, str]:
    """Return the number of differing hash bits, and the rms distance of two thumbnails in grey levels."""
    pixels = look.small[left].astype(np.float64) - look.small[right]
    return int(np.bitwise_count(look.hashes[left] ^ look.hashes[right])), f"{np.sqrt((pixels**2).mean()):.2f}"


# ------------------------------------------------------------------------------------------------ page


def augmented(data: ImageData, found: Findings) -> list[tuple[np.ndarray, str]]:
    """Return training images as augmented in the first epoch, (S, S, C) uint8, with their classes."""
    if "train" not in data.sources:
        return []
    bad = set(found.unreadable)  # train is the first split, so positions and indices agree
    chosen = [i for i in data.spread("train").tolist() if i not in bad][:NUM_AUGMENTED]
    if not chosen:
        return []
    images, aspects = data.training_images(chosen)
    x = data.pipeline.train(images, torch.tensor(chosen), data.seed, 0, aspects)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.preprocess.mean, data.preprocess.std))
    pixels = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [(image, found.look.label(i)) for image, i in zip(pixels, chosen, strict=True)]


def write_page(path: Path, data: ImageData, found: Findings, result: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        path: The file.
        data: The data module, for its augmentation.
        found: The findings.
        result: Content of result.json, for the command and the machine.
    """
    look = found.look
    splits = {split: facts(source, data.origins.get(split, "")) for split, source in look.sources.items()}
    names = [source.name.rpartition(" ")[0] or source.name for source in look.sources.values()]
    write_html(
        path,
        "inspect.html",
        title=", ".join(dict.fromkeys(names)),
        chips=[],
        problems=list(_problems(found)),
        headline=[
            ("images", f"{len(look):,}"),
            ("classes", f"{len(look.classes):,}"),
            ("groups of duplicates", f"{len(found.groups):,}"),
            ("val and test images also in train", f"{sum(found.leaks.values()):,}"),
        ],
        splits=[_split_row(split, fact) for split, fact in splits.items()],
        split_names=list(splits),
        groups=[_group_view(group, look) for group in found.groups[:MAX_GROUPS]],
        num_groups=len(found.groups),
        of_files=look.of_files,
        unreadable=[(look.name(i), look.records[i].error) for i in found.unreadable[:MAX_ROWS]],
        num_unreadable=len(found.unreadable),
        notes=found.notes,
        **_shapes(found, data),
        **_classes(look),
        **_statistics(look, data),
        augmented=augmented(data, found),
        input_size=data.preprocess.image_size,
        thumbnail=THUMBNAIL,
        origin=origin(redact(dict(result))),  # reports get shared
    )


def _problems(found: Findings) -> Iterator[str]:
    if any(found.leaks.values()):
        yield f"Leak: {leaks_text(found)}, so scores on them are too optimistic."
    if differ := sum(group.conflicts for group in found.groups):
        yield f"{differ:,} group{'s' * (differ > 1)} of copies with different labels."
    if count := len(found.unreadable):
        files = f"{count:,} file{'s' * (count > 1)}"
        yield f"{files} cannot be decoded: training stops at the first, or skips them (data.on_bad_image=skip)."


def _split_row(split: str, fact: Mapping[str, Any]) -> list[str]:
    ends = [f"{fact[end]['class']} ({fact[end]['images']:,})" for end in ("smallest", "largest")]
    return [split, f"{fact['images']:,}", f"{fact['classes']:,}", *ends, fact["origin"]]


def _group_view(group: Group, look: Look) -> dict[str, Any]:
    """Return what the page shows of a group; for a leak, members of both splits."""
    others = [i for i in group.members if group.leaks and look.splits[i] != "train"][: MAX_MEMBERS // 2]
    first = [i for i in group.members if i not in others]
    chosen = sorted([*others, *first][:MAX_MEMBERS])
    marks = [{"kind": "leak", "text": "leak"}] if group.leaks else []
    marks += [{"kind": "label", "text": "different labels"}] if group.conflicts else []
    marks += [{"kind": "", "text": "exact copies" if group.exact else "near copies"}]
    members = [
        {"image": _picture(look, i), "split": look.splits[i], "label": look.label(i), "name": look.name(i)}
        for i in chosen
    ]
    return {"marks": marks, "members": members, "more": len(group.members) - len(members)}


def _picture(look: Look, index: int) -> np.ndarray:
    """Return a thumbnail of an image, (H, W, C) uint8."""
    source, position = look.place(index)
    if isinstance(source, ArraySource):
        return source.images[position].permute(1, 2, 0).numpy()
    picture = to_pil(decode(source.paths[position], 3, enough=THUMBNAIL).permute(1, 2, 0).numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def _shapes(found: Findings, data: ImageData) -> dict[str, Any]:
    look = found.look
    readable = [i for i, record in enumerate(look.records) if not record.error]
    known = look.sizes()[readable]
    known = known[known.min(1) > 0]
    rows: list[list[str]] = []
    if len(known):
        ratios = known[:, 0] / known[:, 1]
        columns = [("width", known[:, 0]), ("height", known[:, 1]), ("width : height", ratios)]
        if look.of_files:
            columns.append(("kilobytes", np.array([look.records[i].num_bytes for i in readable]) / 1000))
        at = (0, 0.05, 0.5, 0.95, 1)
        rows = [
            [name, *(number(float(f"{q:.3g}") if q < 1000 else float(q)) for q in np.quantile(values, at))]
            for name, values in columns
        ]
    shapes = {"most frequent sizes": _counted(Counter(_size(size) for size in known), 5)}
    notes = []
    if look.of_files:
        headers = [look.records[i].header for i in readable]
        turned = Counter(str(h.orientation) for h in headers if h and h.orientation != 1)
        shapes |= {
            "formats": _counted(Counter(h.format for h in headers if h)),
            "modes": _counted(Counter(h.mode for h in headers if h and h.mode)),
            "EXIF orientation other than 1": _counted(turned),
        }
        if small := int((known.min(1) < data.stored_size).sum()):
            share = percent(small / len(known), 1)
            notes.append(
                f"{small:,} images ({share}) are smaller than data.stored_size={data.stored_size} pixels and are "
                "upscaled."
            )
        if long := int((known.max(1) > 2 * known.min(1)).sum()):
            share = percent(long / len(known), 1)
            notes.append(
                f"{long:,} images ({share}) have an aspect ratio above 2: the center crop that training uses is less "
                "than half of them."
            )
    if found.plain:
        example = look.name(found.plain[0])
        notes.append(
            f"{len(found.plain):,} images are of nearly uniform colour, such as {example}: near copies of them cannot "
            "be detected."
        )
    return {"quantiles": rows, "shapes": list(shapes.items()), "shape_notes": notes}


def _classes(look: Look) -> dict[str, Any]:
    """Return the image counts of the smallest classes per split, and their share of all images."""
    num_classes = len(look.classes)
    counts = np.array(
        [torch.bincount(s.labels, minlength=num_classes).numpy() for s in look.sources.values()]
    )
    order = counts.sum(0).argsort(kind="stable")[:MAX_ROWS]
    rows = [
        [look.classes[i], *(f"{n:,}" for n in counts[:, i]), percent(counts[:, i].sum() / len(look), 1)]
        for i in order
    ]
    return {"classes": rows, "num_classes": num_classes}


def _statistics(look: Look, data: ImageData) -> dict[str, Any]:
    channels = ["red", "green", "blue"] if len(look.mean) == 3 else ["grey"]
    rows = {
        "mean": look.mean,
        "standard deviation": look.std,
        "data.mean": data.preprocess.mean,
        "data.std": data.preprocess.std,
    }
    values = [",".join(f"{value:.4f}" for value in each) for each in (look.mean, look.std)]
    return {
        "channels": channels,
        "statistics": [[name, *(f"{v:.4f}" for v in row)] for name, row in rows.items()],
        "override": f"data.mean=[{values[0]}] data.std=[{values[1]}]",
    }
