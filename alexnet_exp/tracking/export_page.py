"""Write report.html of `export`: what the file holds, how far it agrees with PyTorch, how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alexnet_exp.report.html import number, percent, write_html
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.report_details import origin

MAX_CLASSES = 20  # named outside the list of all


def write_export(path: Path, result: dict[str, Any], loading: str) -> None:
    """Write the page.

    Args:
        path: The file.
        result: What result.json will hold.
        loading: Python that loads the exported file.
    """
    result = redact(result)  # a page is made to be handed on
    metadata, parity = result["metadata"], result["parity"]
    write_html(
        path,
        "export.html",
        title=result["file"],
        chips=[
            f"format={result['format']}",
            f"model: {metadata['model']}",
            f"checkpoint: {result['checkpoint']}",
        ],
        numbers=[
            ("size", f"{result['bytes'] / 2**20:.1f}\N{NO-BREAK SPACE}MiB"),
            ("largest difference to PyTorch", number(parity["difference"])),
            ("same most probable class", percent(parity["agreeing"] / parity["images"], 1)),
            ("images compared", number(parity["images"])),
        ],
        loading=loading,
        parity=parity,
        metadata=[
            (key, value if isinstance(value, str) else json.dumps(value))
            for key, value in metadata.items()
            if key != "classes"
        ],
        classes=metadata["classes"],
        named=MAX_CLASSES,
        origin=origin(result),
    )
