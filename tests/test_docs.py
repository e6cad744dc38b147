"""The pages in docs/ are correct: each of their commands runs, on runs and images with the names they use."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.documents import (
    VERB,
    Block,
    arguments_of,
    blocks_of,
    brief,
    download_nothing,
    exit_code,
    shortened,
)
from tests.runs.evaluated_runs import make_runs
from tests.runs.made_runs import make_run

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    "evaluate", "predict", "figures", "compare", "export", "dashboard", "wandb", "train", "models", "benchmark",
    "prepare", "inspect", "finetune",
)  # fmt: skip
NEEDS = {
    "export": ("onnx", "onnxscript", "onnxruntime", "safetensors"),
    "dashboard": ("wandb_workspaces",),
    "prepare": ("litdata",),
}
SLOW = ("export", "prepare")
# Commands that would need an account run without one.
WITHOUT_ACCOUNT = {"dashboard": "dry_run=true", "logger.wandb.log_model": "logger.wandb.mode=offline"}


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return blocks_of((DOCS / f"{page}.md").read_text(encoding="utf-8"))


def commands(page: str) -> list[str]:
    """The lines of a page that run this package."""
    lines = [
        line for b in blocks(page) if b.language == "sh" and not b.reason for line in b.text.splitlines()
    ]
    return [line for line in lines if VERB.match(line.rpartition("| ")[2])]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    make_runs(folder, seeds=3)
    runs = folder / "outputs" / "runs"
    make_run(runs / "failed", status="failed", optimizer={"lr": 0.1})
    for name, seed in {"RUN": 0, "RUN1": 0, "RUN2": 1, "RUN3": 2}.items():
        shutil.copytree(folder / f"run{seed}", runs / name)
    for seed in range(2):
        shutil.copytree(folder / f"run{seed}", folder / "outputs" / "sweeps" / "NAME" / str(seed))
    names = {"RUN_A": "RUN1", "RUN_B": "RUN2"} | {name: name for name in ("RUN1", "RUN2", "RUN3")}
    for link, name in names.items():
        (folder / link).symlink_to(runs / name)
    shutil.copy(runs / "RUN" / "checkpoints" / "best.ckpt", folder)
    _photos(folder)
    return folder


def _photos(folder: Path) -> None:
    # All different: inspect exits with another code if an image is in both train and val.
    rng = np.random.default_rng(0)
    images = [f"FOLDER/{split}/{kind}/1.jpg" for split in ("train", "val") for kind in ("cat", "dog")]
    for name in ("photos/one.jpg", "photos/two.png", "a.jpg", "b.png", *images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "yesterday").touch()
    os.utime(folder / "yesterday", (0, 0))


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter the folder, without the data and accounts of this machine."""
    monkeypatch.chdir(made)
    monkeypatch.delenv("ALEXNET_DATA_DIR", raising=False)
    download_nothing(monkeypatch)
    monkeypatch.setattr(
        "alexnet_exp.inference._download", lambda name: made / "outputs/runs/RUN/checkpoints/best.ckpt"
    )
    return made


README = blocks_of((DOCS.parent / "README.md").read_text(encoding="utf-8"))
TESTED_THERE = {line for block in README if not block.reason for line in block.text.splitlines()}
CASES = [
    pytest.param(page, line, marks=[pytest.mark.slow] if page in SLOW else [], id=line)
    for page in PAGES
    for line in commands(page)
    if line.partition("  ")[0] not in TESTED_THERE
]


@pytest.mark.parametrize(("page", "command"), CASES)
def test_a_command_from_the_pages_runs(
    page: str,
    command: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    ahead, _, command = command.rpartition("| ")
    if ahead:
        piped = subprocess.run(ahead, shell=True, check=True, capture_output=True, text=True).stdout
        assert piped
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    arguments = arguments_of(command)
    arguments += [setting for word, setting in WITHOUT_ACCOUNT.items() if word in command]
    arguments += _short(arguments)
    code = exit_code(arguments)
    assert code == 0, capsys.readouterr().err


def _short(arguments: list[str]) -> list[str]:
    """Return overrides that make a command short."""
    if arguments[0] == "benchmark":
        return brief(arguments)
    if arguments[0] != "train" or {"--help", "--cfg"} & set(arguments):
        return []
    if any(argument.startswith("resume=") for argument in arguments):  # the run is already small
        return ["trainer.max_epochs=2"] if any("max_epochs" in argument for argument in arguments) else []
    return shortened(arguments[1:])


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_commands(page: str):
    assert commands(page)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_readme_leads_to_every_page(page: Path):
    assert f"docs/{page.name}" in (DOCS.parent / "README.md").read_text(encoding="utf-8")


PYTHON = [(page, b.text) for page in PAGES for b in blocks(page) if b.language == "python" and not b.reason]


@pytest.mark.parametrize("code", [code for _, code in PYTHON], ids=[page for page, _ in PYTHON])
def test_python_from_the_pages_runs(code: str, project: Path, capsys: pytest.CaptureFixture[str]):
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("picture", sorted((DOCS / "images").glob("*.png")), ids=lambda path: path.name)
def test_pictures_are_small_and_used_on_a_page(picture: Path):
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    assert any(f"images/{picture.name}" in page.read_text(encoding="utf-8") for page in pages)
    assert picture.stat().st_size < 150_000
