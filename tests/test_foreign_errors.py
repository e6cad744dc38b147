"""Errors of libraries and the operating system are reported in one line; our own bugs keep their traceback."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

import alexnet_exp.version
from alexnet_exp.cli import VERBS, main
from alexnet_exp.config.messages import explain, of_composing
from alexnet_exp.config.overrides import prepare, typed
from alexnet_exp.errors import is_out_of_memory, of_the_machine, shell_command
from alexnet_exp.runs.train import rank

ROOT = Path(__file__).resolve().parent.parent
OUT_OF_MEMORY = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 5.00 GiB "
        "is free. Process 1 has 134.00 GiB memory in use."
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, max allowed: 9.00 GB). Tried to allocate 8 MB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError(),
    MemoryError("Unable to allocate 3.20 GiB for an array with shape (1, 2)"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("std::bad_alloc"),
]  # fmt: skip
OURS = [
    ValueError("ours"), KeyError("ours"), RuntimeError("ours"), TypeError("ours"), AssertionError(),
    FileNotFoundError(2, "No such file", "ours"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: device-side assert triggered"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def raised(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the class is up to the library)
        function()
    return caught.value


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Make a run fail with a given error once training has begun."""

    def fail_with(error: Exception) -> None:
        import alexnet_exp.runs.train.fit as fit

        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr(fit, "prepare_data", fail)

    return fail_with


# ------------------------------------------------------------------------------------------------ libraries


def test_a_library_error_is_one_line_in_its_own_words(tmp_path: Path):
    broken = tmp_path / "a.png"
    broken.write_text("no picture")
    for error, said in [
        (
            raised(lambda: wandb.Settings(run_tags=["x" * 70])),
            "pydantic error: run_tags: Value error, Tag ",
        ),
        (raised(lambda: wandb.Settings(project="a/b")), "W&B error: Invalid project name 'a/b'"),
        (raised(lambda: Image.open(broken)), "Pillow error: cannot identify image file"),
        (MisconfigurationException("too many devices"), "too many devices."),
    ]:
        message = explain(error)
        assert message is not None
        assert said in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "CUDA error: no kernel image is available for execution on the device",
            "install another (pytorch.org)",
        ),
        ("The NVIDIA driver on your system is too old (found version 11040).", "driver is too old"),
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            "The GPU is in use by another process",
        ),
        ("CUDA error: uncorrectable ECC error encountered", "resume=RUN_DIR"),
        (
            "lrn_backward does not have a deterministic implementation, but you set",
            "set trainer.deterministic=warn",
        ),
        ("DataLoader worker (pid(s) 1, 2) exited unexpectedly", "data.num_workers=0"),
        ("DataLoader worker (pid 1) is killed by signal: Bus error.", "--shm-size=8g"),
        ("unable to write to file </torch_1_2>: No space left on device (28)", "Out of shared memory"),
    ],
)
def test_a_torch_error_about_the_machine_is_one_line_with_a_fix(text: str, said: str):
    message = explain(RuntimeError(text)) or ""
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("error", OURS, ids=repr)
def test_our_own_bugs_keep_their_traceback(error: Exception):
    assert explain(error) is None


def test_a_failed_run_prints_and_records_one_line_and_logs_the_traceback(
    failing: Callable[[Exception], None], capsys: pytest.CaptureFixture[str]
):
    from alexnet_exp.tracking.run_directory import RunDirectory

    failing(raised(lambda: wandb.Settings(run_tags=["x" * 70])))
    assert main(["train", "logger=csv", "hydra.run.dir=run"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "error: pydantic error: run_tags: Value error" in err
    result = RunDirectory(Path("run")).result() or {}
    assert result["status"] == "failed"
    assert result["error"].startswith("pydantic error: run_tags")
    assert "Traceback" in Path("run/train.log").read_text()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (f"logger.wandb.tags=[{'x' * 70}]", "expected a list, each a string of 1 to 64 characters"),
        ("logger.wandb.tags=['']", "expected a list, each a string of 1 to 64 characters"),
        ("logger.wandb.project=a/b", "characters without / "),
        (f"logger.wandb.project={'x' * 129}", "1 to 128 characters"),
        (f"logger.wandb.group={'x' * 129}", "1 to 128 characters"),
        (f"logger.wandb.name={'x' * 129}", "1 to 128 characters"),
    ],
)
def test_settings_that_wandb_would_reject_are_rejected_before_the_run(
    setting: str, said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", setting, "hydra.run.dir=run"]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("-m seed=1,2 --cfg job", "omit -m, and give each key one value"),
        ("-m seed=1,2 --cfg all --resolve", "omit -m"),
        ("-m --cfg hydra --package optimizer", "omit -m"),
        ("-m seed=1,2 --info", "omit -m"),
        ("-m --info plugins seed=1", "omit -m"),
        ("-m seed=1 --resolve", "--resolve flag can only be used"),
        ("--run -m seed=1", "omit -m"),
    ],
)
def test_conflicting_flags_are_a_one_line_error(flags: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", *flags.split()]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ") and said in err


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
def test_a_yaml_that_is_not_utf_8_is_named(sweep: list[str], capsys: pytest.CaptureFixture[str]):
    Path("own/model").mkdir(parents=True)
    Path("own/model/mine.yaml").write_bytes(b"input_size: 32 # gr\xf6\xdfe\n")
    assert main(["train", "--config-dir", "own", "model=mine", *sweep]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "own/model/mine.yaml is not UTF-8" in err


def test_an_empty_sweep_is_a_one_line_error(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "model=glob(x*)"]) == 1
    assert capsys.readouterr().err == (
        "error: There is no job to run: a glob() or range() of this sweep is empty.\n"
    )


def test_info_does_not_take_a_setting_as_its_value():
    assert prepare(["--info", "seed=1"]) == ["--info", "all", "seed=1"]
    assert prepare(["--info", "plugins", "seed=1"]) == ["--info", "plugins", "seed=1"]


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--version"], ["evaluate", "x", "--version"]])
def test_every_command_prints_our_version(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{alexnet_exp.version.__version__}\n"


# -------------------------------------------------------------------------------------------------- machine


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "(Permission denied): fix its permissions"),
        (errno.EIO, "(Input/output error): the disk or network file system is faulty"),
        (errno.ENOSPC, "(No space left on device): free some space"),
        (errno.EISDIR, "(Is a directory): expected a file, but this is a folder"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_an_os_error_names_the_path_and_the_fix(number: int, said: str):
    assert said in (of_the_machine(OSError(number, os.strerror(number), "/data/x")) or "")
    message = explain(OSError(number, os.strerror(number), "/data/x")) or ""
    assert message.startswith("/data/x cannot be read or written ")


def test_a_yaml_without_read_permission_is_named():
    said = str(of_composing(PermissionError(13, "Permission denied", "/my_conf/model/mine.yaml"), ["seed=1"]))
    assert said.startswith("/my_conf/model/mine.yaml cannot be read: Permission denied; fix its permissions")


# --------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:30])
def test_out_of_memory_is_distinguished_from_other_errors(error: Exception):
    assert is_out_of_memory(error)
    assert not any(map(is_out_of_memory, OURS))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:30])
@pytest.mark.parametrize("verb", VERBS)
def test_out_of_memory_is_one_line_with_a_fix(error: Exception, verb: str):
    said = explain(error, verb) or ""
    assert "\n" not in said
    assert ("Out of GPU memory" in said) == any(word in str(error) for word in ("CUDA", "MPS"))
    if verb in ("train", "benchmark"):
        assert "a smaller data.batch_size" in said
        assert "trainer.accumulate_grad_batches=N" in said
        assert "trainer.precision=bf16-mixed" in said
    elif verb in ("evaluate", "predict", "figures"):
        assert "a smaller batch_size" in said


def test_a_run_that_is_out_of_memory_ends_in_one_line(
    failing: Callable[[Exception], None], capsys: pytest.CaptureFixture[str]
):
    from alexnet_exp.tracking.run_directory import RunDirectory

    failing(OUT_OF_MEMORY[0])
    assert main(["train", "logger=csv", "hydra.run.dir=run"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "error: Out of GPU memory (no room for 20.00 GiB more): set a smaller data.batch_size" in err
    assert "data.batch_size" in (RunDirectory(Path("run")).result() or {})["error"]


def test_another_rank_reports_out_of_memory_in_its_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import alexnet_exp.runs.train.command as train

    def fail(*_: Any) -> None:
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(train, "follow", fail)
    for name in ("die_with_parent", "before_torch", "ignore_signals"):
        monkeypatch.setattr(rank, name, lambda *_: None)
    monkeypatch.setattr(rank, "receive_settings", lambda: [{}, []])
    monkeypatch.setattr(sys, "argv", ["rank", "run", "1"])
    assert rank.take_part("alexnet_exp.runs.train.fit", rank._train) == 1
    assert "a smaller data.batch_size" in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------ printed commands


@pytest.mark.parametrize(
    "word",
    ["model=a,b", "seed=1", "data.root=/a/b-c_d.e", "lr=1e-4", "+a.b@c=d:e", "größe=x", "100%"],
)
def test_a_word_that_is_safe_in_a_shell_is_printed_unquoted(word: str):
    assert shell_command([word]) == word


def test_a_printed_command_survives_the_shell():
    words = [
        "model=a,b", "trainer.devices=[0,1]", "x={a: 1}", "data.root=/a b/it's", "~/x", "a=~/x", "$HOME", "*",
        "#a", "a?b", "`a`", 'say "x"', "a;b", "a|b&c", "(x)", "back\\slash", "", "größe/图像", "!x", "=x", "a\nb",
    ]  # fmt: skip
    done = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {shell_command(words)}"], capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0")[:-1] == words


@pytest.mark.parametrize("path", ["/a/b", "/a b", "a,b", "it's", "null", "back\\slash", "'a'", "[a]"])
def test_a_path_is_printed_as_typed_and_parses_the_same(path: str):
    (prepared,) = prepare([f"data.root={path}"])
    assert prepare([typed(prepared)]) == [prepared]
    if path in ("/a/b", "/a b", "a,b"):
        assert typed(prepared) == f"data.root={path}"


def test_subprocesses_of_a_checkout_import_it_from_another_folder(tmp_path: Path):
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (checkout / "alexnet_exp", elsewhere):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "train.py", checkout)
    shutil.copy(ROOT / "alexnet_exp" / "startup.py", checkout / "alexnet_exp")
    (checkout / "alexnet_exp" / "__init__.py").touch()
    (checkout / "alexnet_exp" / "job.py").write_text("print(__file__)")
    (checkout / "alexnet_exp" / "cli.py").write_text(
        "import subprocess, sys\n"
        "def main(_): return subprocess.call([sys.executable, '-m', 'alexnet_exp.job'])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, checkout / "train.py"], cwd=elsewhere, env=environment, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(checkout / "alexnet_exp" / "job.py")
