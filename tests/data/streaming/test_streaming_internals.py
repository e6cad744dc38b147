"""Private names of LitData: each is there, and what takes its place is called."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from litdata.processing.data_processor import DataProcessor
from litdata.streaming import fs_provider

from alexnet_exp.data.streaming.chunks import Encoder, write
from alexnet_exp.data.streaming.dataset import fetch_text
from alexnet_exp.data.streaming.internals import Writer
from alexnet_exp.runs.prepare.chunks import _put


class Bucket(fs_provider.FsProvider):
    """An object storage in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, url: str) -> Path:
        return self.folder / url.removeprefix("s3://bucket/").replace("/", "+")

    def upload_file(self, local_path: str, remote_path: str) -> None:
        self.path(remote_path).write_bytes(Path(local_path).read_bytes())

    def download_file(self, remote_path: str, local_path: str) -> None:
        Path(local_path).write_bytes(self.path(remote_path).read_bytes())

    download_directory = copy = delete_file_or_directory = exists = is_empty = list_directory = None  # type: ignore


class Reached(Exception):
    """LitData has installed our handler."""


def test_single_files_in_object_storage_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    urls: list[str] = []

    def provider(url: str) -> Bucket:
        urls.append(url)
        return Bucket(tmp_path)

    monkeypatch.setattr(fs_provider, "_get_fs_provider", provider)
    _put("s3://bucket/images", "manifest.json", "snow — 雪")
    assert fetch_text("s3://bucket/images", "manifest.json") == "snow — 雪"
    assert urls == ["s3://bucket/images"] * 2


def test_litdata_calls_what_is_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loads, load, install = [], DataProcessor._load_checkpoint_config, signal.signal
    assert DataProcessor._signal_handler is not Writer._signal_handler

    def loaded(self: Any, items: Any) -> None:
        loads.append(items)
        load(self, items)

    def installed(number: int, handler: Any) -> Any:
        if getattr(handler, "__func__", None) is Writer._signal_handler:
            raise Reached
        return install(number, handler)

    monkeypatch.setattr(DataProcessor, "_load_checkpoint_config", loaded)
    monkeypatch.setattr(signal, "signal", installed)
    with pytest.raises(Reached):  # before a process starts
        write([["a.jpg", 0]], str(tmp_path / "out"), Encoder(str(tmp_path), None, 90), 1, 1 << 20)
    assert loads == [[[["a.jpg", 0]]]]
