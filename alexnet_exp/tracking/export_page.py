"""Write report.html of `export`: what the file holds, how far it agrees with PyTorch, how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alexnet_exp.tracking.markup import Html, number, percent, tag
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.report import heading, section, write_document
from alexnet_exp.tracking.report_details import environment, reproduce

MAX_CLASSES = 20  # named outside the list of all


def write_export(path: Path, result: dict[str, Any], loading: str) -> None:
    """Write the page.

    Args:
        path: The file.
        result: What result.json will hold.
        loading: Python that loads the exported file.
    """
    result = redact(result)  # a page is made to be handed on
    metadata, title = result["metadata"], result["file"]
    chips = [
        f"format={result['format']}",
        f"model: {metadata['model']}",
        f"checkpoint: {result['checkpoint']}",
    ]
    facts = {key: value for key, value in metadata.items() if key != "classes"}
    sections = [
        heading("export", title, chips, _figures(result)),
        section("Load it", tag("pre", tag("code", loading), class_="command")),
        section("Agreement with PyTorch", tag("p", _agreement(result["parity"]))),
        section("What the file says of itself", _facts(facts)),
        section("Classes", _classes(metadata["classes"])),
        section("Reproduce", reproduce(result)),
        section("Environment", environment(result)),
    ]
    write_document(path, title, sections)


def _figures(result: dict[str, Any]) -> Html:
    parity = result["parity"]
    cards = {
        "size": f"{result['bytes'] / 2**20:.1f}\N{NO-BREAK SPACE}MiB",
        "largest difference to PyTorch": number(parity["difference"]),
        "same most probable class": percent(parity["agreeing"] / parity["images"], 1),
        "images compared": number(parity["images"]),
    }
    parts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in cards.items()]
    return tag("dl", *parts, class_="headline")


def _agreement(parity: dict[str, Any]) -> str:
    return (
        f"On {parity['images_from']}: no output differs by more than {parity['difference']:.2g}, where "
        f"{parity['allowed']:g} is allowed, and the most probable class is the same for {parity['agreeing']} of "
        f"{parity['images']} images. The network was run from the file."
    )


def _facts(facts: dict[str, Any]) -> Html:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    cells = [tag("div", tag("dt", key), tag("dd", text)) for key, text in texts.items()]
    return tag("dl", *cells, class_="facts")


def _classes(classes: list[str]) -> Html:
    if len(classes) <= MAX_CLASSES:
        return tag("p", ", ".join(classes))
    summary = f"{len(classes):,} classes: {', '.join(classes[:MAX_CLASSES])} ..."
    return tag("details", tag("summary", summary), tag("p", ", ".join(classes)))
