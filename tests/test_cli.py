"""The command line as a user meets it: one line for a mistake, exit code 1, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import alexnet_exp
from alexnet_exp.cli import VERBS, main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Settings that reach training, which does not take place."""
    import alexnet_exp.runs.train.command as module

    calls: list[dict[str, Any]] = []

    def train(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> None:
        calls.append({"config": config, "overrides": overrides, "run_dir": run_dir, "command": command})

    monkeypatch.setattr(module, "train", train)
    return calls


MISTAKES = [
    (["data.batch_size=abc"], "invalid data.batch_size='abc': expected an integer >= 1."),
    (["data.batch_size=0"], "invalid data.batch_size=0: expected an integer >= 1."),
    (["data.batch_size=-1"], "invalid data.batch_size=-1: expected an integer >= 1."),
    (["data.batch_size=1.5"], "invalid data.batch_size=1.5: expected an integer >= 1."),
    (["data.batch_size=null"], "invalid data.batch_size=null: expected an integer >= 1."),
    (["optimizer.lr=fast"], "invalid optimizer.lr='fast': expected a positive number, or auto."),
    (["optimizer.lr=-1"], "invalid optimizer.lr=-1: expected a positive number, or auto."),
    (["trainer.devices=two"], "invalid trainer.devices='two': expected auto, or an integer >= 1"),
    (
        ["trainer.precision=float8"],
        "invalid trainer.precision='float8': expected one of auto, 32-true, bf16-mixed,",
    ),
    (["scheduler.name=cosin"], "invalid scheduler.name='cosin': expected one of none, step,"),
    (["trainer.devics=2"], "There is no setting trainer.devics. Did you mean trainer.devices?"),
    (["+trainer.devics=2"], "There is no setting trainer.devics. Did you mean trainer.devices?"),
    (["model=alexnett"], "model=alexnett: conf/model has no file alexnett.yaml. Did you mean alexnet,"),
    (["data=cifar"], "Did you mean cifar10?"),
    (["optimizer=sdg"], "Did you mean sgd?"),
    (["+experiment=nothing"], "experiment=nothing: conf/experiment has no file nothing.yaml."),
    (["model.features.conv2.grups=2"], "Did you mean groups"),
    (["model.input_size=abc"], "invalid model.input_size='abc': expected an integer."),
    (["model=alexnet", "model.input_size=5"], "conv1: its 11x11 kernel does not fit a 5x5 map"),
    (
        ["model.features.conv2.then=[rel]"],
        "model.features.conv2: unknown operation 'rel'. Did you mean relu",
    ),
    (
        ["model=alexnet_cifar", "model.dropout=0.3"],
        "model.dropout has no effect: no layer of this network uses dropout",
    ),
    (["model=alexnet_lrn", "model.lrn.groups=5"], "conv1: lrn.groups=5 does not divide its 96 channels."),
    (["data=folder"], "data.root is required: set data.root=VALUE."),
    (["data.batch_size"], "write data.batch_size=VALUE."),
    (["=3"], "'=3' has no key: write KEY=VALUE."),
    (["model.features.conv2.then=[relu"], "close every bracket and quote"),
    (["trainer=null"], "trainer=null names no file in conf/trainer"),
    (["~trainer"], "The group trainer is missing"),
    (["~seed"], "The setting seed is missing"),
    (["resume=old", "ckpt=older"], "use only one of them."),
    (["callbacks.early_stopping.enabled=true", "data.val_size=0"], "needs validation images"),
    (["--config-dir", "nowhere"], "nowhere for --config-dir."),
]


@pytest.mark.parametrize(
    ("typed", "said"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_a_mistake_is_a_one_line_error_and_leaves_no_files(
    typed: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = main(["train", *typed, f"paths.output_dir={tmp_path / 'out'}"])
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.glob("out/*"))


def test_directory_chosen_for_a_refused_run_is_not_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine").mkdir()
    assert main(["train", "seed=-1", f"hydra.run.dir={tmp_path / 'mine' / 'run'}"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]  # it was there before
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_rejected_run_removes_nothing_from_its_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["train", "seed=-1", f"hydra.run.dir={tmp_path}"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_full_error_shows_where_a_mistake_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["train", "seed=-1"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import alexnet_exp.runs.train.command as module

    def train(*_: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(module, "train", train)
    assert main(["train"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.count("RuntimeError: ours") == 1


def test_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import alexnet_exp.runs.train.command as module

    def train(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", train)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("path", ["/a folder/it's, x=1", "größe/~", "a/~/images", '/say "x"', "back\\slash"])
def test_path_typed_unquoted_reaches_training_unchanged(path: str, trained: list[dict[str, Any]]):
    typed = [f"data.root={path}", f"paths.output_dir=o {path.strip('/~')}", f"weights={path}"]
    assert main(["train", "data=folder", *typed]) == 0
    (call,) = trained
    config = call["config"]
    assert config["data"]["root"] == config["weights"] == path
    assert config["paths"]["output_dir"] == f"o {path.strip('/~')}"
    assert str(call["run_dir"]).startswith(str(Path.cwd() / f"o {path.strip('/~')}"))


@pytest.mark.parametrize("path", ["/a folder/it's, x=1", "back\\slash"])
def test_checkpoint_typed_unquoted_reaches_training_unchanged(path: str, trained: list[dict[str, Any]]):
    assert main(["train", f"ckpt={path}"]) == 0
    assert trained[0]["config"]["ckpt"] == path


def test_run_directory_typed_unquoted_is_taken(tmp_path: Path, trained: list[dict[str, Any]]):
    awkward = tmp_path / "a, b=c it's größe"
    assert main(["train", f"hydra.run.dir={awkward}"]) == 0
    assert main(["train", f"resume={awkward}"]) == 0
    assert [call["run_dir"] for call in trained] == [awkward, awkward]
    assert trained[1]["config"]["resume"] == str(awkward)


def test_two_runs_of_the_same_second_have_two_directories(trained: list[dict[str, Any]]):
    assert main(["train"]) == main(["train"]) == 0
    first, second = (call["run_dir"] for call in trained)
    assert first != second
    assert first.parent == second.parent == Path.cwd() / "outputs" / "runs"
    assert "alexnet_cifar_digits" in first.name


def test_training_gets_plain_settings_and_what_was_typed(trained: list[dict[str, Any]]):
    assert main(["train", "model=alexnet_lrn", "seed=3"]) == 0
    (call,) = trained
    assert type(call["config"]["model"]["features"]["conv1"]) is dict
    assert call["config"]["seed"] == 3
    assert call["overrides"] == ["model=alexnet_lrn", "seed=3"]
    assert call["command"].endswith("train model=alexnet_lrn seed=3")


def test_a_setting_can_reference_another(trained: list[dict[str, Any]]):
    assert main(["train", "data.batch_size=${seed}", "seed=7"]) == 0
    assert trained[0]["config"]["data"]["batch_size"] == 7
    assert trained[0]["overrides"] == ["data.batch_size=${seed}", "seed=7"]


def test_the_launcher_that_was_removed_names_what_takes_its_place(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "-m", "seed=1,2", "hydra/launcher=basic"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "error: hydra/launcher=basic has been removed: hydra.launcher.max_parallel=1 runs the jobs"
    )
    assert said.count("\n") == 1


def test_arguments_of_the_process_are_as_before(trained: list[dict[str, Any]]):
    before = list(sys.argv)
    main(["train", "seed=3"])
    assert sys.argv == before


def test_own_folder_of_settings_is_searched(tmp_path: Path, trained: list[dict[str, Any]]):
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text(
        "defaults: [alexnet_cifar, _self_]\ninput_size: 40\n"
    )
    assert main(["train", "model=mine", "--config-dir", "own"]) == 0
    assert trained[0]["config"]["model"]["input_size"] == 40


# --------------------------------------------------------------------------------------------------- verbs


def test_without_a_verb_usage_is_shown_and_the_exit_code_is_1(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 1
    assert "alexnet-exp VERB" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_verb(flag: str, capsys: pytest.CaptureFixture[str]):
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == alexnet_exp.__version__


def test_an_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["trian"]) == 1
    err = capsys.readouterr().err
    assert err == "error: There is no verb 'trian'. Did you mean train? alexnet-exp --help lists all.\n"


# ----------------------------------------------------------------------------------------------- processes

LIGHT = """
import sys
from alexnet_exp.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("heavy:", [name for name in ("torch", "lightning", "wandb", "matplotlib", "numpy") if name in sys.modules])
sys.exit(code)
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize(
    ("typed", "code"), [(["data.batch_size=0"], 1), (["model=alexnett"], 1), (["--help"], 0)], ids=str
)
def test_errors_found_from_text_do_not_import_torch(typed: list[str], code: int):
    done = run("-c", LIGHT, "train", *typed)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "heavy: []")
    assert "Traceback" not in done.stderr


def test_help_is_short_and_names_groups_and_examples():
    done = run(str(ROOT / "train.py"), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) < 40
    assert "data: cifar10, digits, folder, imagenet, mnist" in done.stdout
    assert "trainer.max_epochs=20" in done.stdout


def test_settings_can_be_shown_without_a_run(tmp_path: Path):
    done = run(str(ROOT / "train.py"), "model=alexnet_lrn", "--cfg", "job", "seed=7")
    assert done.returncode == 0
    assert "seed: 7" in done.stdout
    assert "_target_: alexnet_exp.models.AlexNet" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_tab_completion_installs_and_answers(tmp_path: Path):
    installed = run(str(ROOT / "train.py"), "-sc", "install=bash")
    assert installed.returncode == 0
    assert "hydra_bash_completion()" in installed.stdout
    line = "python train.py model=alexnet_l"
    asked = run(str(ROOT / "train.py"), "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert asked.stdout.split() == ["model=alexnet_lrn"]
    assert list(tmp_path.iterdir()) == []
