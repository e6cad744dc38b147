from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alexnet_exp.data import decode


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch on one thread: on small tensors and busy cores its threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real_data_dir() -> Path:
    """Return the folder of the real data sets; skip the test if there is none."""
    typed = os.environ.get("ALEXNET_DATA_DIR")
    folder = Path(typed) if typed else Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: neither ALEXNET_DATA_DIR nor {folder} is there")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make connections and DNS lookups fail as they do offline."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(params=["torchcodec", "torchvision"])
def jpeg_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test once per JPEG library; skip those that are not installed."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(decode, "JPEG_DECODERS", (request.param,))
    assert decode._jpeg_decoder(decode.JPEG_DECODERS) is not None
    return request.param
