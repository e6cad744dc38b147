"""`alexnet-exp models`: list the networks of conf/model/, or the layers of one."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from alexnet_exp.config.compose import conf_dir, group
from alexnet_exp.config.schema import at_least, check_rules
from alexnet_exp.errors import UserError, nearest
from alexnet_exp.targets import build
from alexnet_exp.tracking.terminal import print_fitted
from alexnet_exp.zoo import list_models


def models(config: Mapping[str, Any]) -> None:
    """Print the table of networks, or the layer table of one.

    Args:
        config: Keys of conf/models.yaml.

    Raises:
        UserError: Unknown name or format, or an illegal number.
    """
    name, format, input_size = config["name"], config["format"], config["input_size"]
    if format not in ("table", "json"):
        raise UserError(f"invalid format={format!r}: expected table or json.")
    if name is not None and name not in list_models():
        raise UserError(
            f"There is no model {name!r}.{nearest(name, list_models())} alexnet-exp models lists all."
        )
    changes = {key: config[key] for key in ("num_classes", "input_size") if config[key] is not None}
    check_rules(changes, dict.fromkeys(changes, at_least(1)))
    if name is None and input_size is not None:
        raise UserError(
            "input_size needs a network, since few work at every size: alexnet-exp models NAME input_size=N."
        )
    if name is None:
        rows = [describe(each, changes) for each in list_models()]
        print(json.dumps(rows, indent=2)) if format == "json" else _print_networks(rows)
    else:
        _, layers = _layers(name, changes)
        if format == "json":
            facts = {**describe(name, changes), "layers": [dataclasses.asdict(row) for row in layers]}
            print(json.dumps(facts, indent=2))
        else:
            _print_layers(layers)


def describe(name: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the facts about a network: input size, counts, published accuracy in percent, source."""
    config, layers = _layers(name, changes or {})
    header = _header(name)
    top1, top5 = _published(header.get("Published", ""))
    return {
        "name": name,
        "input_size": config["input_size"],
        "parameters": sum(row.parameters for row in layers),
        "multiply_adds": sum(row.multiply_adds for row in layers),
        "published_top1": top1,
        "published_top5": top5,
        "published": header.get("Published", ""),
        "source": header.get("Source", ""),
        "differs": header.get("Differs", ""),
    }


def _layers(name: str, changes: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    import torch

    from alexnet_exp.models import layer_table

    config = {**group("model", name), **changes}
    with torch.device("meta"):  # shapes only: no memory, no initialisation
        model = build(config)
    return config, layer_table(model, (config["in_channels"], config["input_size"], config["input_size"]))


def _header(name: str) -> dict[str, str]:
    """Read the 'Key: text' comments at the top of a network's yaml; indented lines continue a text."""
    fields: dict[str, str] = {}
    key = None
    for line in (conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if found := re.match(r"# ([A-Z]\w+):\s+(.*)", line):
            key = found[1]
            fields[key] = found[2].strip()
        elif key and line.startswith("#   "):
            fields[key] += " " + line[1:].strip()
    return fields


def _published(text: str) -> tuple[float | None, float | None]:
    """Parse '57.1 / 80.2 %' or '77.22 %' at the start of a published result."""
    if found := re.match(r"(?:about )?([\d.]+) / ([\d.]+) %", text):
        return float(found[1]), float(found[2])
    found = re.match(r"(?:about )?([\d.]+) %", text)
    return (float(found[1]) if found else None), None


def _print_networks(rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        accuracy = [f"{row[k]:g}" if row[k] is not None else "" for k in ("published_top1", "published_top5")]
        counts = f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e6:,.0f}"
        cells.append([row["name"], str(row["input_size"]), *counts, *accuracy, row["source"]])
    headers = ["network", "input", "parameters", "M mult-adds", "top-1 %", "top-5 %", "source"]
    print_fitted(
        headers,
        cells,
        Console(),
        numbers=range(1, 6),
        spare=(6, 1, 5, 4, 3),
        prose=6,
        elsewhere=" (format=json has all)",
    )


def _print_layers(rows: list[Any]) -> None:
    cells = []
    for row in rows:
        counts = [f"{n:,}" if n else "" for n in (row.parameters, row.multiply_adds)]
        sees = f"{row.receptive_field} px" if row.receptive_field else ""
        layer = row.name.removeprefix("features.").removeprefix("classifier.")
        cells.append([layer, row.type, " x ".join(map(str, row.output_shape)), *counts, sees])
    totals = [f"{sum(getattr(r, k) for r in rows):,}" for k in ("parameters", "multiply_adds")]
    headers = ["layer", "type", "output", "parameters", "multiply-adds", "sees"]
    table = [*cells, ["total", "", "", *totals, ""]]
    print_fitted(headers, table, Console(), numbers=range(3, 6), spare=(1, 5, 2))
