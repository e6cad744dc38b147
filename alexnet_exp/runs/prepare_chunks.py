"""Its chunks: each split written by LitData, read back and compared, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from alexnet_exp.data.cache import shown as with_bar
from alexnet_exp.data.sources import FileSource
from alexnet_exp.data.streaming import IMAGES, MANIFEST, VERSION, fetch_text, is_remote, read_manifest
from alexnet_exp.data.streaming_chunks import Chunks, Encoder, write
from alexnet_exp.errors import UserError


def write_chunks(
    sources: Mapping[str, FileSource], config: Mapping[str, Any], workers: int, console: Console
) -> None:
    """Write every split to `out`; one that is there whole is left, one that was interrupted goes on.

    Raises:
        UserError: `out` holds other images, or what is read back differs from what was to be written.
    """
    url = os.path.expanduser(str(config["out"])).rstrip("/")
    url = url if is_remote(url) else os.path.abspath(url)
    manifest: dict[str, Any] = {
        "version": VERSION,
        "classes": list(next(iter(sources.values())).classes),
        "size": config["size"],
        "quality": config["quality"] if config["size"] else None,
        "splits": {},
    }
    if _exists(url, MANIFEST):
        _compare(read_manifest(url), manifest, sources, url)
        console.print(f"prepared already: {url}", markup=False)
        return
    encoder = Encoder(config["size"], config["quality"])
    for split, source in sources.items():
        if not _exists(url, f"{split}/index.json"):
            with _litdata_speaks_on_stderr():
                write(_tasks(source), f"{url}/{split}", encoder, workers, config["chunk_mb"] << 20)
        manifest["splits"][split] = _verified(f"{url}/{split}", source)
        console.print(f"{split}: {len(source)} images, checked", markup=False)
    _put(url, MANIFEST, json.dumps(manifest, indent=1))
    console.print(f"prepared: python train.py data=streaming data.url={config['out']}", markup=False)


def _tasks(source: FileSource) -> list[list[Any]]:
    labels = source.labels.tolist()
    return [
        [path, label, source.image_name(i)]
        for i, (path, label) in enumerate(zip(source.paths, labels, strict=True))
    ]


def _compare(
    found: Mapping[str, Any], wanted: Mapping[str, Any], sources: Mapping[str, FileSource], url: str
) -> None:
    """Refuse a place that holds something else."""
    counts = {split: len(source) for split, source in sources.items()}
    same = {split: about["count"] for split, about in found["splits"].items()} == counts
    if not same or any(found[key] != wanted[key] for key in ("classes", "size", "quality")):
        raise UserError(f"{url} holds other images or another size: choose another out, or remove it.")


def _verified(url: str, source: FileSource) -> dict[str, Any]:
    """Read a split back, compare it with what was to be written, and list it.

    Returns:
        Its count, bytes and a checksum of labels, names and images in the order of the chunks.

    Raises:
        UserError: An image is missing, double or damaged, or has another label.
    """
    expected = dict(zip(map(source.image_name, range(len(source))), source.labels.tolist(), strict=True))
    digest, num_bytes, lines = hashlib.sha256(), 0, []
    items = ([item] for _, item in Chunks(url))
    for [item] in with_bar(items, len(source), f"Checking {source.name}"):
        name, label, data = item["name"], item["label"], item["image"]
        if expected.pop(name, None) != label or zlib.crc32(data) != item["crc32"]:
            raise UserError(
                f"{url}: {name} is damaged, double or mislabelled: remove the folder, and prepare again."
            )
        digest.update(f"{label}\t{name}\t{len(data)}\n".encode("utf-8", "surrogateescape") + data)
        num_bytes += len(data)
        lines.append(f"{label}\t{name}\n")
    if expected:
        raise UserError(
            f"{url} lacks {len(expected)} images, such as {next(iter(expected))}: remove the folder, and prepare again."
        )
    _put(url, IMAGES, "".join(lines))
    return {"count": len(lines), "bytes": num_bytes, "sha256": digest.hexdigest()}


def _exists(url: str, name: str) -> bool:
    if not is_remote(url):
        return os.path.exists(os.path.join(url, name))
    try:
        return bool(fetch_text(url, name))
    except UserError:
        return False


def _put(url: str, name: str, content: str) -> None:
    """Write a small file beside the chunks."""
    if not is_remote(url):
        part = Path(url, f"{name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(content, encoding="utf-8")
        os.replace(part, Path(url, name))
        return
    from litdata.streaming.fs_provider import _get_fs_provider

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_text(content, encoding="utf-8")
        _get_fs_provider(url).upload_file(str(path), f"{url}/{name}")


@contextlib.contextmanager
def _litdata_speaks_on_stderr() -> Iterator[None]:
    """Keep LitData's bar, and what it prints besides, out of standard output."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
