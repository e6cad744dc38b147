"""Every command line that docs/reliability.md counts: one clear line, exit code 1, nothing half-written."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alexnet_exp.cli import main
from tests.reliability import data, settings, starting_points, sweeps, verbs
from tests.reliability.bad import Bad, Kind
from tests.reliability.images import IMAGES
from tests.training.small_runs import run

KINDS = (*verbs.KINDS, *settings.KINDS, *data.KINDS, *starting_points.KINDS, *sweeps.KINDS)
ROWS = [
    pytest.param(kind, bad, id=f"{kind.title}: {kind.shown(bad)}"[:100])
    for kind in KINDS
    for bad in kind.rows
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of one epoch; rows refer to it as RUN."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    run(directory, "test=false", "scheduler=none", "logger=none")
    return directory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, for a user without any accounts."""
    monkeypatch.chdir(tmp_path)
    # Hydra composes everything a second time to look for hydra.mode, which none of our files sets.
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
    home = tmp_path.parent / f"{tmp_path.name}-home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    yield tmp_path
    starting_points.release()


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of every file below a folder; None for links and special files."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not path.is_symlink():
            found[name] = path.read_bytes()
        elif not path.is_dir():
            found[name] = None
    return found


def typed(kind: Kind, bad: Bad) -> list[str]:
    return [*kind.base, *shlex.split(bad.typed)]


@pytest.mark.parametrize(("kind", "bad"), ROWS)
def test_bad_input_is_a_one_line_error_and_leaves_no_partial_files(
    kind: Kind,
    bad: Bad,
    here: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if missing := [name for name in kind.needs if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    words = typed(kind, bad)
    if any("RUN" in word for word in words):
        shutil.copytree(finished, here / "RUN")
    if bad.given:
        bad.given(here)
    for name, value in bad.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bad.entered.encode())))
    before = contents(here)
    capfd.readouterr()
    code = main(words)
    out, err = capfd.readouterr()
    assert code == 1, err
    check_said(kind, bad, out, err)
    check_left(kind.leaves, here, before, contents(here))


def check_said(kind: Kind, bad: Bad, out: str, err: str) -> None:
    lines = err.splitlines()
    assert lines, "nothing was said"
    assert "Traceback" not in out + err
    assert lines[-1].startswith("error: ") and bad.said in lines[-1], err
    assert sum(line.startswith("error: ") for line in lines) == 1 and len(lines[-1]) < 600, err
    assert all(line.startswith((*kind.notes, "Chosen for this network: ")) for line in lines[:-1]), err
    assert kind.leaves != "nothing" or out == "", out


def check_left(leaves: str, folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Check what a command has left in a folder.

    Args:
        leaves: See `Kind`.
        folder: The folder.
        before: Its contents before the command.
        after: Its contents after the command.
    """
    new = {name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)}
    assert not any(name.endswith((".tmp", ".part", ".lock")) for name in new), new
    if leaves == "nothing":
        assert new == set()
    elif leaves == "an empty sweep":
        assert {Path(name).name for name in new} <= {
            "multirun.yaml",
            "sweep.json",
            "study.log",
            "array-1.sh",
        }, new
    elif leaves == "the run as it was":
        kept = {"config.yaml", "overrides.yaml", "metrics.csv", "result.json", "last.ckpt", "best.ckpt"}
        assert not kept & {Path(name).name for name in new}, new
    else:
        (result,) = [Path(name) for name in new if Path(name).name == "result.json"]
        assert json.loads((folder / result).read_text())["status"] == "failed"
        assert all(Path(name).is_relative_to(result.parent) for name in new), new


def test_predict_names_each_bad_image_in_its_row_and_predicts_the_good_one(
    here: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(here / "good.png")
    for name, make, _ in IMAGES.values():
        make(here / name)
    capfd.readouterr()
    files = ["good.png", *(name for name, _, _ in IMAGES.values())]
    assert main(["predict", str(finished), *files, "device=cpu", "hydra.run.dir=out"]) == 2
    assert capfd.readouterr().err == ""
    with (here / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        errors = {row["image"]: row["error"] for row in csv.DictReader(file)}
    assert errors["good.png"] == ""
    assert not {what: errors[name] for what, (name, _, said) in IMAGES.items() if said not in errors[name]}
