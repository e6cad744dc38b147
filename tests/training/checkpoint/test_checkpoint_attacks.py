"""Hostile and damaged checkpoints: none runs code or takes more memory than its size, each is one clear error line."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import re
import shutil
import struct
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.training.checkpoint import safe_load
from alexnet_exp.training.checkpoint.safe_load import load_safely
from tests.training.checkpoint.hostile_files import FILES, SAFETENSORS, refused, with_pickle, write
from tests.training.small_runs import SMALL, checkpoint, same

PACKAGE = Path(safe_load.__file__).parents[2]


def test_a_valid_checkpoint_is_read_completely(honest: Path, place: Path) -> None:
    """Otherwise the refusals below would prove nothing."""
    assert same(load_safely(honest / "checkpoints" / "last.ckpt"), checkpoint(honest))
    assert main(["predict", str(honest), "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}"]) == 0


@pytest.mark.parametrize("name", FILES)
def test_no_file_runs_code_or_takes_more_memory_than_its_size(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = FILES[name]
    file = make(place / "hostile.ckpt")
    line = refused(capsys, "predict", file, "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert re.search(message, line), line
    with pytest.raises(UserError, match=r"hostile\.ckpt"):
        _weights(file)
    assert not (place / "canary").exists()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("attributes", "defaults"))])
def test_no_file_changes_the_state_of_this_process(name: str, tmp_path: Path) -> None:
    ours = [argparse.Namespace, OrderedDict, torch.FloatStorage, torch._utils._rebuild_tensor_v2]
    before = [(dict(vars(thing)), getattr(thing, "__defaults__", None)) for thing in ours]
    with pytest.raises(UserError):
        load_safely(FILES[name][0](tmp_path / "hostile.ckpt"))
    assert [(dict(vars(thing)), getattr(thing, "__defaults__", None)) for thing in ours] == before


def test_a_bytearray_is_not_allocated_from_a_claimed_size(tmp_path: Path) -> None:
    file = with_pickle(tmp_path / "hostile.ckpt", b"\x80\x05\x96" + struct.pack("<Q", 1 << 28) + b"short.")
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            load_safely(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_torch_and_zipfile_read_two_archives_in_one_file_differently(tmp_path: Path) -> None:
    """Otherwise the refusal would prove nothing."""
    file = FILES["two archives in one file"][0](tmp_path / "hostile.ckpt")
    assert torch.load(file, weights_only=True)["state_dict"]["a"].tolist() == [0.0] * 3
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
        assert archive.read(name) == torch.ones(3).numpy().tobytes()


def test_a_file_replaced_after_its_check_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = (write(tmp_path / f"{n}.pt", {"a": torch.full((3,), float(n))}) for n in range(2))
    check = safe_load.check_file

    def exchange(opened: Any) -> None:
        check(opened)
        os.replace(other, file)

    monkeypatch.setattr(safe_load, "check_file", exchange)
    assert same(load_safely(file), {"a": torch.zeros(3)})
    assert not other.exists()


def test_weights_saved_with_argparse_arguments_are_read(tmp_path: Path) -> None:
    content = {"model": OrderedDict(a=torch.zeros(3)), "args": argparse.Namespace(lr=0.1, names=["a"])}
    assert load_safely(write(tmp_path / "a.pt", content))["args"] == content["args"]


def _weights(file: Path) -> Any:
    from alexnet_exp.training.checkpoint.start import _network_weights

    return _network_weights(file, torch.nn.Identity())[0]


VERBS: dict[str, list[str]] = {
    "ckpt": ["train", *SMALL, "ckpt={file}"],
    "weights": ["train", *SMALL, "weights={file}"],
    "evaluate": ["evaluate", "{file}", "device=cpu"],
    "predict": ["predict", "{file}", "a.png", "device=cpu"],
    "export": ["export", "{file}", "format=safetensors"],
    "figures": ["figures", "{file}", "device=cpu"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["os.system", "10 TB of bytes", "deep lists"])
def test_every_verb_reads_files_safely(
    name: str, verb: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FILES[name][0](place / "hostile.ckpt")
    arguments = [argument.format(file=file) for argument in VERBS[verb]]
    line = refused(capsys, *arguments, f"hydra.run.dir={place / 'out'}")
    assert re.search(FILES[name][1], line), line
    assert not (place / "canary").exists()


def test_a_resumed_run_reads_files_safely(
    honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("os.system", "10 TB of bytes"):
        shutil.copytree(honest, place / name)
        (place / name / "result.json").unlink()
        FILES[name][0](place / name / "checkpoints" / "last.ckpt")
        line = refused(capsys, "train", f"resume={place / name}", "trainer.max_epochs=3")
        assert re.search(FILES[name][1], line), line
    assert not (place / "canary").exists()


def test_every_flipped_byte_is_detected_or_harmless(tmp_path: Path) -> None:
    content = {"state_dict": {"a.weight": torch.arange(60.0).view(5, 12), "b": torch.zeros(3).long()},
               "config": {"x": [1, 2.5, None, "text"], "y": {"z": True}}}  # fmt: skip
    data = write(tmp_path / "whole.pt", content).read_bytes()
    flipped, seen, dice = tmp_path / "flipped.pt", [], random.Random(0)
    for _ in range(400):
        place, bit = dice.randrange(len(data)), 1 << dice.randrange(8)
        flipped.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        try:
            assert same(load_safely(flipped), content)
        except UserError as error:
            seen.append(str(error))
    assert len(seen) > 40
    assert not any("\n" in said for said in seen)


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(share: float, honest: Path, tmp_path: Path) -> None:
    data = (honest / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cannot be read: it is damaged"):
        load_safely(tmp_path / "cut.ckpt")


def test_a_duplicate_record_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "twice.pt", {"a": torch.zeros(4)})
    with zipfile.ZipFile(whole, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name.replace("data.pkl", "DATA.pkl"), pickle.dumps(1))
    with pytest.raises(UserError, match=r"it has 2 records named \w+/data\.pkl"):
        load_safely(whole)


def test_everything_torch_saves_in_weights_is_read(tmp_path: Path) -> None:
    kinds = [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ]
    content: Any = OrderedDict((str(kind), torch.ones(3, 2).to(kind)) for kind in kinds)
    content["turned"] = torch.arange(6.0).view(2, 3).t()
    content["part"] = torch.arange(10.0)[3:7]
    content["none"] = torch.zeros(0, 3)
    content["parameter"] = torch.nn.Parameter(torch.ones(2))
    content["milestones"] = Counter({30: 1, 60: 2})  # from torch's MultiStepLR
    file = write(tmp_path / "a.pt", content)
    assert same(dict(load_safely(file)), dict(content))


def test_weights_can_be_a_safetensors_file(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"a": torch.arange(6.0)}, tmp_path / "a.safetensors")
    assert same(_weights(tmp_path / "a.safetensors"), {"a": torch.arange(6.0)})


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_safetensors_file_with_false_claims_is_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "a.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read"):
        _weights(tmp_path / "a.safetensors")


def test_tensors_are_only_loaded_in_safe_load_with_weights_only() -> None:
    found = {
        str(path.relative_to(PACKAGE)): calls
        for path in PACKAGE.rglob("*.py")
        if (
            calls := re.findall(
                r"(?:torch\.load|torch\.jit\.load|pickle\.loads?|hub\.load)\(.*", path.read_text()
            )
        )
    }
    assert list(found) == [os.path.join("training", "checkpoint", "safe_load.py")]
    assert all("weights_only=True" in call for calls in found.values() for call in calls if "`" not in call)
