"""Write each split as LitData chunks, read it back and compare; write the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from alexnet_exp import cores
from alexnet_exp.config.schema import shown
from alexnet_exp.data.cache import shown as with_bar
from alexnet_exp.data.sources import FileSource, is_remote
from alexnet_exp.data.streaming.chunks import Chunks, Encoder, write
from alexnet_exp.data.streaming.dataset import IMAGES, MANIFEST, VERSION, fetch_text, read_manifest
from alexnet_exp.data.streaming.internals import storage
from alexnet_exp.errors import UserError, shell_command, unreadable
from alexnet_exp.files import locked, replacing
from alexnet_exp.runs.prepare.settings import Prepare

BEGUN = "prepare.json"  # the settings, so that an interrupted run is continued with the same
LOCK = ".lock"  # held while a folder is written
_OLDER = "; chunks of an older version need data.split_rule=by_name"
ASKED = ("size", "quality", "chunk_mb", "num_workers")


def write_chunks(sources: Mapping[str, FileSource], settings: Prepare, console: Console) -> None:
    """Write every split to `out`; skip complete ones, continue an interrupted one.

    Raises:
        UserError: `out` contains other images, was started with other settings, is being written by another command,
            or the written images differ from the originals.
    """
    url = os.path.expanduser(str(settings.out)).rstrip("/")
    url = url if is_remote(url) else os.path.abspath(url)
    tasks = {split: _tasks(source) for split, source in sources.items()}
    images = _digests(tasks, sources)
    manifest: dict[str, Any] = {
        "version": VERSION,
        "classes": list(next(iter(sources.values())).classes),
        "size": settings.size,
        "quality": settings.quality if settings.size else None,
        "splits": {},
    }
    with _lock(url):
        if _exists(url, MANIFEST):
            _compare(read_manifest(url), manifest, images, url)
            console.print(f"prepared already: {url}", markup=False)
            return
        workers = _begin(url, {key: getattr(settings, key) for key in ASKED}, images)
        for split, source in sources.items():
            # LitData writes the index last, so a split that has one is complete.
            if not _exists(url, f"{split}/index.json"):
                encoder = Encoder(source.root, settings.size, settings.quality)
                console.print(
                    f"{split}: writing {len(source)} images in {url}", markup=False, highlight=False
                )
                with _only_the_bar():
                    write(_shuffle(tasks[split]), f"{url}/{split}", encoder, workers, settings.chunk_mb << 20)
            manifest["splits"][split] = _verify(f"{url}/{split}", source) | {"origin": source.origin}
            console.print(f"{split}: {len(source)} images, checked", markup=False)
        _put(url, MANIFEST, json.dumps(manifest, indent=1))
    url_setting = shell_command([f"data.url={settings.out}"])
    console.print(f"prepared: python train.py data=streaming {url_setting}", markup=False)


@contextlib.contextmanager
def _lock(url: str) -> Iterator[None]:
    """Lock a folder for this command, unless it is complete or on object storage, which has no locks.

    Raises:
        UserError: Another command is writing there, or the folder is not writable.
    """
    if is_remote(url) or _exists(url, MANIFEST):
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            os.makedirs(url, exist_ok=True)
            mine = held.enter_context(locked(Path(url, LOCK), remove=True))
        except OSError as error:
            raise UserError(f"{url} cannot be written ({error.strerror}): choose another out.") from error
        if not mine:
            raise UserError(f"{url} is being written by another prepare: wait for it, or choose another out.")
        yield


def _begin(url: str, asked: dict[str, Any], images: Mapping[str, str]) -> int:
    """Record the settings, or compare them with those of an interrupted run.

    Args:
        url: Output folder.
        asked: The settings in ASKED.
        images: Digests of the images.

    Returns:
        The number of workers, which also determines the chunks.

    Raises:
        UserError: Settings or images differ.
    """
    asked = {**asked, **images}
    if not _exists(url, BEGUN):
        asked["num_workers"] = asked["num_workers"] or cores.available_cores()
        _put(url, BEGUN, json.dumps(asked, indent=1))
        return asked["num_workers"]
    begun = _begun(url)
    asked["num_workers"] = asked["num_workers"] or begun["num_workers"]
    if different := [f"{key}={shown(begun[key])}" for key in ASKED if begun[key] != asked[key]]:
        raise UserError(f"{url} was started with {' '.join(different)}: use the same, or remove the folder.")
    if begun["images"] != asked["images"]:
        raise UserError(
            f"{url} was started with other images: choose another out, or remove the folder{_OLDER}."
        )
    if begun["sizes"] != asked["sizes"]:  # such as a damaged image that has been replaced since
        _put(url, BEGUN, json.dumps(asked, indent=1))
    return asked["num_workers"]


def _begun(url: str) -> dict[str, Any]:
    """Read the recorded settings.

    Raises:
        UserError: The file is damaged or from an older version.
    """
    text = fetch_text(url, BEGUN)
    try:
        begun = json.loads(text)
    except ValueError:
        begun = None
    if isinstance(begun, dict) and set(begun) == {*ASKED, "images"}:
        raise UserError(
            f"{url} was written by an older version of alexnet_exp, which did not record image sizes: train with it "
            "if it is complete, or choose another out."
        )
    if not isinstance(begun, dict) or not set(begun) >= {*ASKED, "images", "sizes"}:
        raise UserError(f"{url}/{BEGUN} is damaged: remove the folder, and prepare again.")
    return begun


def _tasks(source: FileSource) -> list[list[Any]]:
    """Return [name, label] of every image, with names relative to the root: moving the folder does not matter."""
    names = [source.image_name(i) for i in range(len(source))]
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # how Python decodes invalid UTF-8
            raise UserError(f"{name}: the name is not valid UTF-8, which chunks require; rename the file.")
    return [list(task) for task in zip(names, source.labels.tolist(), strict=True)]


def _shuffle(tasks: list[list[Any]]) -> list[list[Any]]:
    """Shuffle the images, always in the same way.

    Streaming shuffles only the chunks and the images within each. Folders are listed class by class: without this,
    chunks, and therefore batches, would contain a single class.
    """
    return random.Random(0).sample(tasks, len(tasks))


def _digests(tasks: Mapping[str, list[list[Any]]], sources: Mapping[str, FileSource]) -> dict[str, str]:
    """Hash all images: 'images' covers names and labels, 'sizes' the file sizes.

    Raises:
        UserError: A file is gone.
    """
    names, sizes = hashlib.sha256(), hashlib.sha256()
    for split, source in sources.items():
        for path, task in zip(source.paths, tasks[split], strict=True):
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise unreadable(path, error) from error
            names.update(f"{json.dumps([split, *task])}\n".encode())
            sizes.update(f"{size}\n".encode())
    return {"images": names.hexdigest(), "sizes": sizes.hexdigest()}


def _compare(
    found: Mapping[str, Any], wanted: Mapping[str, Any], images: Mapping[str, str], url: str
) -> None:
    """Refuse a folder with other images."""
    begun = _begun(url)
    same = all(found[key] == wanted[key] for key in ("classes", "size", "quality"))
    if not same or any(begun[key] != images[key] for key in images):
        older = _OLDER if same and begun["images"] != images["images"] else ""
        raise UserError(
            f"{url} contains other images or another size: choose another out, or remove it{older}."
        )


def _verify(url: str, source: FileSource) -> dict[str, Any]:
    """Read a split back, compare it with the source, and write the list of its images.

    Returns:
        Its count, bytes, and a checksum of labels, names and images in the order of the chunks.

    Raises:
        UserError: An image is missing, duplicated, damaged or mislabelled.
    """
    expected = dict(zip(map(source.image_name, range(len(source))), source.labels.tolist(), strict=True))
    digest, num_bytes, lines = hashlib.sha256(), 0, []
    # The progress bar counts the items of batches: here, batches of one.
    items = ([item] for _, item in Chunks(url))
    for [item] in with_bar(items, len(source), f"Checking {source.name}"):
        name, label, data = item["name"], item["label"], item["image"]
        # Popped, so that a name that comes twice is not found again.
        if expected.pop(name, None) != label or zlib.crc32(data) != item["crc32"]:
            raise UserError(
                f"{url}: {name} is damaged, duplicated or mislabelled: remove the folder, and prepare it again."
            )
        digest.update(f"{label}\t{name}\t{len(data)}\n".encode("utf-8", "surrogateescape") + data)
        num_bytes += len(data)
        lines.append(f"{label}\t{json.dumps(name)}\n")
    if expected:
        raise UserError(
            f"{url} lacks {len(expected)} images, such as {next(iter(expected))}: remove the folder, and prepare it "
            "again."
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
    """Write a small file next to the chunks."""
    if not is_remote(url):
        with replacing(Path(url, name)) as part:
            part.write_text(content, encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:  # uploads take a file
        path = Path(folder, "file")
        path.write_text(content, encoding="utf-8")
        storage(url).upload_file(str(path), f"{url}/{name}")


@contextlib.contextmanager
def _only_the_bar() -> Iterator[None]:
    """Silence LitData, except for its progress bar on a terminal.

    It has no switch for either. Nothing is lost: errors are raised, and the chunks are read back.
    """
    with (
        open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(nowhere),
    ):
        try:
            yield
        except BaseException:
            print(file=sys.stderr)  # the bar leaves the cursor in the middle of a line
            raise
