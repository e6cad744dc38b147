"""Hostile and broken checkpoints: none runs code, none takes memory that it does not bring, each is one clear line."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from alexnet_exp.cli import main
from alexnet_exp.errors import UserError
from alexnet_exp.training import safe_load
from alexnet_exp.training.safe_load import load_safely
from tests.training.small_runs import SMALL, checkpoint, run, same

PACKAGE = Path(safe_load.__file__).parents[1]
TB10 = 10**13


class Calls:
    """What a pickle makes its reader call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, one epoch long."""
    directory = tmp_path_factory.mktemp("honest") / "run"
    run(directory, "test=false", "scheduler=none")
    return directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image, in which code that runs would leave a file named canary."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("a.png")
    return tmp_path


# ------------------------------------------------------------------------------------------ files that attack


def write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes], packed: bool = False) -> Path:
    """Copy a file of torch.save, each of its records changed."""
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def with_pickle(path: Path, data: bytes) -> Path:
    """Write a file of torch.save whose pickle is `data`."""
    whole = write(path.with_suffix(".whole"), {"state_dict": {"a": torch.zeros(3)}, "config": {}})
    return rewrite(whole, path, lambda name, old: data if name.endswith("data.pkl") else old)


def lying(path: Path, values: int, shape: tuple[int, ...], strides: tuple[int, ...], **options: Any) -> Path:
    """Write a tensor that says more than its bytes: 4 values of float32 are there."""
    fake = {"state_dict": {"a": Claim(values, shape, strides)}, "config": {}}
    buffer = io.BytesIO()
    pickler = Naming(buffer, protocol=2)
    pickler.dump(fake)
    whole = write(path.with_suffix(".whole"), {"a": torch.zeros(4)}, **options)
    return rewrite(whole, path, lambda name, old: buffer.getvalue() if name.endswith("data.pkl") else old)


class Claim:
    """A tensor in a pickle, of any claim."""

    def __init__(self, values: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.values, self.shape, self.strides = values, shape, strides

    def __reduce__(self) -> Any:
        arguments = Stored(self.values), 0, self.shape, self.strides, False, OrderedDict()
        return torch._utils._rebuild_tensor_v2, arguments


class Stored:
    """The storage of such a tensor."""

    def __init__(self, values: int) -> None:
        self.values = values


class Naming(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes storages as torch does."""

    def persistent_id(self, value: Any) -> Any:
        return (
            ("storage", torch.FloatStorage, "0", "cpu", value.values) if isinstance(value, Stored) else None
        )


def old_format(path: Path, values: int) -> Path:
    """Write the format of before torch 1.6, with a tensor that claims so many values."""
    write(path, {"state_dict": {"a": torch.zeros(4)}, "config": {}}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    start = data.index(b"cpu") + 3
    assert data[start + 2 : start + 4] == b"K\x04" or b"K\x04" in data[start : start + 8]
    number = data.index(b"K\x04", start)
    path.write_bytes(data[:number] + b"\x8a\x08" + struct.pack("<q", values) + data[number + 2 :])
    return path


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def laughing(times: int) -> list[Any]:
    found: list[Any] = ["ha"]
    for _ in range(times):
        found = [found] * 10
    return found


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def plain(**config: Any) -> dict[str, Any]:
    return {"state_dict": {"a": torch.zeros(3)}, "config": config}


def canary(*_: Any) -> str:
    return "touch canary"


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "os.system": (
        lambda p: write(p, {"state_dict": Calls(os.system, canary()), "config": {}}),
        r"it names posix\.system",
    ),
    "builtins.eval": (lambda p: write(p, plain(a=Calls(eval, "open('canary', 'w')"))), r"it names __builtin__\.eval"),
    "builtins.exec": (lambda p: write(p, plain(a=Calls(exec, "open('canary', 'w')"))), r"it names __builtin__\.exec"),
    "builtins.open": (
        lambda p: write(p, plain(a=Calls(open, "canary", "w"))),
        "open, and only tensors and plain values are let in",
    ),
    "builtins.getattr": (lambda p: write(p, plain(a=Calls(getattr, "os", "system"))), r"it names __builtin__\.getattr"),
    "subprocess.Popen": (
        lambda p: write(p, plain(a=Calls(subprocess.Popen, ["touch", "canary"]))),
        "Popen, and only tensors and plain values",
    ),
    "partial of os.system": (
        lambda p: write(p, plain(a=Calls(functools.partial(os.system, canary())))),
        r"it names functools\.partial",
    ),
    "later protocol": (
        lambda p: write(p, plain(a=Calls(os.system, canary())), pickle_protocol=4),
        r"it names posix\.system",
    ),
    "type of a tensor": (
        lambda p: write(p, plain(a=Calls(torch._tensor._rebuild_from_type_v2, os.system, str, (canary(),), {}))),
        "_rebuild_from_type_v2",
    ),
    "a pickle, not torch's": (
        lambda p: (p.write_bytes(pickle.dumps(Calls(os.system, canary()))), p)[1],
        r"it names posix\.system",
    ),
    "old format with code": (
        lambda p: write(p, plain(a=Calls(os.system, canary())), _use_new_zipfile_serialization=False),
        r"it names posix\.system",
    ),
    "10 TB of bytes": (lambda p: lying(p, TB10 // 4, (TB10 // 4,), (1,)), f"claims {TB10} bytes, and the file has 16"),
    "a longer tensor than its bytes": (
        lambda p: lying(p, 4, (1000, 1000), (1000, 1)),
        "claims more values than the 4",
    ),
    "one value seen 10 TB times": (lambda p: lying(p, 4, (TB10,), (0,)), r"claims more values than the 4"),
    "a tensor of negative size": (lambda p: lying(p, 4, (-4,), (1,)), "has no form"),
    "a size that is no number": (lambda p: lying(p, 4, ("x",), (1,)), "has no form"),  # type: ignore[arg-type]
    "old format of 10 TB": (lambda p: old_format(p, TB10 // 4), f"claim {TB10} bytes"),
    "10 TB of zeros": (lambda p: write(p, plain(a=Calls(bytearray, TB10))), "bytearray"),
    "10 TB by a class of torch": (lambda p: write(p, plain(a=Calls(torch.FloatTensor, TB10))), "FloatTensor"),
    "packed records": (
        lambda p: rewrite(
            write(p.with_suffix(".whole"), {"a": torch.zeros(10**6)}), p, lambda name, old: old, packed=True
        ),
        "its records are packed",
    ),
    "deep lists": (
        lambda p: with_pickle(p, b"\x80\x02" + b"]" * 200_001 + b"a" * 200_000 + b"."),
        "nested more than",
    ),
    "ten to the power of twelve": (lambda p: write(p, plain(a=laughing(12))), "repeats its values"),
    "a list in itself": (lambda p: write(p, plain(a=endless())), "nested more than"),
    "a string that says 10 TB": (
        lambda p: with_pickle(p, b"\x80\x04\x8d" + struct.pack("<Q", TB10) + b"short."),
        "cannot be read",
    ),
    "a memo at four billion": (
        lambda p: with_pickle(p, b"\x80\x02]r\xff\xff\xff\xff."),
        "is not a checkpoint of alexnet_exp",
    ),
    "no pickle": (lambda p: with_pickle(p, b"\x00\x01\x02"), "cannot be read"),
    "no checkpoint": (lambda p: (p.write_bytes(random.Random(0).randbytes(10_000)), p)[1], "cannot be read"),
    "empty file": (lambda p: (p.write_bytes(b""), p)[1], "cannot be read"),
}  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a verb that must end with exit code 1 and one line, and return it."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.err.splitlines()[-1] == line
    assert "Traceback" not in said.out + said.err
    assert len(line) < 600
    return line


def test_the_honest_checkpoint_is_read_whole(honest: Path, place: Path) -> None:
    """Otherwise the refusals below would prove nothing."""
    assert same(load_safely(honest / "checkpoints" / "last.ckpt"), checkpoint(honest))
    assert main(["predict", str(honest), "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}"]) == 0


@pytest.mark.parametrize("name", FILES)
def test_no_file_runs_code_or_takes_what_it_does_not_bring(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = FILES[name]
    file = make(place / "hostile.ckpt")
    line = refused(capsys, "predict", file, "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert re.search(message, line), line
    with pytest.raises(UserError, match=r"hostile\.ckpt"):
        _weights(file)
    assert not (place / "canary").exists()


def _weights(file: Path) -> Any:
    from alexnet_exp.training.restore import _network_weights

    return _network_weights(file)


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
def test_every_verb_reads_with_the_same_care(
    name: str, verb: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FILES[name][0](place / "hostile.ckpt")
    arguments = [argument.format(file=file) for argument in VERBS[verb]]
    line = refused(capsys, *arguments, f"hydra.run.dir={place / 'out'}")
    assert re.search(FILES[name][1], line), line
    assert not (place / "canary").exists()


def test_a_run_that_goes_on_reads_with_the_same_care(
    honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("os.system", "10 TB of bytes"):
        shutil.copytree(honest, place / name)
        (place / name / "result.json").unlink()
        FILES[name][0](place / name / "checkpoints" / "last.ckpt")
        line = refused(capsys, "train", f"resume={place / name}", "trainer.max_epochs=3")
        assert re.search(FILES[name][1], line), line
    assert not (place / "canary").exists()


# ------------------------------------------------------------------------------------- settings that attack


def changed(honest: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write the honest checkpoint with something changed."""
    saved = copy.deepcopy(checkpoint(honest))
    change(saved)
    return write(path, saved)


def in_model(**keys: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: saved["config"]["model"].update(keys)


TARGETS = [
    "os.system", "builtins.eval", "subprocess.Popen", "functools.partial", "hydra.utils.instantiate",
    "hydra.utils.get_method", "importlib.import_module", "torch.load", "torch.hub.load",
    "alexnet_exp.data.cifar10.os.system", "alexnet_exp.training.devices.Ranks",
    "alexnet_exp.models.alexnet.torch.load", "alexnet_exp.targets.build", "alexnet_exp.models.AlexNet.load_state_dict",
    "alexnet_exp.models.AlexNet ", "ALEXNET_EXP.models.AlexNet", "..os.system", "",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_no_class_outside_the_list_is_made(
    target: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(honest, place / "hostile.ckpt", in_model(_target_=target, _args_=["touch canary"]))
    line = refused(capsys, "predict", file, "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert "is not of this package" in line
    assert not (place / "canary").exists()


NESTED = [
    {"features": {"conv1": {"_target_": "os.system", "_args_": ["touch canary"]}}},
    {"_args_": [{"_target_": "os.system", "command": "touch canary"}]},
    {"_partial_": True, "lrn": [[({"_target_": "builtins.exec"},)]]},
]


@pytest.mark.parametrize("keys", NESTED)
def test_no_class_hides_in_the_depth(
    keys: dict[str, Any], honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(honest, place / "hostile.ckpt", in_model(**keys))
    line = refused(capsys, "export", file, "format=safetensors", f"hydra.run.dir={place / 'out'}")
    assert "is not of this package" in line
    assert not (place / "canary").exists()


DIGITS = {"batch_size": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "ten billion classes": (in_model(num_classes=10**10), "do not fit its own network"),
    "a number beyond counting": (in_model(num_classes=2**2000), "network cannot be built"),
    "a layer of 10 TB": (
        lambda s: s["config"]["model"]["features"]["conv1"].update(out_channels=10**11),
        "do not fit its own network",
    ),
    "a kernel of text": (
        lambda s: s["config"]["model"]["features"]["conv1"].update(kernel_size="big"),
        "must be a whole number",
    ),
    "layers that are none": (in_model(features=7), "network cannot be built"),
    "a data set as the network": (
        lambda s: s["config"].update(model={"_target_": "alexnet_exp.data.Digits", **DIGITS}),
        "is no network",
    ),
    "images of a million pixels' side": (lambda s: s["preprocessing"].update(stored_size=10**6), "its preprocessing"),
    "another size than the network's": (lambda s: s["preprocessing"].update(image_size=900), "cannot take its images"),
    "no mean": (lambda s: s["preprocessing"].update(mean=None), "its preprocessing"),
    "no preprocessing": (lambda s: s.pop("preprocessing"), "its preprocessing"),
    "classes that are numbers": (lambda s: s.update(classes=list(range(10))), "its classes"),
    "too few classes": (lambda s: s.update(classes=["one"]), "names 1 classes"),
    "settings that are none": (lambda s: s.update(config=[1]), "its config"),
    "settings without a model": (lambda s: s["config"].pop("model"), "its config"),
    "weights that are none": (lambda s: s.update(state_dict={"a": 1}), "its state_dict"),
    "weights of other names": (lambda s: s.update(state_dict={1: torch.zeros(1)}), "its state_dict"),
    "no weights": (lambda s: s.update(state_dict={}), "do not fit its own network"),
    "augmentation that is none": (lambda s: s["config"]["augment"].update(views=7), r"augment\.views=7"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_checkpoint_says_of_itself_is_checked_before_it_is_built(
    name: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = SETTINGS[name]
    file = changed(honest, place / "hostile.ckpt", change)
    line = refused(capsys, "predict", file, "a.png", "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert re.search(message, line), line


DATA: list[tuple[dict[str, Any], str]] = [
    ({"num_workers": 10**6}, r"data\.num_workers=1000000, and it must be"),
    ({"_target_": "os.system"}, "is not of this package"),
    ({"test_subset": "all"}, r"data\.test_subset='all', and it must be"),
]


@pytest.mark.parametrize(("keys", "message"), DATA)
def test_the_data_that_a_checkpoint_names_is_checked(
    keys: dict[str, Any], message: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(honest, place / "hostile.ckpt", lambda saved: saved["config"]["data"].update(keys))
    line = refused(capsys, "evaluate", file, "device=cpu", f"hydra.run.dir={place / 'out'}")
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "part", ["loops", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step"]
)
@pytest.mark.parametrize("value", [None, {"fit_loop": 3}, -1, 2**70, "x"], ids=str)
def test_training_does_not_go_on_from_parts_that_are_none(part: str, value: Any, honest: Path) -> None:
    from alexnet_exp.training.reading import check_progress

    saved = checkpoint(honest)
    check_progress(saved, "a.ckpt")
    if part == "callbacks" and isinstance(value, dict):
        return
    with pytest.raises(UserError, match=f"its {part} is not what a run writes"):
        check_progress({**saved, part: value}, "a.ckpt")


# ---------------------------------------------------------------------------------- directories that attack


OVERRIDES: list[Any] = [
    "hydra.callbacks.x._target_=os.system",
    "+hydra.callbacks.x._target_=os.system",
    "hydra/launcher=evil",
    "hydra.job_logging.handlers.file.class=os.system",
    "--config-dir=/tmp/evil",
    "-m",
    {"a": 1},
]


@pytest.mark.parametrize("override", OVERRIDES, ids=str)
def test_a_run_directory_gives_hydra_settings_alone(
    override: Any, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(honest, place / "run")
    typed = yaml.safe_load((honest / "overrides.yaml").read_text())
    (place / "run" / "overrides.yaml").write_text(yaml.safe_dump([*typed, override]))
    line = refused(capsys, "train", f"resume={place / 'run'}", "trainer.max_epochs=3")
    assert "which no run writes there" in line
    assert not (place / "canary").exists()


def test_a_run_directory_cannot_bring_a_class_in_with_what_is_typed(
    honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(honest, place / "run")
    typed = yaml.safe_load((honest / "overrides.yaml").read_text())
    evil = ["+callbacks.evil._target_=os.system", "+callbacks.evil.command='touch canary'"]
    (place / "run" / "overrides.yaml").write_text(yaml.safe_dump([*typed, *evil]))
    line = refused(capsys, "train", f"resume={place / 'run'}", "callbacks.early_stopping.patience=3")
    assert "is not of this package" in line
    assert not (place / "canary").exists()


DIRECTORIES = [  # file, its text, what is said
    ("config.yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "does not hold what a run writes"),
    ("config.yaml", "model: 3\n", "does not hold the settings of a run"),
    ("config.yaml", "a: [", "cannot be read"),
    ("config.yaml", "\x00", "cannot be read"),
    ("result.json", "{", "cannot be read"),
    ("result.json", "[]", "does not hold what a run writes"),
    ("overrides.yaml", "a: b", "does not hold what a run writes"),
]


@pytest.mark.parametrize(("file", "text", "message"), DIRECTORIES)
def test_a_damaged_run_directory_is_one_line(
    file: str, text: str, message: str, honest: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(honest, place / "run")
    (place / "run" / file).write_text(text)
    assert message in refused(capsys, "train", f"resume={place / 'run'}", "trainer.max_epochs=3")


# ------------------------------------------------------------------------------------------- damaged files


def test_every_flipped_byte_is_seen_or_changes_nothing(tmp_path: Path) -> None:
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
def test_a_file_that_is_cut_short_is_refused(share: float, honest: Path, tmp_path: Path) -> None:
    data = (honest / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cannot be read: it is damaged"):
        load_safely(tmp_path / "cut.ckpt")


def test_a_record_given_twice_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "twice.pt", {"a": torch.zeros(4)})
    with zipfile.ZipFile(whole, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name.replace("data.pkl", "DATA.pkl"), pickle.dumps(1))
    with pytest.raises(UserError, match="names that torch does not give"):
        load_safely(whole)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old format"])
def test_what_torch_saves_of_weights_is_read(new: bool, tmp_path: Path) -> None:
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
    content["milestones"] = Counter({30: 1, 60: 2})  # of torch's MultiStepLR
    file = write(tmp_path / "a.pt", content, _use_new_zipfile_serialization=new)
    assert same(dict(load_safely(file)), dict(content))


def test_weights_may_be_a_safetensors_file(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"a": torch.arange(6.0)}, tmp_path / "a.safetensors")
    assert same(_weights(tmp_path / "a.safetensors"), {"a": torch.arange(6.0)})


SAFETENSORS = {
    "a header of an exabyte": struct.pack("<Q", 2**60) + b"{}",
    "no header": struct.pack("<Q", 0),
    "an empty file": b"",
    "a tensor of 40 TB": struct.pack("<Q", 99)
    + json.dumps({"a": {"dtype": "F32", "shape": [TB10], "data_offsets": [0, 4 * TB10]}}).ljust(99).encode(),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "a.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read"):
        _weights(tmp_path / "a.safetensors")


def test_there_is_one_place_that_reads_tensors_and_it_lets_no_code_in() -> None:
    found = {
        str(path.relative_to(PACKAGE)): calls
        for path in PACKAGE.rglob("*.py")
        if (
            calls := re.findall(
                r"(?:torch\.load|torch\.jit\.load|pickle\.loads?|hub\.load)\(.*", path.read_text()
            )
        )
    }
    assert list(found) == [os.path.join("training", "safe_load.py")]
    assert all("weights_only=True" in call for calls in found.values() for call in calls if "`" not in call)
