"""`alexnet-exp export`: convert a trained network for another runtime, and check it against PyTorch."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from alexnet_exp.config.groups import Paths
from alexnet_exp.config.schema import (
    at_least,
    checked,
    choice,
    flag,
    group,
    nested,
    null,
    setting,
    text,
    trusted,
)
from alexnet_exp.errors import UserError, missing_extra, printable
from alexnet_exp.files import replacing
from alexnet_exp.tracking.environment import provenance
from alexnet_exp.tracking.run_directory import RunDirectory, check_out
from alexnet_exp.tracking.terminal import nearby

if TYPE_CHECKING:
    from alexnet_exp.runs.export.check import Parity
import json

from alexnet_exp.report.details import origin
from alexnet_exp.report.html import number, percent, write_html
from alexnet_exp.tracking.redact import redact

TOLERANCE = 1e-4  # largest accepted difference from PyTorch's outputs


@group
class Export:
    """Keys of conf/export.yaml."""

    ckpt: str = setting(text)
    format: str = setting(choice("onnx", "torch_export", "safetensors"))
    preprocess: bool = setting(flag)
    opset: int | None = setting(at_least(7) | null)
    batch: int | None = setting(at_least(1) | null)
    out: str | None = setting(text | null)
    trust: list[str] = setting(trusted)
    paths: Paths = nested(Paths)


_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": (), "safetensors": ("safetensors",)}
_NAMES = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "model.safetensors"}


def export(config: dict[str, Any], run_dir: Path, command: str) -> Path:
    """Write a trained network in another format, and compare its outputs with PyTorch's.

    Args:
        config: Keys of conf/export.yaml.
        run_dir: Directory of the file, report.html and result.json; with `out` only the file is written, to `out`.
        command: The command line, for the record.

    Returns:
        The exported file.

    Raises:
        UserError: Illegal setting, missing package, checkpoint that cannot be read, or outputs that differ from
            PyTorch's; no file is left behind.
    """
    settings = checked(Export, config)
    _check(settings)
    from alexnet_exp.inference import load_classifier
    from alexnet_exp.runs.export.check import check, images_to_check
    from alexnet_exp.runs.export.formats import describe, how_to_load, reader, write

    console = Console(soft_wrap=True, highlight=False)
    loaded = load_classifier(settings.ckpt, device="cpu", trust=settings.trust)
    kind, preprocess, batch, out = settings.format, settings.preprocess, settings.batch, settings.out
    path = run_dir / _NAMES[kind] if out is None else check_out(out, loaded.path)
    images, source = images_to_check(loaded, settings.trust, settings.paths.data_dir)
    metadata = describe(loaded, preprocess, batch)
    place = RunDirectory(run_dir).fresh() if out is None else contextlib.nullcontext()
    try:
        with place, replacing(path) as temporary:
            write(loaded, kind, preprocess, metadata, temporary, settings.opset, batch)
            parity = check(loaded, reader(loaded, kind, temporary), images, preprocess, batch)
            if not parity.difference <= TOLERANCE:  # also true for NaN
                raise UserError(
                    f"format={kind} does not match PyTorch: {parity}, allowed {TOLERANCE:g}; no file was written. "
                    "format=safetensors exports only the weights."
                )
            facts = {"checkpoint": str(loaded.path), "bytes": temporary.stat().st_size}
            result = _record(command, path, kind, metadata, parity, source) | facts
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    console.print(f"parity with PyTorch: {parity} ({printable(source)})", markup=False)
    if out is None:
        loading = how_to_load(kind, preprocess, metadata, path.name, nearby(loaded.path, run_dir))
        write_export(run_dir / "report.html", result, loading)
        RunDirectory(run_dir).write_result(result)
        console.print(f"report: {printable(nearby(run_dir / 'report.html'))}", markup=False)
    console.print(f"exported: {printable(nearby(path))} ({result['bytes'] / 2**20:.1f} MiB)", markup=False)
    return path


def _check(settings: Export) -> None:
    kind = settings.format
    if kind == "safetensors" and settings.preprocess:
        raise UserError(
            "format=safetensors contains only weights: preprocess=true needs format=onnx or torch_export."
        )
    if settings.opset is not None and kind != "onnx":
        raise UserError(f"format={kind} has no opset: leave opset out, or set format=onnx.")
    if settings.batch is not None and kind == "safetensors":
        raise UserError("format=safetensors contains only weights: batch= needs format=onnx or torch_export.")
    missing = [name for name in _NEEDS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format={kind} needs {missing_extra(', '.join(missing), 'export')}")


def _record(
    command: str,
    path: Path,
    kind: str,
    metadata: Mapping[str, Any],
    parity: Parity,
    source: str,
) -> dict[str, Any]:
    return {
        "status": "finished",
        "command": command,
        "file": path.name,
        "format": kind,
        "metadata": dict(metadata),
        "parity": {**parity._asdict(), "images_from": source, "allowed": TOLERANCE},
        **provenance(),
    }


MAX_CLASSES = 20  # listed on the page before the rest is folded


def write_export(path: Path, result: dict[str, Any], loading: str) -> None:
    """Write report.html.

    Args:
        path: File to write.
        result: Content of result.json.
        loading: Python code that loads the exported file.
    """
    result = redact(result)  # reports are shared
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
            ("largest difference from PyTorch", number(parity["difference"])),
            ("same top-1 prediction", percent(parity["agreeing"] / parity["images"], 1)),
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
